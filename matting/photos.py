"""Which photos a collection has, and their bytes.

    find_photos   a prefix, or a table of URIs or of bytes -> Photos: one row per key (SCHEMA), and what is no photo
    read_photos   some of these rows                       -> (index of the row, bytes or why they cannot be read)

A photo is an object of its own (`row` is null), or a value in a Parquet file (`uri`) at the row number `row`. Nothing
is left out in silence: what cannot be looked at now is a photo all the same, and fails by name when it is read.

Knows no pixels: what is a photo is told by names alone, and keys are taken as they are.
"""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePath, PurePosixPath
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from matting import storage
from matting.pairs import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, some

SCHEMA = pa.schema(
    [("key", pa.string()), ("etag", pa.string()), ("size", pa.int64()), ("uri", pa.string()), ("row", pa.int64())]
)

_PHOTO_COLUMNS = ("image", "uri", "url", "path")
_TEXT_COLUMNS = ("key", "etag", *_PHOTO_COLUMNS)

_IN_PARQUET = ("URIs", "bytes")

_PHOTO_NAME = rf"\.({'|'.join(IMAGE_SUFFIXES)})$"
_SHADOW_NAME = r"(^|/)\._([^/]+)$"

_STATS = 32  # objects looked at at a time
_READ_BUFFER = 8_000_000  # bytes of a Parquet column asked for at a time: few requests, and little memory
_READ_ROWS = 16  # photos decoded from Parquet at a time

_NO_IMAGE = "the table has no image in this row"

# Photos hardly compress any further. A group of rows that unpacks to many times its size is made to exhaust memory.
_MAX_UNPACKED = 20


class PhotosError(ValueError):
    """What was found in place of a collection, what was expected, and what to do."""


@dataclass(frozen=True)
class Photos:
    """A collection: `table` (SCHEMA) has one row per photo, sorted by key; `ignored` the keys, sorted too, of
    the files that are no photos by their names."""

    table: pa.Table
    ignored: tuple[str, ...]


def find_photos(uri: str, output: str | None = None) -> Photos:
    """The photos of the collection at `uri`.

    A prefix: every file below it whose suffix is an image's is a photo, hidden ones too, but for `._name` beside
    `name`, macOS's shadow of it. A table is a .parquet or .csv file, or a folder *.parquet that holds Parquet files, as
    Spark writes them. Its photos are the column `image`, `uri`, `url` or `path`, or else the only one that could be:
    URIs, of which relative ones begin in the folder where the table is; or, in Parquet and with a column `key`, the
    bytes (also as the field `bytes` of a struct). Without a column `key`, the key of a URI is its path below that
    folder, or all of it but the scheme. Columns `etag` and `size` spare a look at each object; of bytes, the etag is
    their BLAKE2b. An object that cannot be looked at has the etag "" and the size 0.

    Args:
        uri: any URI of `storage`.
        output: where predictions go; what lies there is no part of the collection.

    Raises:
        PhotosError: no photos, the collection is the output, or a malformed table.
        NotFoundError: there is nothing at `uri`.
        StorageError: the collection cannot be listed or the table cannot be read.
    """
    place = uri.rstrip("/")
    folder = place[: place.rfind("/") + 1]
    inside = _path_below(uri, output) if output else None
    if inside == ".":
        raise PhotosError(
            f"The photos and the output are both {uri}: mattes would be taken for photos. Choose another output."
        )
    if place.lower().endswith((".parquet", ".csv")) and storage.exists(place):
        return _photos_in_table(uri, [place], folder)
    files = storage.list_files(uri)
    if inside:
        files = [file for file in files if not file.key.startswith(f"{inside}/")]
    if place.lower().endswith(".parquet") and (parts := [file.key for file in files if _is_part(file.key)]):
        return _photos_in_table(uri, [f"{place}/{part}" for part in parts], folder)
    return _photos_below(uri, files)


