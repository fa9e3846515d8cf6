"""A collection of pairs: where each row is, and how to get it decoded. What training and evaluation read from.

    open_pairs   URIs or "synthetic"   -> Pairs: for each split, Rows (key and place; nothing fetched yet)
    Rows.take    some of them          -> Rows, small enough to travel with a task
    Rows.examples                      -> Example: key, image uint8 (H, W, 3), alpha uint8 (H, W), or an error

Raw files, packed parts and drawn people all answer alike, and the same key gives the same pixels. Knows no cluster.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute

from matting import images, shards, storage, synthetic
from matting.pairs import MAX_IMAGE_BYTES, find_pairs, some, split_of
from matting.predictions import read_matte

SPLITS = ("train", "val", "test")
FETCHES = 16  # pairs in flight in one task
LOOKED_AT = 64  # photos of a collection, to learn what shapes they have
SYNTHETIC_SIDE = 256  # pixels a side of drawn people where no size is asked for


class DataError(Exception):
    """The data cannot be used as given. The message says what was found and what to do."""


@dataclass(frozen=True)
class Example:
    """One pair, decoded: image_HWC and alpha_HW, uint8; or None twice and the reason."""

    key: str
    image: np.ndarray | None
    alpha: np.ndarray | None
    error: str = ""


class Rows(Protocol):
    """Rows of one split: where each is, and how to get it. A part of them is small enough to travel with a task."""

    scattered: ClassVar[bool]  # whether rows from all over the collection cost no more than neighbours

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray) -> "Rows": ...

    def examples(self, size: int | None) -> Iterator[Example]:
        """The rows in order, squashed to size × size, or as large as they are."""


class StoredRows(Rows, Protocol):
    """Rows where they are stored."""

    def take(self, indices: np.ndarray) -> "StoredRows": ...

    def aspects(self) -> list[float]:
        """Width over height of each row's photo, upright, without decoding it; 0 where it cannot be told."""


@dataclass(frozen=True)
class RawRows:
    """Image and matte files: columns key, image_uri, matte_uri."""

    table: pa.Table
    scattered: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.table)

    def take(self, indices: np.ndarray) -> "RawRows":
        return RawRows(self.table.take(indices))

    def examples(self, size: int | None) -> Iterator[Example]:
        for key, image, matte, error in self.fetch():
            yield Example(key, None, None, error) if error else decode(key, image, matte, size)

    def fetch(self) -> Iterator[tuple[str, bytes, bytes, str]]:
        """(key, image bytes, matte bytes, why they could not be read or nothing), in order, several at a time."""
        for _, fetched in storage.concurrently(fetch_pair, self.table.to_pylist(), FETCHES):
            yield fetched

    def aspects(self) -> list[float]:
        uris = self.table["image_uri"].to_pylist()
        return [aspect for _, aspect in storage.concurrently(photo_aspect, uris, FETCHES)]


@dataclass(frozen=True)
class PackedRows:
    """Rows of Parquet parts: columns key, width, height, part, row_group, row."""

    table: pa.Table
    scattered: ClassVar[bool] = False  # a row group is fetched whole

    def __len__(self) -> int:
        return len(self.table)

    def take(self, indices: np.ndarray) -> "PackedRows":
        return PackedRows(self.table.take(indices))

    def examples(self, size: int | None) -> Iterator[Example]:
        for key, image, matte in shards.read_pairs(self.table):
            yield decode(key, image, matte, size)

    def aspects(self) -> list[float]:
        sizes = zip(self.table["width"].to_pylist(), self.table["height"].to_pylist(), strict=True)
        return [width / height if width and height else 0.0 for width, height in sizes]


@dataclass(frozen=True)
class SyntheticRows:
    """Drawn people, by their numbers."""

    seed: int
    numbers: np.ndarray
    scattered: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, indices: np.ndarray) -> "SyntheticRows":
        return replace(self, numbers=self.numbers[indices])

    def examples(self, size: int | None) -> Iterator[Example]:
        side = size or SYNTHETIC_SIDE
        for number in self.numbers:
            yield Example(synthetic_key(number), *synthetic.draw_person(self.seed, int(number), side, side))

    def aspects(self) -> list[float]:
        return [1.0] * len(self)


