"""Find the photos of a collection, and read their bytes.

    find_photos   a folder, tar archive or table        -> Photos: a table with one row per key, and other files
    read_photos   some of these rows                    -> (index of the row, bytes or a ReadFailure)

A photo that cannot be found now is listed all the same, and gets a reason when it is read, so that every input is
accounted for. Nothing is decoded here: names decide what is a photo, and keys are taken as they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePath, PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc

from matting.data.images import IMAGE_SUFFIXES, MAX_IMAGE_BYTES
from matting.data.photo_tables import (
    NO_IMAGE,
    PHOTO_SCHEMA,
    PhotosError,
    ReadFailure,
    photos_in_table,
    read_values,
)
from matting.data.sources.listing import Listing, list_collection
from matting.data.sources.tables import TABLE_SUFFIXES, find_table
from matting.data.sources.tar import TAR_SUFFIX
from matting.data.sources.tar_index import TarIndex
from matting.messages import first_few
from matting.storage import store
from matting.storage.concurrent import concurrently
from matting.storage.errors import StorageError
from matting.storage.uri import is_local

_PHOTO_NAME = rf"\.({'|'.join(IMAGE_SUFFIXES)})$"
_APPLE_DOUBLE = r"(^|/)\._([^/]+)$"  # name of the metadata file that macOS leaves beside a file


@dataclass(frozen=True)
class Photos:
    """A collection of photos.

    Args:
        table: One row of `PHOTO_SCHEMA` per photo, sorted by key.
        ignored: Keys of the files whose names are not those of photos, sorted.
        left_out: Key and reason of what may hold photos and cannot be used; see `listing.list_collection`.
    """

    table: pa.Table
    ignored: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...] = ()


def find_photos(uri: str, output: str | None = None, index: TarIndex | None = None) -> Photos:
    """Find the photos of the collection at `uri`: a folder, a tar archive, or a table.

    In a folder, every file with the suffix of an image is a photo, also a hidden one, but not `._name` beside `name`,
    which is macOS's metadata. A tar archive is a folder of its files, alone or in a folder. See
    `photo_tables.photos_in_table` for tables: a file with one of `tables.TABLE_SUFFIXES`, or a folder with such a
    suffix that holds parts, as Spark writes them.

    Args:
        uri: URI of the collection.
        output: URI of the predictions; files below it are not part of the collection.
        index: Files of archives that were listed before; see `listing.list_collection`.

    Raises:
        PhotosError: There are no photos, the collection is the output, or a table cannot be used.
        TableError: A table is malformed.
        NotFoundError: There is nothing at `uri`.
        StorageError: The collection cannot be listed, or the table cannot be read.
    """
    place = uri.rstrip("/")
    folder = place[: place.rfind("/") + 1]
    inside = _path_below(uri, output) if output else None
    if inside == ".":
        raise PhotosError(
            f"The photos and the output are both {uri}: mattes would be taken for photos. Choose another output."
        )
    if parts := find_table(place):
        return Photos(photos_in_table(uri, parts, folder), ())
    return _photos_in_folder(uri, list_collection(uri, inside or "", index))


def read_photos(rows: pa.Table, ahead: int) -> Iterator[tuple[int, bytes | ReadFailure]]:
    """Read each row's photo once: yield (index in `rows`, bytes, or why they cannot be read).

    Objects come first, in the order of `rows`; up to `ahead` of them are in flight or in memory, beside the one that is
    yielded. Photos inside Parquet files follow, by file and row, so that each file is read through once.

    Args:
        rows: Rows of `Photos.table`, in any order.
        ahead: Number of objects to fetch at a time, at least 1.
    """
    uris, numbers = rows["uri"].to_pylist(), rows["row"].to_pylist()
    objects = [index for index, number in enumerate(numbers) if number is None]
    yield from concurrently(lambda index: _read_object(uris[index]), objects, ahead)

    in_files = sorted((uris[index], number, index) for index, number in enumerate(numbers) if number is not None)
    for uri, group in groupby(in_files, key=lambda place: place[0]):
        places = [(number, index) for _, number, index in group]
        photos = read_values(uri, [number for number, _ in places])
        yield from ((index, photo) for (_, index), photo in zip(places, photos, strict=True))


def _read_object(uri: str) -> bytes | ReadFailure:
    if not uri:
        return NO_IMAGE
    try:
        return store.read_bytes(uri, MAX_IMAGE_BYTES)
    except StorageError as error:
        return ReadFailure.of(error)


def _path_below(uri: str, output: str) -> str | None:
    """Return the path from `uri` to `output`: "." if both are the same place, None if `output` is not below `uri`."""
    for top, below in zip(_spellings(uri), _spellings(output), strict=False):
        if below.is_relative_to(top):
            return below.relative_to(top).as_posix()
    return None


def _spellings(uri: str) -> list[PurePath]:
    if not is_local(uri):
        return [PurePosixPath(uri)]
    path = Path(store.filesystem(uri)[1])
    return [path, path.resolve()]  # the second follows links


def _photos_in_folder(uri: str, listing: Listing) -> Photos:
    keys = listing.files["key"].combine_chunks()
    shadows = keys.filter(pc.match_substring_regex(keys, _APPLE_DOUBLE))
    shadows = shadows.filter(pc.is_in(pc.replace_substring_regex(shadows, _APPLE_DOUBLE, r"\1\2"), keys))
    is_photo = pc.and_not(pc.match_substring_regex(keys, _PHOTO_NAME, ignore_case=True), pc.is_in(keys, shadows))
    ignored = keys.filter(pc.invert(is_photo)).to_pylist()
    files = listing.files.filter(is_photo)
    table = files.append_column("row", pa.nulls(len(files), pa.int64())).cast(PHOTO_SCHEMA)
    if not len(table):
        beside = first_few([f"{key} {reason}" for key, reason in listing.left_out] + ignored)
        raise PhotosError(
            f"{uri} holds no photos beside {beside or 'the output'}; expected files with the suffix "
            f".{', .'.join(IMAGE_SUFFIXES)}, tar archives of such files ({TAR_SUFFIX}, not compressed), or a table "
            f"({', '.join(TABLE_SUFFIXES)}; the folder of a table's parts has such a suffix too). Correct the URI."
        )
    return Photos(table, tuple(ignored), listing.left_out)