def read_photos(rows: pa.Table, ahead: int) -> Iterator[tuple[int, bytes | str]]:
    """(index in `rows`, the bytes or, where they cannot be read, the reason in one line) of each row, once.

    Objects come first, in the order of `rows`, up to `ahead` of them in flight or in memory beside the one that is
    yielded. Then come the photos in Parquet files, by file and row: each file is read through once.

    Args:
        rows: of Photos.table, any of them in any order.
        ahead: how many objects to fetch at a time, at least 1.
    """
    uris, numbers = rows["uri"].to_pylist(), rows["row"].to_pylist()
    objects = [index for index, number in enumerate(numbers) if number is None]
    yield from storage.concurrently(lambda index: _read_object(uris[index]), objects, ahead)

    in_files = sorted((uris[index], number, index) for index, number in enumerate(numbers) if number is not None)
    for uri, group in groupby(in_files, key=lambda place: place[0]):
        places = [(number, index) for _, number, index in group]
        photos = _read_values(uri, [number for number, _ in places])
        yield from ((index, photo) for (_, index), photo in zip(places, photos, strict=True))


def _path_below(uri: str, output: str) -> str | None:
    """The path from `uri` to `output`: "." if they are the same place, None if the one is not below the other."""
    for top, below in zip(_spellings(uri), _spellings(output), strict=False):
        if below.is_relative_to(top):
            return below.relative_to(top).as_posix()
    return None


def _spellings(uri: str) -> list[PurePath]:
    if not storage.is_local(uri):
        return [PurePosixPath(uri)]
    path = Path(storage.filesystem(uri)[1])
    return [path, path.resolve()]  # as the listing goes, and where links lead


def _is_part(key: str) -> bool:
    hidden = any(part.startswith((".", "_")) for part in key.split("/"))
    return key.lower().endswith(".parquet") and not hidden


def _photos_below(uri: str, files: list[storage.StoredFile]) -> Photos:
    keys = pa.array([file.key for file in files], pa.string())
    shadows = keys.filter(pc.match_substring_regex(keys, _SHADOW_NAME))
    shadows = shadows.filter(pc.is_in(pc.replace_substring_regex(shadows, _SHADOW_NAME, r"\1\2"), keys))
    is_photo = pc.and_not(pc.match_substring_regex(keys, _PHOTO_NAME, ignore_case=True), pc.is_in(keys, shadows))
    ignored = keys.filter(pc.invert(is_photo)).to_pylist()
    columns = {
        "key": keys,
        "etag": pa.array([file.etag for file in files], pa.string()),
        "size": pa.array([file.size for file in files], pa.int64()),
        "uri": pc.binary_join_element_wise(uri.rstrip("/"), keys, "/"),
        "row": pa.nulls(len(files), pa.int64()),
    }
    table = pa.table(columns, schema=SCHEMA).filter(is_photo)
    if not len(table):
        raise PhotosError(
            f"{uri} holds no photos beside {some(ignored) or 'the output'}; expected files with the suffix "
            f".{', .'.join(IMAGE_SUFFIXES)}, or a table (.parquet, .csv). Correct the URI."
        )
    return Photos(table, tuple(ignored))


# Tables ---------------------------------------------------------------------------------------------------------------


def _photos_in_table(uri: str, parts: list[str], folder: str) -> Photos:
    table = pa.concat_tables([_read_part(part, folder) for part in parts])
    if not len(table):
        raise PhotosError(f"{uri} is a table without rows; expected one row per photo.")
    table = table.take(pc.sort_indices(table["key"])).combine_chunks()
    keys = table["key"]
    photos = pc.if_else(pc.is_null(table["row"]), table["uri"], table["etag"])
    repeats = pc.equal(keys[1:], keys[:-1])
    differing = keys[1:].filter(pc.and_(repeats, pc.not_equal(photos[1:], photos[:-1])))
    if len(differing):
        named = some(differing.unique().to_pylist())
        raise PhotosError(f"{uri} has several photos of one key: {named}. Give each photo a key of its own.")
    first = pa.chunked_array([pa.array([True]), *pc.invert(repeats).chunks])
    return Photos(_with_versions(table.filter(first)), ())


