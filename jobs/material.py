"""What a training learns from: which pairs and photos, and how the workers come to read them.

    open_material   options            -> Material: names, places, numbers of rows; nothing fetched yet
    make_datasets   Material           -> Ray Data's datasets of an epoch and of the validation, cached if they fit

Knows no training: not the network, not the workers, not the run folder.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray.data

from jobs import cluster, streams
from jobs.actors import Mailbox
from jobs.config import ConfigError
from matting import backgrounds
from matting.collection import DataError, PairOptions, Pairs, Rows, digest, open_pairs


@dataclass(frozen=True, kw_only=True)
class MaterialOptions(PairOptions):
    """What to learn from, and in which order.

    Args:
        data: "synthetic", or the URI of raw or packed pairs; several with commas between.
        backgrounds: URI of photos without people, a folder or a table, before which to place some of the people where
            pictures are varied. Others, and all of them without it, are placed before each other's backgrounds.
        size: pixels a side that pictures are squashed to.
        repeats: how often an epoch takes each training pair; or a number for each URI of data, with commas between.
        cache: "auto" keeps decoded pairs in the object store if they fit.
        seed: of weights, order and augmentation.
    """

    data: str = "synthetic"
    backgrounds: str | None = None
    size: int = 128
    repeats: int | str = 1
    cache: Literal["auto", "off"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("size", "synthetic_pairs"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, is {getattr(self, name)}")
        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", str(self.repeats)):
            raise ValueError(f"--repeats takes a number of at least 1, or several such as 2,1; is {self.repeats!r}")


@dataclass(frozen=True)
class Material:
    """What a run learns from: the training rows that an epoch takes, by number, some perhaps several times; and the
    photos without people, if there are any."""

    pairs: Pairs
    numbers: np.ndarray
    backgrounds: pa.Table | None

    @property
    def total(self) -> int:
        """Of all that is decoded."""
        counts = self.pairs.counts()
        return counts["train"] + counts["val"] + len(self.backgrounds or ())

    def fingerprints(self) -> dict[str, str | None]:
        """That change with it."""
        taken = self.backgrounds
        versions = None if taken is None else digest([*taken["key"].to_pylist(), *taken["etag"].to_pylist()])
        return {"data_fingerprint": self.pairs.fingerprint, "backgrounds_fingerprint": versions}


def open_material(options: MaterialOptions) -> Material:
    """Find it, and check that there is some."""
    pairs = open_pairs(cluster.absolute_each(options.data), options)
    for split in ("train", "val"):
        if not pairs.keys[split]:
            raise DataError(f"{options.data} has no pairs for '{split}' ({pairs.counts()}): add pairs.")
    chosen = None
    if options.backgrounds:
        chosen = backgrounds.choose(cluster.absolute(options.backgrounds), options.seed)
    return Material(pairs, epoch_numbers(options, pairs), chosen)


def epoch_numbers(options: MaterialOptions, pairs: Pairs) -> np.ndarray:
    """The training rows that an epoch takes, by number; some several times, if so asked."""
    counts = [int(count) for count in str(options.repeats).split(",")]
    if len(counts) not in (1, len(pairs.prefixes)):
        raise ConfigError(
            f"--repeats has {len(counts)} numbers and --data {len(pairs.prefixes)} URIs: give one, or one for each."
        )
    each = np.array(counts * len(pairs.prefixes))[pairs.sources("train")]
    return np.concatenate([np.flatnonzero(each > taken) for taken in range(max(counts))])


def make_datasets(
    options: MaterialOptions,
    material: Material,
    epochs_done: Callable[[], int],
    mailbox: "ray.actor.ActorHandle[Mailbox]",
    console: cluster.SharedConsole,
) -> dict[str, Any]:
    """What the workers read, decoded and kept if it fits.

    Args:
        options: how to read it.
        material: that is read.
        epochs_done: asked, by whichever process starts a group of workers, where the run has come to.
        mailbox: told what cannot be decoded.
        console: told whether decoded pairs are kept.
    """
    numbers = material.numbers
    rows: dict[str, Rows] = {split: material.pairs.splits[split] for split in ("train", "val")}
    if options.cache == "auto":
        fits, sentence = streams.cache_fits(sum(map(len, rows.values())), options.size)
        console.say(sentence)
        if fits:
            first = np.concatenate(streams.epoch_order(numbers, options.seed, epochs_done(), 0))
            rows = {
                "train": streams.cache(rows["train"], options.size, mailbox, first),
                "val": streams.cache(rows["val"], options.size, mailbox),
            }
    return {
        "train": partial(train_dataset, options, rows["train"], numbers, epochs_done, mailbox),
        "val": streams.in_order(rows["val"], options.size, mailbox),
    }


def train_dataset(
    options: MaterialOptions,
    rows: Rows,
    numbers: np.ndarray,
    epochs_done: Callable[[], int],
    mailbox: "ray.actor.ActorHandle[Mailbox]",
) -> ray.data.Dataset:
    """The epochs from the one after the last checkpoint; asked for whenever a group of workers starts."""
    return streams.epochs(rows, numbers, options.size, options.seed, epochs_done(), mailbox)
