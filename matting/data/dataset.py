"""Open a dataset: the pairs to learn from, in three splits.

    open_dataset   URIs or "synthetic" -> PairDataset: Rows and keys of each split; nothing is decoded
    check_mattes   PairDataset         -> what a small sample shows to be wrong with its mattes

A dataset is raw or packed pairs at one URI or several, or synthetic people.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute

from matting.data import shards
from matting.data.checks.dataset_checks import RUN_PAIRS, RUNS, judge
from matting.data.checks.pair_checks import LOOK_SIDE
from matting.data.mattes import MatteReading
from matting.data.pairs import Pairing, RawPairOptions, Split, find_pairs, split_of
from matting.data.rows import Example, PackedRows, RawRows, StoredRows, SyntheticRows, synthetic_key
from matting.messages import first_few

SPLITS: tuple[Split, ...] = get_args(Split)
ASPECT_SAMPLES = 64  # images of a dataset whose aspect ratios are measured


class DataError(Exception):
    """A dataset cannot be used as given. The message says what was found and what to do."""


@dataclass(frozen=True, kw_only=True)
class PairOptions(RawPairOptions):
    """Options of every job that opens a dataset.

    Args:
        synthetic_pairs: Number of people to draw for the dataset "synthetic", with the random seed `split_seed`.
    """

    synthetic_pairs: int = 2500


@dataclass(frozen=True)
class PairDataset:
    """A dataset of pairs, found but not decoded.

    Args:
        splits: Rows of each split.
        keys: Keys of each split, sorted, in the order of its rows.
        unpaired: Files or pairs that are left out, as (key, reason).
        fingerprint: Hash that changes with the dataset; see `pairs.Pairing` and `shards.fingerprint`.
        prefixes: Start of the keys of each joined dataset; one empty prefix if there is only one.
    """

    splits: Mapping[str, StoredRows]
    keys: Mapping[str, list[str]]
    unpaired: tuple[tuple[str, str], ...]
    fingerprint: str
    prefixes: tuple[str, ...] = ("",)

    def sources(self, split: str) -> np.ndarray:
        """Return the number of the joined dataset that each row of a split comes from, int (N,)."""
        numbers = range(len(self.prefixes))  # no prefix begins another, since each ends with its only slash
        return np.array(
            [next(number for number in numbers if key.startswith(self.prefixes[number])) for key in self.keys[split]]
        )

    def counts(self) -> dict[str, int]:
        """Return the number of rows of each split."""
        return {split: len(rows) for split, rows in self.splits.items()}

    def aspects(self) -> list[float]:
        """Return the 5 % and 95 % quantiles of the training images' aspect ratios, width over height.

        They are estimated from `ASPECT_SAMPLES` evenly spaced rows. The list is empty if none of these can be read.
        """
        rows = self.splits["train"]
        spread = np.unique(np.linspace(0, len(rows) - 1, ASPECT_SAMPLES).astype(int))
        found = [aspect for aspect in rows.take(spread).aspects() if aspect > 0]
        return [float(f"{aspect:.3g}") for aspect in np.quantile(found, (0.05, 0.95))] if found else []

    def example(self, split: str, key: str) -> Example:
        """Decode one pair at its own size; the example has an error if it can no longer be read.

        Raises:
            KeyError: The split has no such key.
        """
        keys = self.keys[split]
        index = bisect_left(keys, key)
        if keys[index : index + 1] != [key]:
            raise KeyError(f"{key!r} is not in split {split!r}")
        return next(self.splits[split].take(np.array([index])).examples(None))

    def neighbours(self, prefix: str, runs: int, count: int) -> list[list[tuple[str, str, int]]]:
        """Return evenly spaced runs of neighbours in the listing of one dataset, as (key, split, index of the row).

        Args:
            prefix: Start of the dataset's keys, one of `prefixes`.
            runs: Number of runs; there are fewer if they would overlap.
            count: Number of neighbours in a run.
        """
        bounds = {  # "0" is the character after the "/" that a prefix ends in
            split: (bisect_left(keys, prefix), bisect_left(keys, prefix[:-1] + "0") if prefix else len(keys))
            for split, keys in self.keys.items()
        }
        total = sum(end - start for start, end in bounds.values())
        longest = max(bounds, key=lambda split: bounds[split][1] - bounds[split][0])
        start, end = bounds[longest]
        first_keys = [prefix]
        if total > runs * count:
            numbers = np.unique(np.linspace(start, max(start, end - count), runs).astype(int))
            first_keys = [self.keys[longest][number] for number in numbers]
        else:
            count = total
        found = []
        for first_key in first_keys:
            following = []
            for split, (_, end) in bounds.items():
                index = bisect_left(self.keys[split], first_key)
                following += [(self.keys[split][i], split, i) for i in range(index, min(index + count, end))]
            found.append(sorted(following)[:count])
        return found


def open_dataset(data: str, options: PairOptions) -> PairDataset:
    """Open one or more datasets as one.

    Args:
        data: "synthetic"; or the URI of raw or packed pairs, or several with commas between. With several, each key
            begins with the last part of its dataset's URI.
        options: How to find or draw the pairs.

    Raises:
        DataError, PairsError, ShardError, StorageError: The dataset cannot be used; the message says what to do.
    """
    if data == "synthetic":
        return synthetic_dataset(options)
    uris = [uri.strip().rstrip("/") for uri in data.split(",") if uri.strip()]
    if not uris:
        raise DataError("--data is empty: give 'synthetic', or the URI of a folder or bucket of pairs.")
    names = [uri.rpartition("/")[2] for uri in uris]
    if len(set(names)) < len(names):
        raise DataError(f"Two datasets of {data} have the same last part, so their keys would collide. Rename one.")
    packed = [shards.is_packed(uri) for uri in uris]
    if any(packed) and not all(packed):
        raise DataError(f"{data} mixes raw and packed datasets. Pack the raw ones with jobs/pack.py.")
    prefixes = [f"{name}/" for name in names] if len(uris) > 1 else [""]
    indexes = [index_packed(uri) if packed[0] else index_raw(find_pairs(uri, options)) for uri in uris]
    tables = [prefix_keys(index.table, prefix) for index, prefix in zip(indexes, prefixes, strict=True)]
    unpaired = [
        (prefix + key, reason)
        for index, prefix in zip(indexes, prefixes, strict=True)
        for key, reason in index.unpaired
    ]
    joined = Index(pa.concat_tables(tables), unpaired, digest(index.fingerprint for index in indexes))
    return join_splits(joined, PackedRows if packed[0] else RawRows, options.reading, tuple(prefixes))


def join_splits(
    index: "Index",
    rows_type: Callable[[pa.Table, MatteReading], StoredRows],
    reading: MatteReading,
    prefixes: tuple[str, ...] = ("",),
) -> PairDataset:
    """Return the dataset of an index.

    Args:
        index: Index of raw or packed pairs.
        rows_type: Type of its rows, which is made of a table and the way in which mattes are read.
        reading: How the stored values of mattes become alphas.
        prefixes: Start of the keys of each joined dataset.
    """
    table = index.table.sort_by("key")
    splits = {split: table.filter(pa.compute.equal(table["split"], split)).drop_columns("split") for split in SPLITS}
    return PairDataset(
        splits={split: rows_type(part, reading) for split, part in splits.items()},
        keys={split: part["key"].to_pylist() for split, part in splits.items()},
        unpaired=tuple(index.unpaired),
        fingerprint=index.fingerprint,
        prefixes=prefixes,
    )


def check_mattes(pairs: PairDataset, name: str, options: RawPairOptions) -> list[str]:
    """Decode a few dozen pairs of each joined dataset, and look whether its mattes are wrong as a whole.

    Mattes are wrong as a whole if they use a small part of their range (0 and 1, or 0 … 255 in 16 bits), are inverted,
    are trimaps, or are shifted against the photos in the listing; see `matting.data.checks.dataset_checks`.

    Args:
        pairs: The dataset. Drawn people are not looked at.
        name: Name of the dataset, for the messages.
        options: Options of the dataset.

    Returns:
        Warnings about what may be meant so. With `check_mattes` "warn", failures are among them.

    Raises:
        DataError: The mattes are wrong as a whole, and `check_mattes` is "stop".
        ShardError: A part cannot be read.
    """

    def decode(run: Sequence[tuple[str, str, int]]) -> list[Example]:
        examples: list[Example] = []
        for split in SPLITS:
            indices = np.array([index for _, of, index in run if of == split], int)
            examples += pairs.splits[split].take(indices).examples(LOOK_SIDE) if len(indices) else ()
        return sorted(examples, key=lambda example: example.key)

    if isinstance(pairs.splits["train"], SyntheticRows):
        return []
    warnings = []
    for prefix in pairs.prefixes:
        runs = pairs.neighbours(prefix, RUNS, RUN_PAIRS)
        with ThreadPoolExecutor(RUNS) as pool:
            verdict = judge(prefix.rstrip("/") or name, list(pool.map(decode, runs)))
        if verdict.failure and options.check_mattes == "stop":
            raise DataError(f"{verdict.failure} To use them as they are, give --check-mattes warn.")
        warnings += [text for text in verdict if text]
    return warnings


def too_many_rejected(reasons: Mapping[str, str], total: int, allowed_fraction: float, what: str = "pairs") -> str:
    """Return the message that too many pairs cannot be used, or "" if no more are rejected than allowed.

    Args:
        reasons: Reason for each rejected pair, by its key.
        total: Number of pairs that were found.
        allowed_fraction: Fraction of pairs that may be rejected, in [0, 1].
        what: Name of the items in the message.
    """
    if len(reasons) <= allowed_fraction * total:
        return ""
    first = first_few([f"{key}: {reason}" for key, reason in reasons.items()])
    return (
        f"{len(reasons)} of {total} {what} cannot be used, more than --max-rejected-fraction {allowed_fraction:g} "
        f"allows. The first: {first}. Mend or remove them, or allow more."
    )


class Index(NamedTuple):
    """Index of a dataset: where its rows are stored, which files are left out and why, and its fingerprint."""

    table: pa.Table
    unpaired: Sequence[tuple[str, str]]
    fingerprint: str


def index_raw(found: Pairing) -> Index:
    """Index raw pairs; the table has the columns key, split, image_uri, matte_uri."""
    columns = ("key", "split", "image_uri", "matte_uri")
    table = pa.table({name: pa.array([getattr(pair, name) for pair in found.pairs], pa.string()) for name in columns})
    return Index(table, found.unpaired, found.fingerprint)


def index_packed(uri: str) -> Index:
    """Index packed pairs; the table has the columns key, split, width, height, part, row_group, row."""
    description = shards.read_description(uri)
    left_out = [(key, reason) for key, reason in description["unpaired"] + description["rejected"]]
    return Index(shards.read_index(uri, description), left_out, shards.fingerprint(description))


def synthetic_dataset(options: PairOptions) -> PairDataset:
    """Return a dataset of synthetic people. More people leave the split and the pixels of the others unchanged."""
    numbers: dict[str, list[int]] = {split: [] for split in SPLITS}
    for number in range(options.synthetic_pairs):
        numbers[split_of(synthetic_key(number), options.split_seed)].append(number)
    return PairDataset(
        splits={split: SyntheticRows(options.split_seed, np.array(part, int)) for split, part in numbers.items()},
        keys={split: [synthetic_key(number) for number in part] for split, part in numbers.items()},
        unpaired=(),
        fingerprint=digest(["synthetic", str(options.split_seed), str(options.synthetic_pairs)]),
    )


def prefix_keys(table: pa.Table, prefix: str) -> pa.Table:
    """Return the table with `prefix` before every key."""
    keys = pa.array([prefix + key for key in table["key"].to_pylist()], pa.string())
    return table.set_column(table.schema.get_field_index("key"), "key", keys)


def digest(parts: Iterable[str]) -> str:
    """Return one SHA-256, in hexadecimal, of several strings."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