def _read_part(uri: str, folder: str) -> pa.Table:
    """The rows of a table's file, as SCHEMA; `etag` and `size` are null where the table does not tell them."""
    if uri.lower().endswith(".csv"):
        table = _read_csv(uri)
        return _rows_of_uris(uri, table, _photo_column(uri, table.schema, ("URIs",)), folder)
    with _parquet(uri) as file:
        schema = file.schema_arrow
        column = _photo_column(uri, schema, _IN_PARQUET)
        known = [name for name in ("key", "etag", "size") if name in schema.names]
        if _content(schema.field(column).type) == "URIs":
            return _rows_of_uris(uri, file.read([*known, column]), column, folder)
        if "key" not in known:
            raise PhotosError(f"{uri} has image bytes, and no column `key` to name them by; add one.")
        return _rows_of_bytes(uri, file.read(known), _values(file, column, range(file.num_row_groups)))


def _read_csv(uri: str) -> pa.Table:
    try:
        return pyarrow.csv.read_csv(
            pa.BufferReader(storage.read_bytes(uri)),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(_TEXT_COLUMNS, pa.string())),
        )
    except pa.ArrowException as error:
        raise PhotosError(f"{uri} cannot be read as a table; expected CSV in UTF-8 with a header: {error}") from error


@contextmanager
def _parquet(uri: str) -> Iterator[pq.ParquetFile]:
    filesystem, path = storage.filesystem(uri)
    try:
        # Read through a buffer, page by page; pre-buffered it would be a whole row group at a time.
        with pq.ParquetFile(path, filesystem=filesystem, buffer_size=_READ_BUFFER, pre_buffer=False) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        raise PhotosError(f"{uri} cannot be read as Parquet: {error}. Write it again, or correct the URI.") from error


def _content(kind: pa.DataType) -> Literal["URIs", "bytes"] | None:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
        return "bytes" if _content(kind) == "bytes" else None
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "URIs"
    return "bytes" if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else None


def _photo_column(uri: str, schema: pa.Schema, accepted: tuple[str, ...]) -> str:
    named = [name for name in _PHOTO_COLUMNS if name in schema.names][:1]
    others = [name for name in schema.names if name not in ("key", "etag", "size")]
    fitting = [name for name in named or others if _content(schema.field(name).type) in accepted]
    if len(fitting) != 1:
        found = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise PhotosError(
            f"{uri} has the columns {found}; expected one of {', '.join(_PHOTO_COLUMNS)}, or only one other "
            f"beside key, etag and size, that holds {' or '.join(accepted)}. Name the photos' column `image`."
        )
    return fitting[0]


def _rows_of_uris(uri: str, table: pa.Table, column: str, folder: str) -> pa.Table:
    given = _column(uri, table, column, pa.string()).to_pylist()
    uris = [storage.resolve(folder, photo) if photo else "" for photo in given]
    if "key" in table.column_names:
        keys = _column(uri, table, "key", pa.string())
    else:
        keys = pa.chunked_array([pa.array([storage.default_key(folder, photo) for photo in uris], pa.string())])
    etags, sizes = _column(uri, table, "etag", pa.string()), _column(uri, table, "size", pa.int64())
    return _rows(uri, keys, etags, sizes, pa.array(uris, pa.string()), pa.nulls(len(uris), pa.int64()))


def _rows_of_bytes(uri: str, table: pa.Table, photos: Iterator[pa.Scalar]) -> pa.Table:
    etags, sizes = _column(uri, table, "etag", pa.string()), _column(uri, table, "size", pa.int64())
    if etags.null_count or sizes.null_count:
        digests: list[str] = []
        lengths: list[int] = []
        for photo in photos:
            data = photo.as_buffer() or b""
            digests.append(hashlib.blake2b(data, digest_size=16).hexdigest() if len(data) else "")
            lengths.append(len(data))
        etags = pc.coalesce(etags, pa.array(digests, pa.string()))
        sizes = pa.array(lengths, pa.int64())
    places = pa.repeat(pa.scalar(uri, pa.string()), len(table))
    return _rows(
        uri, _column(uri, table, "key", pa.string()), etags, sizes, places, pa.array(range(len(table)), pa.int64())
    )


