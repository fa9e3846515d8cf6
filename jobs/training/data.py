"""Training data: which pairs and background photos a run learns from, and the datasets that workers read.

    open_training_data   options        -> TrainingData: keys, places and numbers of rows; nothing is fetched
    TrainingData.facts                  -> DataFacts: the few facts that travel to every worker
    cache_pairs          TrainingData   -> decoded pairs in the object store, if they fit
    build_datasets       TrainingData   -> datasets of Ray Data for training and validation, if they do not

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
from jobs.training.cache import CachedPairs, cache_fits
from jobs.training.config import TrainConfig
from jobs.training.decode import MailboxHandle, SeenRows
from jobs.training.streams import epoch_dataset, ordered_dataset
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


def rows_of(data: TrainingData, token: Token | None) -> dict[str, Rows]:
    """Return the rows of training and validation; with a token, only nodes that see the same files read them."""
    rows: dict[str, Rows] = {split: data.pairs.splits[split] for split in ("train", "val")}
    return {split: SeenRows(part, token) for split, part in rows.items()} if token else rows


def cache_pairs(
    data: TrainingData, epochs_done: int, mailbox: MailboxHandle, console: SharedConsole, token: Token | None = None
) -> CachedPairs | None:
    """Start to decode all pairs into the object store, if they may and do fit; else return None.

    Args:
        data: Training data.
        epochs_done: Number of finished epochs. The rows that the next one reads first are decoded first.
        mailbox: Receiver of the keys that cannot be decoded, and of the reasons.
        console: Console on which to print whether decoded pairs are kept.
        token: Proof that all nodes see the same files; None on a cluster of one machine.
    """
    options, rows = data.options, rows_of(data, token)
    if options.cache == "off":
        return None
    fits, sentence = cache_fits(sum(map(len, rows.values())), options.size)
    console.say(sentence)
    if not fits:
        return None
    return CachedPairs.decode(
        rows["train"], rows["val"], data.epoch_rows, options.seed, epochs_done, options.size, mailbox
    )


def build_datasets(
    data: TrainingData, epochs_done: Callable[[], int], mailbox: MailboxHandle, token: Token | None = None
) -> dict[str, Any]:
    """Build the datasets that workers read where pairs are decoded anew in every epoch.

    Args:
        data: Training data.
        epochs_done: Function that returns the number of finished epochs. Ray Train calls it, in any process, whenever
            it starts a group of workers, since these go on after the last checkpoint.
        mailbox: Receiver of the keys that cannot be decoded, and of the reasons.
        token: Proof that all nodes see the same files; None on a cluster of one machine.

    Returns:
        Datasets by name, as Ray Train takes them: "train", a function that returns the dataset of the epochs to come,
        and "val".
    """
    options, rows = data.options, rows_of(data, token)
    return {
        "train": partial(upcoming_epochs, options, rows["train"], data.epoch_rows, epochs_done, mailbox),
        "val": ordered_dataset(rows["val"], options.size, mailbox),
    }


def upcoming_epochs(
    options: TrainConfig, rows: Rows, numbers: np.ndarray, epochs_done: Callable[[], int], mailbox: MailboxHandle
) -> Any:
    """Return the dataset of the epochs after the last checkpoint."""
    return epoch_dataset(rows, numbers, options.size, options.seed, epochs_done(), mailbox)