@dataclass(frozen=True)
class Pairs:
    """A collection of pairs, found but not read."""

    splits: Mapping[str, StoredRows]
    keys: Mapping[str, list[str]]  # of each split, sorted, as its rows are
    unpaired: tuple[tuple[str, str], ...]  # (key, reason)
    fingerprint: str
    prefixes: tuple[str, ...] = ("",)  # of the keys of each collection

    def sources(self, split: str) -> np.ndarray:
        """Which collection each row of a split is of, by number."""
        numbers = range(len(self.prefixes))  # no prefix begins another, since each ends with its only slash
        return np.array(
            [next(number for number in numbers if key.startswith(self.prefixes[number])) for key in self.keys[split]]
        )

    def counts(self) -> dict[str, int]:
        """Rows of each split."""
        return {split: len(rows) for split, rows in self.splits.items()}

    def aspects(self) -> list[float]:
        """Width over height of the training photos: of the tallest and of the widest, but for a twentieth at either
        end; as far as some of them tell, evenly taken from all. Empty if none of these can be read."""
        rows = self.splits["train"]
        spread = np.unique(np.linspace(0, len(rows) - 1, LOOKED_AT).astype(int))
        found = [aspect for aspect in rows.take(spread).aspects() if aspect > 0]
        return [float(f"{aspect:.3g}") for aspect in np.quantile(found, (0.05, 0.95))] if found else []

    def example(self, split: str, key: str) -> Example:
        """One pair at its own size, or why it cannot be read any more. Raises KeyError if there is none of this key."""
        keys = self.keys[split]
        place = bisect_left(keys, key)
        if keys[place : place + 1] != [key]:
            raise KeyError(f"{key!r} is not in split {split!r}")
        return next(self.splits[split].take(np.array([place])).examples(None))


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """How pairs are found, and how many may be unusable. Jobs that read pairs have these among their options.

    Args:
        layout: folder rule of raw pairs: aisegment, p3m, ppm, folders, manifest; "auto" looks.
        split_seed: of the 80/10/10 split by subject; also draws the people of "synthetic".
        synthetic_pairs: people to draw for "synthetic".
        max_unpaired_fraction: of files without a partner, above which to refuse the data.
        max_rejected_fraction: of pairs that cannot be decoded, above which to stop.
    """

    layout: str = "auto"
    split_seed: int = 0
    synthetic_pairs: int = 2500
    max_unpaired_fraction: float = 0.01
    max_rejected_fraction: float = 0.01


def open_pairs(data: str, options: PairOptions) -> Pairs:
    """Find the pairs of one or more collections.

    Args:
        data: "synthetic", or the URI of raw or packed pairs; several with commas between. With several, keys begin
            with the last part of their collection's URI.

    Raises:
        DataError, PairsError, ShardError, StorageError: what is wrong with the collection, and what to do.
    """
    if data == "synthetic":
        return draw_pairs(options)
    uris = [uri.strip().rstrip("/") for uri in data.split(",") if uri.strip()]
    if not uris:
        raise DataError("--data is empty: give 'synthetic', or the URI of a folder or bucket of pairs.")
    names = [uri.rpartition("/")[2] for uri in uris]
    if len(set(names)) < len(names):
        raise DataError(f"Two collections of {data} have the same last part, so their keys would collide. Rename one.")
    packed = [shards.is_packed(uri) for uri in uris]
    if any(packed) and not all(packed):
        raise DataError(f"{data} mixes raw and packed collections. Pack the raw ones with jobs/pack.py.")
    prefixes = [f"{name}/" for name in names] if len(uris) > 1 else [""]
    opened = [(index_packed if packed[0] else index_raw)(uri, options) for uri in uris]
    tables = [prefix_keys(table, prefix) for (table, _, _), prefix in zip(opened, prefixes, strict=True)]
    table = pa.concat_tables(tables).sort_by("key")
    rows_type: Callable[[pa.Table], StoredRows] = PackedRows if packed[0] else RawRows
    splits = {split: table.filter(pa.compute.equal(table["split"], split)).drop_columns("split") for split in SPLITS}
    return Pairs(
        splits={split: rows_type(part) for split, part in splits.items()},
        keys={split: part["key"].to_pylist() for split, part in splits.items()},
        unpaired=tuple(
            (prefix + key, reason)
            for (_, unpaired, _), prefix in zip(opened, prefixes, strict=True)
            for key, reason in unpaired
        ),
        fingerprint=digest(fingerprint for _, _, fingerprint in opened),
        prefixes=tuple(prefixes),
    )


