"""Tables of photos: the rows of a collection, from a CSV or Parquet file that holds URIs or image bytes.

    photos_in_table   files of a table             -> one row of PHOTO_SCHEMA per key
    read_values       a Parquet file, some rows    -> bytes of each photo, or a ReadFailure

A photo is an object of its own (then `row` is null), or a value in row number `row` of the Parquet file `uri`.
"""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from matting.data.images import MAX_IMAGE_BYTES
from matting.messages import first_few
from matting.storage import store
from matting.storage.backend import StoredFile
from matting.storage.concurrent import concurrently
from matting.storage.errors import OBJECT_ERRORS, StorageError
from matting.storage.uri import default_key, resolve_uri, unsigned_uri

PHOTO_SCHEMA = pa.schema(
    [("key", pa.string()), ("etag", pa.string()), ("size", pa.int64()), ("uri", pa.string()), ("row", pa.int64())]
)

TABLE_SUFFIXES = (".parquet", ".csv")

_PHOTO_COLUMNS = ("image", "uri", "url", "path")
_TEXT_COLUMNS = ("key", "etag", *_PHOTO_COLUMNS)

_IN_PARQUET = ("URIs", "bytes")

_STATS = 32  # requests for etags and sizes in flight at a time
_READ_BUFFER = 8_000_000  # bytes of a Parquet column fetched at a time: few requests, and little memory
_READ_ROWS = 16  # photos decoded from Parquet at a time

# Photos hardly compress any further. A row group that unpacks to many times its size is made to exhaust memory.
_MAX_UNPACKED = 20


class PhotosError(ValueError):
    """A collection cannot be used. The message says what was found, what was expected, and what to do."""


@dataclass(frozen=True)
class ReadFailure:
    """Failure to read one photo.

    Args:
        reason: Cause, in one line.
        is_transient: Whether the cause is not the photo itself, so that a later run may read it as it is.
    """

    reason: str
    is_transient: bool

    @classmethod
    def of(cls, error: Exception, place: str = "") -> "ReadFailure":
        """Return the failure that an error stands for.

        Damage and missing objects are permanent. All other storage errors and errors of the operating system are
        transient.

        Args:
            error: Error of a store or of pyarrow.
            place: Part of a file that was read, for the reason; by default the error names it.
        """
        cause = error.__cause__ if isinstance(error, PhotosError) and error.__cause__ else error
        if isinstance(cause, StorageError):
            is_transient = not isinstance(cause, OBJECT_ERRORS)
        else:  # pyarrow raises OSErrors without a code for damaged Parquet
            is_transient = isinstance(cause, OSError) and bool(cause.errno) and not isinstance(cause, FileNotFoundError)
        line = " ".join(str(error).split())
        return cls(f"Cannot read {place}: {line}" if place else line, is_transient)


NO_IMAGE = ReadFailure("the table has no image in this row", is_transient=False)


def photos_in_table(uri: str, parts: list[str], folder: str) -> pa.Table:
    """Return one row of `PHOTO_SCHEMA` per photo of a table, sorted by key.

    The photos are the column `image`, `uri`, `url` or `path`, or else the only column that can hold them: URIs; or, in
    Parquet with a column `key`, image bytes, also as the field `bytes` of a struct. Without a column `key`, the key of
    a URI is its path below `folder`, or all of it but the scheme; the signature of a presigned URL is no part of it.

    The columns `etag` and `size` save a request per object; the etag of bytes is their BLAKE2b. An object that cannot
    be found has the etag "" and the size 0.

    Args:
        uri: URI of the table, for messages.
        parts: URIs of its files.
        folder: Folder, ending in "/", that relative URIs begin in.

    Raises:
        PhotosError: The table is empty or malformed, or several photos have one key.
        StorageError: The table cannot be read.
    """
    table = pa.concat_tables([_read_table_file(part, folder) for part in parts])
    if not len(table):
        raise PhotosError(f"{uri} is a table without rows; expected one row per photo.")
    table = table.take(pc.sort_indices(table["key"])).combine_chunks()
    keys = table["key"]
    photos = pc.if_else(pc.is_null(table["row"]), table["uri"], table["etag"])
    repeats = pc.equal(keys[1:], keys[:-1])
    suspects = pc.indices_nonzero(pc.and_(repeats, pc.not_equal(photos[1:], photos[:-1]))).to_pylist()
    differing = [
        keys[index].as_py()
        for index in suspects
        if unsigned_uri(photos[index].as_py()) != unsigned_uri(photos[index + 1].as_py())
    ]
    if differing:
        named = first_few(list(dict.fromkeys(differing)))
        raise PhotosError(f"{uri} has several photos of one key: {named}. Give each photo a key of its own.")
    first = pa.chunked_array([pa.array([True]), *pc.invert(repeats).chunks])
    return _with_versions(table.filter(first))


