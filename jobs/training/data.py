"""Training data: which pairs and background photos a run learns from, and the datasets that workers read.

    open_training_data   options        -> TrainingData: keys, places and numbers of rows; nothing is fetched
    TrainingData.facts                  -> DataFacts: the few facts that travel to every worker
    build_datasets       TrainingData   -> datasets of Ray Data for training and validation, cached if they fit

Knows no network, no workers and no run folder.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.common.config import ConfigError
from jobs.common.console import SharedConsole
from jobs.common.visibility import Token
from jobs.training.cache import cache_fits, cache_rows
from jobs.training.config import TrainConfig
from jobs.training.decode import MailboxHandle, SeenRows
from jobs.training.streams import epoch_dataset, epoch_order, ordered_dataset
from matting.data import backgrounds
from matting.data.dataset import DataError, PairDataset, digest, open_dataset
from matting.data.rows import Rows
from matting.storage.uri import absolute_uri, absolute_uris, is_local


@dataclass(frozen=True)
class DataFacts:
    """Facts about the training data that every worker needs."""

    epoch_samples: int  # number of training samples in an epoch, repeats included
    decoded: int  # number of pairs and background photos that are decoded, over training and validation
    val_keys: Sequence[str]  # keys of the validation pairs
    fingerprint: str  # fingerprint of the pairs
    aspects: Sequence[float] | None  # width over height of the tallest and the widest training photos, if of use


@dataclass(frozen=True)
class TrainingData:
    """Pairs and background photos of a run, found but not read."""

    options: TrainConfig
    pairs: PairDataset
    epoch_rows: np.ndarray  # numbers of the training rows that an epoch takes, some perhaps several times
    background_photos: pa.Table | None

    def fingerprints(self) -> dict[str, str | None]:
        """Return the fingerprints of the data, which change when any file does."""
        photos = self.background_photos
        versions = None if photos is None else digest([*photos["key"].to_pylist(), *photos["etag"].to_pylist()])
        return {"data_fingerprint": self.pairs.fingerprint, "backgrounds_fingerprint": versions}

    def local_inputs(self) -> list[str]:
        """Return the local paths that workers read."""
        uris = [] if self.options.data == "synthetic" else absolute_uris(self.options.data).split(",")
        if self.options.backgrounds:
            uris.append(absolute_uri(self.options.backgrounds))
        return list(filter(is_local, uris))

    def facts(self) -> DataFacts:
        """Return what workers need to know; reads the headers of a few photos for their aspects."""
        counts = self.pairs.counts()
        # Without augmentation, the network has seen people at one scale only, and predicts best on photos squashed to a
        # square like those that it learned from. So its checkpoint names no aspects.
        aspects = self.pairs.aspects() if self.options.augment_fraction else None
        return DataFacts(
            epoch_samples=len(self.epoch_rows),
            decoded=counts["train"] + counts["val"] + len(self.background_photos or ()),
            val_keys=self.pairs.keys["val"],
            fingerprint=self.pairs.fingerprint,
            aspects=aspects,
        )


def open_training_data(options: TrainConfig) -> TrainingData:
    """Find the pairs and the background photos.

    Raises:
        ConfigError: --repeats does not fit --data.
        DataError, PairsError, PhotosError, ShardError, StorageError: The data cannot be used or read, or a split is
            empty.
    """
    pairs = open_dataset(absolute_uris(options.data), options)
    for split in ("train", "val"):
        if not pairs.keys[split]:
            raise DataError(f"{options.data} has no pairs for '{split}' ({pairs.counts()}): add pairs.")
    photos = None
    if options.backgrounds:
        photos = backgrounds.choose(absolute_uri(options.backgrounds), options.seed)
    return TrainingData(options, pairs, repeat_rows(options, pairs), photos)


def repeat_rows(options: TrainConfig, pairs: PairDataset) -> np.ndarray:
    """Return the numbers of the training rows that an epoch takes, each as often as --repeats asks for its URI."""
    counts = [int(count) for count in str(options.repeats).split(",")]
    if len(counts) not in (1, len(pairs.prefixes)):
        raise ConfigError(
            f"--repeats has {len(counts)} numbers and --data {len(pairs.prefixes)} URIs: give one, or one for each."
        )
    wanted = np.array(counts * len(pairs.prefixes))[pairs.sources("train")]
    return np.concatenate([np.flatnonzero(wanted > taken) for taken in range(max(counts))])


def build_datasets(
    data: TrainingData,
    epochs_done: Callable[[], int],
    mailbox: MailboxHandle,
    console: SharedConsole,
    token: Token | None = None,
) -> dict[str, Any]:
    """Build the datasets that workers read, and start to decode them into the cache if they fit.

    Args:
        data: Training data.
        epochs_done: Function that returns the number of finished epochs. Ray Train calls it, in any process, whenever
            it starts a group of workers, since these go on after the last checkpoint.
        mailbox: Receiver of the keys that cannot be decoded, and of the reasons.
        console: Console on which to print whether decoded pairs are kept.
        token: Proof that all nodes see the same files; None on a cluster of one machine.

    Returns:
        Datasets by name, as Ray Train takes them: "train", a function that returns the dataset of the epochs to come,
        and "val".
    """
    options, numbers = data.options, data.epoch_rows
    rows: dict[str, Rows] = {split: data.pairs.splits[split] for split in ("train", "val")}
    if token:
        rows = {split: SeenRows(part, token) for split, part in rows.items()}
    if options.cache == "auto":
        fits, sentence = cache_fits(sum(map(len, rows.values())), options.size)
        console.say(sentence)
        if fits:
            first_order = np.concatenate(epoch_order(numbers, options.seed, epochs_done()))
            rows = {
                "train": cache_rows(rows["train"], options.size, mailbox, first_order),
                "val": cache_rows(rows["val"], options.size, mailbox),
            }
    return {
        "train": partial(upcoming_epochs, options, rows["train"], numbers, epochs_done, mailbox),
        "val": ordered_dataset(rows["val"], options.size, mailbox),
    }


def upcoming_epochs(
    options: TrainConfig, rows: Rows, numbers: np.ndarray, epochs_done: Callable[[], int], mailbox: MailboxHandle
) -> Any:
    """Return the dataset of the epochs after the last checkpoint."""
    return epoch_dataset(rows, numbers, options.size, options.seed, epochs_done(), mailbox)
