"""Rows of a dataset: where each pair is stored, and how to decode it.

    Rows.take       indices -> fewer Rows, small enough to travel with a task
    Rows.examples           -> Example: key, image uint8 (H, W, 3), alpha uint8 (H, W); or the reason why not

Raw files, packed parts and synthetic people have the same interface, and a key gives the same pixels in every split,
task and process.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from matting.data import shards
from matting.data.checks.orientation import has_same_aspect, match_orientation
from matting.data.checks.pair_checks import PairLook, look_at_pair, suspicion
from matting.data.images import (
    MAX_IMAGE_BYTES,
    BadImage,
    Pixels,
    decode_matte,
    decode_photo,
    image_size,
    resize,
)
from matting.data.mattes import AS_STORED, MatteReading, read_matte
from matting.data.photo_tables import ReadFailure
from matting.data.synthetic import draw_person
from matting.storage import store
from matting.storage.concurrent import concurrently
from matting.storage.errors import StorageError

FETCHES = 16  # pairs in flight in one task
SYNTHETIC_SIDE = 256  # pixels a side of synthetic people where no size is asked for

# Smaller images vanish in the network's first downsampling step: they are placeholders, not photos with mattes.
MIN_PAIR_SIDE = 8


@dataclass(frozen=True)
class Example:
    """A decoded pair, image_HWC and alpha_HW, uint8, and what was seen in it; or None for all three, and the error.

    Drawn pairs are not looked at, nor are cached ones a second time.
    """

    key: str
    image: Pixels | None
    alpha: Pixels | None
    error: str = ""
    look: PairLook | None = None
    damage: str = ""

    @property
    def warning(self) -> str:
        """What seems to be wrong with the pair, although it can be decoded; or ""."""
        return "; ".join(filter(None, (self.damage, suspicion(self.look) if self.look else "")))


class DecodedPair(NamedTuple):
    """A pair at its own size.

    Attributes:
        image: image_HWC, uint8 RGB.
        alpha: alpha_HW, uint8; its size may differ from the image's.
        peak: Largest stored value of the matte.
        opaque: Stored value that was read as opaque.
        damage: Damage of a file that left all pixels in place, or ""; it names the file.
    """

    image: Pixels
    alpha: Pixels
    peak: int
    opaque: int
    damage: str

    def look(self, squashed: tuple[Pixels, Pixels] | None = None) -> PairLook:
        """Look at the pair; see `matting.data.checks.pair_checks.look_at_pair`."""
        return look_at_pair(self.image, self.alpha, self.peak, self.opaque, squashed)


class Rows(Protocol):
    """Rows of one split."""

    @property
    def random_access(self) -> bool:
        """Whether rows from all over the dataset are read as fast as neighbours."""

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray) -> "Rows":
        """Return the rows at these indices, in this order."""

    def examples(self, size: int | None) -> Iterator[Example]:
        """Decode the rows in order, squashed to size × size pixels, or at their own size."""


class StoredRows(Rows, Protocol):
    """Rows whose pairs lie in storage, or are drawn; others may be in memory."""

    def take(self, indices: np.ndarray) -> "StoredRows":
        """Return the rows at these indices, in this order."""

    def aspects(self) -> list[float]:
        """Return width over height of each upright image, without decoding it; 0 where it is unknown."""


@dataclass(frozen=True)
class RawRows:
    """Image and matte files: a table with the columns key, image_uri, matte_uri."""

    table: pa.Table
    reading: MatteReading = AS_STORED
    random_access: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.table)

    def take(self, indices: np.ndarray) -> "RawRows":
        """Return the rows at these indices, in this order."""
        return RawRows(self.table.take(indices), self.reading)

    def examples(self, size: int | None) -> Iterator[Example]:
        """Decode the rows in order; see `Rows.examples`."""
        for key, pair in self.fetch():
            if isinstance(pair, ReadFailure):
                yield Example(key, None, None, pair.reason)
            else:
                yield decode_example(key, *pair, size, self.reading)

    def fetch(self) -> Iterator[tuple[str, tuple[bytes, bytes] | ReadFailure]]:
        """Yield (key, (image bytes, matte bytes) or why they cannot be read) in order, several pairs in flight."""
        for row, pair in concurrently(fetch_pair, self.table.to_pylist(), FETCHES):
            yield row["key"], pair

    def aspects(self) -> list[float]:
        """Return the aspect ratio of each image, from its header; 0 where it cannot be read."""
        uris = self.table["image_uri"].to_pylist()
        return [aspect for _, aspect in concurrently(image_aspect, uris, FETCHES)]


@dataclass(frozen=True)
class PackedRows:
    """Rows of Parquet parts: a table with the columns key, width, height, part, row_group, row."""

    table: pa.Table
    reading: MatteReading = AS_STORED
    random_access: ClassVar[bool] = False  # a row group is fetched whole

    def __len__(self) -> int:
        return len(self.table)

    def take(self, indices: np.ndarray) -> "PackedRows":
        """Return the rows at these indices, in this order."""
        return PackedRows(self.table.take(indices), self.reading)

    def examples(self, size: int | None) -> Iterator[Example]:
        """Decode the rows in order; see `Rows.examples`.

        Raises:
            ShardError: A part cannot be read.
        """
        for key, image, matte in shards.read_pairs(self.table):
            yield decode_example(key, image, matte, size, self.reading)

    def aspects(self) -> list[float]:
        """Return the aspect ratio of each image, from the index; 0 where it is unknown."""
        sizes = zip(self.table["width"].to_pylist(), self.table["height"].to_pylist(), strict=True)
        return [width / height if width and height else 0.0 for width, height in sizes]


@dataclass(frozen=True)
class SyntheticRows:
    """Synthetic people, by their numbers."""

    seed: int
    numbers: np.ndarray
    random_access: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, indices: np.ndarray) -> "SyntheticRows":
        """Return the rows at these indices, in this order."""
        return replace(self, numbers=self.numbers[indices])

    def examples(self, size: int | None) -> Iterator[Example]:
        """Draw the people in order; see `Rows.examples`."""
        side = size or SYNTHETIC_SIDE
        for number in self.numbers:
            yield Example(synthetic_key(number), *draw_person(self.seed, int(number), side, side))

    def aspects(self) -> list[float]:
        """Return 1 for each image."""
        return [1.0] * len(self)


def synthetic_key(number: int) -> str:
    """Return the key of a synthetic person."""
    return f"synthetic/{number:09d}"


def fetch_pair(row: Mapping[str, str]) -> tuple[bytes, bytes] | ReadFailure:
    """Fetch the image bytes and matte bytes of a row of RawRows, or return why they cannot be read."""
    try:
        image = store.read_bytes(row["image_uri"], MAX_IMAGE_BYTES)
        return image, read_matte(row["key"], row["matte_uri"], MAX_IMAGE_BYTES)
    except StorageError as error:
        return ReadFailure.of(error)


def image_aspect(uri: str) -> float:
    """Return width over height of an image file, or 0 if it cannot be read; decoding it reports why."""
    try:
        width, height = image_size(store.read_bytes(uri, MAX_IMAGE_BYTES))
    except (StorageError, BadImage):
        return 0.0
    return width / height


def decode_example(
    key: str, image_bytes: bytes, matte_bytes: bytes, size: int | None, reading: MatteReading = AS_STORED
) -> Example:
    """Decode a pair, squashed to size × size pixels or at its own size, for training and evaluation; and look at it."""
    try:
        pair = decode_pair(image_bytes, matte_bytes, reading)
    except BadImage as error:
        return Example(key, None, None, str(error))
    if size is None:
        return Example(key, pair.image, pair.alpha, look=pair.look(), damage=pair.damage)
    image, alpha = resize(pair.image, size, size), resize(pair.alpha, size, size)
    return Example(key, image, alpha, look=pair.look((image, alpha)), damage=pair.damage)


def decode_pair(image_bytes: bytes, matte_bytes: bytes, reading: MatteReading = AS_STORED) -> DecodedPair:
    """Decode an image and its matte; their sizes may differ.

    Where one of them has an EXIF orientation, the matte is turned so that its edges follow the image's: many tools turn
    one of the two, or drop the tag.

    Raises:
        BadImage: One of them cannot be used, their aspect ratios differ, or it cannot be told which way up the matte
            is; the message says which.
    """
    try:
        photo = decode_photo(image_bytes)
    except BadImage as error:
        raise BadImage(f"image: {error}") from error
    try:
        matte_HW, matte_lies, matte_warning = decode_matte(matte_bytes)
    except BadImage as error:
        raise BadImage(f"matte: {error}") from error
    image_HWC, alpha_HW = photo.image_HWC, reading.alpha(matte_HW)
    for name, array in (("image", image_HWC), ("matte", alpha_HW)):
        height, width = array.shape[:2]
        if min(height, width) < MIN_PAIR_SIDE:
            raise BadImage(f"{name}: {width}×{height} pixels, fewer than {MIN_PAIR_SIDE} a side")
    if (photo.orientation, matte_lies) != (1, 1):
        alpha_HW = match_orientation(image_HWC, alpha_HW, photo.orientation, matte_lies)
    check_same_aspect(image_HWC, alpha_HW)
    warnings = {"image": photo.warning, "matte": matte_warning}
    damage = "; ".join(f"{name}: {warning}" for name, warning in warnings.items() if warning)
    return DecodedPair(image_HWC, alpha_HW, int(matte_HW.max()), reading.opaque(matte_HW), damage)


def check_same_aspect(image_HWC: Pixels, alpha_HW: Pixels) -> None:
    """Check that an image and its matte have the same aspect ratio.

    Raises:
        BadImage: The ratios differ by more than 1 % and by more than the rounding of a scaled copy, one pixel.
    """
    if not has_same_aspect(image_HWC, alpha_HW):
        (height, width), (matte_height, matte_width) = image_HWC.shape[:2], alpha_HW.shape
        raise BadImage(f"image is {width}×{height}, matte {matte_width}×{matte_height}: their aspect ratios differ")