def read_values(uri: str, numbers: list[int]) -> Iterator[bytes | ReadFailure]:
    """Read the photos of a Parquet file at these ascending row numbers. Damage affects only the row group it is in.

    Yields:
        Bytes of each photo, or why they cannot be read.
    """
    left = deque(numbers)
    failure = ReadFailure(f"{uri} has fewer rows than it had when it was listed", is_transient=False)
    try:
        with _open_parquet(uri) as file:
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
    except (PhotosError, StorageError) as error:
        failure = ReadFailure.of(error)
    yield from (failure for _ in left)


def _read_group(place: str, values: Iterator[pa.Scalar], wanted: deque[int]) -> Iterator[bytes | ReadFailure]:
    try:
        for number, photo in enumerate(values):
            while wanted and wanted[0] == number:
                wanted.popleft()
                yield photo.as_py() or NO_IMAGE
            if not wanted:
                return
    except (OSError, pa.ArrowException, StorageError) as error:
        yield from (ReadFailure.of(error, place) for _ in wanted)


def _values(file: pq.ParquetFile, column: str, groups: Iterable[int]) -> Iterator[pa.Scalar]:
    """Read the bytes of these row groups' photos, or nulls, a few in memory at a time."""
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


def _read_table_file(uri: str, folder: str) -> pa.Table:
    """Read the rows of a table's file as `PHOTO_SCHEMA`; `etag` and `size` are null where the table lacks them."""
    if uri.lower().endswith(".csv"):
        table = _read_csv(uri)
        return _rows_of_uris(uri, table, _photo_column(uri, table.schema, ("URIs",)), folder)
    with _open_parquet(uri) as file:
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
            pa.BufferReader(store.read_bytes(uri)),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(_TEXT_COLUMNS, pa.string())),
        )
    except pa.ArrowException as error:
        raise PhotosError(f"{uri} cannot be read as a table; expected CSV in UTF-8 with a header: {error}") from error


@contextmanager
def _open_parquet(uri: str) -> Iterator[pq.ParquetFile]:
    filesystem, path = store.filesystem(uri)
    try:
        # The buffer reads page by page; pre-buffering would read a whole row group at a time.
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
    given = _typed_column(uri, table, column, pa.string()).to_pylist()
    uris = [resolve_uri(folder, photo) if photo else "" for photo in given]
    if "key" in table.column_names:
        keys = _typed_column(uri, table, "key", pa.string())
    else:
        keys = pa.chunked_array([pa.array([default_key(folder, photo) for photo in uris], pa.string())])
    etags, sizes = _typed_column(uri, table, "etag", pa.string()), _typed_column(uri, table, "size", pa.int64())
    return _rows(uri, keys, etags, sizes, pa.array(uris, pa.string()), pa.nulls(len(uris), pa.int64()))


def _rows_of_bytes(uri: str, table: pa.Table, photos: Iterator[pa.Scalar]) -> pa.Table:
    etags, sizes = _typed_column(uri, table, "etag", pa.string()), _typed_column(uri, table, "size", pa.int64())
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
        uri,
        _typed_column(uri, table, "key", pa.string()),
        etags,
        sizes,
        places,
        pa.array(range(len(table)), pa.int64()),
    )


def _typed_column(uri: str, table: pa.Table, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    """Return a column as the type `kind`; null where the table has no such column, or an empty text."""
    if name not in table.column_names:
        return pa.chunked_array([pa.nulls(len(table), kind)])
    try:
        column = table[name].cast(kind)
    except pa.ArrowException as error:
        raise PhotosError(f"{uri} has a column {name} that does not hold {kind} ({error}); correct it.") from error
    return pc.if_else(pc.equal(column, ""), None, column) if kind == pa.string() else column


def _rows(uri: str, *columns: pa.Array) -> pa.Table:
    table = pa.table(list(columns), schema=PHOTO_SCHEMA)
    keyless = pc.indices_nonzero(pc.equal(pc.fill_null(table["key"], ""), "")).to_pylist()
    if keyless:
        numbers = first_few([str(number + 1) for number in keyless])
        raise PhotosError(
            f"{uri} has neither a key nor a URI to take it from in row {numbers}; add them or drop the rows."
        )
    return table


def _with_versions(table: pa.Table) -> pa.Table:
    """Fill in the etag and size of each object for which the table lacks one of them."""
    unknown = pc.indices_nonzero(pc.or_(pc.is_null(table["etag"]), pc.is_null(table["size"]))).to_pylist()
    if not unknown:
        return table
    uris, etags, sizes = (table[name].to_pylist() for name in ("uri", "etag", "size"))
    for index, stored in concurrently(lambda index: _stat(uris[index]), unknown, _STATS):
        etags[index] = stored.etag if etags[index] is None else etags[index]
        sizes[index] = stored.size if sizes[index] is None else sizes[index]
    columns = {"key": table["key"], "etag": etags, "size": sizes, "uri": table["uri"], "row": table["row"]}
    return pa.table(columns, schema=PHOTO_SCHEMA)


def _stat(uri: str) -> StoredFile:
    try:
        return store.stat(uri)
    except StorageError:
        return StoredFile("", 0, "")  # reading it gives the reason