def too_many_rejected(reasons: Mapping[str, str], total: int, allowed_fraction: float, what: str = "pairs") -> str:
    """What to tell the user if more pairs than allowed cannot be used; nothing if no more are.

    Args:
        reasons: of the rejected pairs, by key.
        total: pairs that were found.
        allowed_fraction: in [0, 1].
        what: they are.
    """
    if len(reasons) <= allowed_fraction * total:
        return ""
    first = some([f"{key}: {reason}" for key, reason in reasons.items()])
    return (
        f"{len(reasons)} of {total} {what} cannot be used, more than --max_rejected_fraction {allowed_fraction:g} "
        f"allows. The first: {first}. Mend or remove them, or allow more."
    )


Index = tuple[pa.Table, Sequence[tuple[str, str]], str]  # where the rows are, what is not among them, fingerprint


def index_raw(uri: str, options: PairOptions) -> Index:
    """Columns key, split, image_uri, matte_uri."""
    found = find_pairs(uri, options.layout, options.split_seed, options.max_unpaired_fraction)
    columns = ("key", "split", "image_uri", "matte_uri")
    table = pa.table({name: pa.array([getattr(pair, name) for pair in found.pairs], pa.string()) for name in columns})
    return table, found.unpaired, found.fingerprint


def index_packed(uri: str, options: PairOptions) -> Index:  # noqa: ARG001 - what was packed has its splits already
    """Columns key, split, width, height, part, row_group, row."""
    description = shards.read_description(uri)
    left_out = [(key, reason) for key, reason in description["unpaired"] + description["rejected"]]
    return shards.read_index(uri, description), left_out, shards.fingerprint(description)


def draw_pairs(options: PairOptions) -> Pairs:
    """Synthetic people as a collection."""
    numbers: dict[str, list[int]] = {split: [] for split in SPLITS}
    for number in range(options.synthetic_pairs):
        numbers[split_of(synthetic_key(number), options.split_seed)].append(number)
    return Pairs(
        splits={split: SyntheticRows(options.split_seed, np.array(part, int)) for split, part in numbers.items()},
        keys={split: [synthetic_key(number) for number in part] for split, part in numbers.items()},
        unpaired=(),
        fingerprint=digest(["synthetic", str(options.split_seed), str(options.synthetic_pairs)]),
    )


def synthetic_key(number: int) -> str:
    """Keys of drawn people."""
    return f"synthetic/{number:09d}"


def prefix_keys(table: pa.Table, prefix: str) -> pa.Table:
    """The table with ``prefix`` before every key."""
    keys = pa.array([prefix + key for key in table["key"].to_pylist()], pa.string())
    return table.set_column(table.schema.get_field_index("key"), "key", keys)


def digest(parts: Iterable[str]) -> str:
    """One hash of several strings."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def fetch_pair(row: Mapping[str, str]) -> tuple[str, bytes, bytes, str]:
    """Of a row of RawRows: key, image bytes, matte bytes, why they could not be read or nothing."""
    key = row["key"]
    try:
        image = storage.read_bytes(row["image_uri"], MAX_IMAGE_BYTES)
        return key, image, read_matte(key, row["matte_uri"], MAX_IMAGE_BYTES), ""
    except storage.StorageError as error:
        return key, b"", b"", str(error)


def photo_aspect(uri: str) -> float:
    """Width over height of a photo; 0 if it cannot be read, which whoever decodes it will report."""
    try:
        width, height = images.image_size(storage.read_bytes(uri, MAX_IMAGE_BYTES))
    except (storage.StorageError, images.BadImage):
        return 0.0
    return width / height


def decode(key: str, image_bytes: bytes, matte_bytes: bytes, size: int | None) -> Example:
    """One pair from its bytes: the one place where training and evaluation get pixels from."""
    try:
        image, alpha = images.decode_pair(image_bytes, matte_bytes)
    except images.BadImage as error:
        return Example(key, None, None, str(error))
    if size is not None:
        image, alpha = images.resize(image, size, size), images.resize(alpha, size, size)
    return Example(key, image, alpha)