def _column(uri: str, table: pa.Table, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    """A column; null where the table has none or an empty text."""
    if name not in table.column_names:
        return pa.chunked_array([pa.nulls(len(table), kind)])
    try:
        column = table[name].cast(kind)
    except pa.ArrowException as error:
        raise PhotosError(f"{uri} has a column {name} that does not hold {kind} ({error}); correct it.") from error
    return pc.if_else(pc.equal(column, ""), None, column) if kind == pa.string() else column


def _rows(uri: str, *columns: pa.Array) -> pa.Table:
    table = pa.table(list(columns), schema=SCHEMA)
    keyless = pc.indices_nonzero(pc.equal(pc.fill_null(table["key"], ""), "")).to_pylist()
    if keyless:
        numbers = some([str(number + 1) for number in keyless])
        raise PhotosError(
            f"{uri} has neither a key nor a URI to take it from in row {numbers}; add them or drop the rows."
        )
    return table


def _with_versions(table: pa.Table) -> pa.Table:
    """With the etag and size of each object for which the table does not tell both."""
    unknown = pc.indices_nonzero(pc.or_(pc.is_null(table["etag"]), pc.is_null(table["size"]))).to_pylist()
    if not unknown:
        return table
    uris, etags, sizes = (table[name].to_pylist() for name in ("uri", "etag", "size"))
    for index, seen in storage.concurrently(lambda index: _stat(uris[index]), unknown, _STATS):
        etags[index] = seen.etag if etags[index] is None else etags[index]
        sizes[index] = seen.size if sizes[index] is None else sizes[index]
    columns = {"key": table["key"], "etag": etags, "size": sizes, "uri": table["uri"], "row": table["row"]}
    return pa.table(columns, schema=SCHEMA)


def _stat(uri: str) -> storage.StoredFile:
    try:
        return storage.stat(uri)
    except storage.StorageError:
        return storage.StoredFile("", 0, "")  # reading it will tell why


# Bytes ----------------------------------------------------------------------------------------------------------------


def _read_object(uri: str) -> bytes | str:
    if not uri:
        return _NO_IMAGE
    try:
        return storage.read_bytes(uri, MAX_IMAGE_BYTES)
    except storage.StorageError as error:
        return _one_line(error)


def _read_values(uri: str, numbers: list[int]) -> Iterator[bytes | str]:
    """The photos at these rows, in ascending order, of a Parquet file. What is damaged costs its row group alone."""
    left = deque(numbers)
    reason = f"{uri} has fewer rows than it had when it was listed"
    try:
        with _parquet(uri) as file:
            column = _photo_column(uri, file.schema_arrow, _IN_PARQUET)
            start = 0
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                wanted = deque[int]()
                while left and left[0] < end:
                    wanted.append(left.popleft() - start)
                if wanted:
                    values = _values(file, column, [group])
                    yield from _read_group(f"row group {group} of {uri}", values, wanted)
                start = end
    except (PhotosError, storage.StorageError) as error:
        reason = _one_line(error)
    yield from (reason for _ in left)


def _read_group(place: str, values: Iterator[pa.Scalar], wanted: deque[int]) -> Iterator[bytes | str]:
    try:
        for number, photo in enumerate(values):
            while wanted and wanted[0] == number:
                wanted.popleft()
                yield photo.as_py() or _NO_IMAGE
            if not wanted:
                return
    except (OSError, pa.ArrowException, storage.StorageError) as error:
        yield from (f"Cannot read {place}: {_one_line(error)}" for _ in wanted)


def _values(file: pq.ParquetFile, column: str, groups: Iterable[int]) -> Iterator[pa.Scalar]:
    """The bytes of these row groups' photos, or nulls; a few of them in memory at a time."""
    in_struct = pa.types.is_struct(file.schema_arrow.field(column).type)
    path = f"{column}.bytes" if in_struct else column
    for group in groups:
        chunks = map(file.metadata.row_group(group).column, range(file.metadata.num_columns))
        chunk = next(chunk for chunk in chunks if chunk.path_in_schema == path)
        if chunk.total_uncompressed_size > max(MAX_IMAGE_BYTES, _MAX_UNPACKED * chunk.total_compressed_size):
            raise pa.ArrowInvalid(
                f"row group {group} unpacks from {chunk.total_compressed_size:,} bytes to "
                f"{chunk.total_uncompressed_size:,}, as no photos do"
            )
        for batch in file.iter_batches(_READ_ROWS, [group], [path], use_threads=False):
            yield from pc.struct_field(batch.column(0), "bytes") if in_struct else batch.column(0)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
