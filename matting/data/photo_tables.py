"""Tables of photos: the rows of a collection, from a table that holds URIs or, in Parquet, image bytes.

    photos_in_table   files of a table             -> one row of PHOTO_SCHEMA per key
    read_values       a Parquet file, some rows    -> bytes of each photo, or a ReadFailure

A photo is an object of its own (then `row` is null), or a value in row number `row` of the Parquet file `uri`.
"""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from matting.data.images import MAX_IMAGE_BYTES
from matting.data.sources.lists import read_list
from matting.data.sources.tables import TableError, content_of, open_parquet, typed_column
from matting.messages import first_few
from matting.storage import store
from matting.storage.backend import StoredFile
from matting.storage.concurrent import concurrently
from matting.storage.errors import OBJECT_ERRORS, NotFoundError, StorageError
from matting.storage.uri import IMPOSSIBLE_KEY, default_key, resolve_uri, unsigned_uri

PHOTO_SCHEMA = pa.schema(
    [("key", pa.string()), ("etag", pa.string()), ("size", pa.int64()), ("uri", pa.string()), ("row", pa.int64())]
)

_PHOTO_COLUMNS = ("image", "uri", "url", "path", "file_name")

# Rows with a name to use in place of a key that several of them share; null where the table itself gives the key.
_NAMED_SCHEMA = PHOTO_SCHEMA.append(pa.field("name", pa.string()))

_IN_PARQUET = ("URIs", "bytes")

_STATS = 32  # requests for etags and sizes in flight at a time
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
        cause = error.__cause__ if isinstance(error, TableError) and error.__cause__ else error
        if isinstance(cause, StorageError):
            is_transient = not isinstance(cause, OBJECT_ERRORS)
        else:  # pyarrow raises OSErrors without a code for damaged Parquet
            is_transient = isinstance(cause, OSError) and bool(cause.errno) and not isinstance(cause, FileNotFoundError)
        line = " ".join(str(error).split())
        return cls(f"Cannot read {place}: {line}" if place else line, is_transient)


NO_IMAGE = ReadFailure("the table has no image in this row", is_transient=False)


def photos_in_table(uri: str, parts: list[str], folder: str) -> pa.Table:
    """Return one row of `PHOTO_SCHEMA` per photo of a table, sorted by key.

    The photos are the column `image`, `uri`, `url`, `path` or `file_name`, or else the only column that can hold them:
    URIs; or, in Parquet, image bytes, also as the field `bytes` of a struct, whose field `path` is a URI where there
    are no bytes. Without a column `key`, the key of a URI is its path below `folder`, or all of it but the scheme; the
    signature of a presigned URL is no part of it. That of image bytes is their `path`; if that is missing or not
    unique, it is the name of the part and the number of the row, from 0, and the path.

    The columns `etag` and `size` save a request per object; the etag of bytes is their BLAKE2b. An object that cannot
    be found has the etag "" and the size 0.

    Args:
        uri: URI of the table, for messages.
        parts: URIs of its files.
        folder: Folder, ending in "/", that relative URIs begin in.

    Raises:
        PhotosError: The table is empty, several photos have one key, a key cannot name an output, or there is none of
            the photos.
        TableError: A file of the table is malformed.
        StorageError: The table cannot be read.
    """
    table = pa.concat_tables([_read_table_file(part, folder) for part in parts])
    if not len(table):
        raise PhotosError(f"{uri} is a table without rows; expected one row per photo.")
    table = _with_distinct_keys(table)
    table = table.take(pc.sort_indices(table["key"])).combine_chunks()
    keys = table["key"]
    impossible = keys.filter(pc.match_substring_regex(keys, IMPOSSIBLE_KEY)).to_pylist()
    if impossible:
        raise PhotosError(
            f"{uri} has keys that cannot name outputs: {first_few([repr(key) for key in impossible])}. A key is a "
            "relative path without empty, '.' or '..' parts; correct the column `key`, or add one."
        )
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
    return _with_versions(uri, table.filter(first), folder)


def read_values(uri: str, numbers: list[int]) -> Iterator[bytes | ReadFailure]:
    """Read the photos of a Parquet file at these ascending row numbers. Damage affects only the row group it is in.

    Yields:
        Bytes of each photo, or why they cannot be read.
    """
    left = deque(numbers)
    failure = ReadFailure(f"{uri} has fewer rows than it had when it was listed", is_transient=False)
    try:
        with open_parquet(uri) as file:
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
    except (PhotosError, TableError, StorageError) as error:
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
            values = pc.struct_field(batch.column(0), "bytes") if in_struct else batch.column(0)
            yield from values.cast(pa.large_binary())  # of dictionaries and views


def _read_table_file(uri: str, folder: str) -> pa.Table:
    """Read the rows of a table's file as `_NAMED_SCHEMA`; `etag` and `size` are null where the table lacks them."""
    if not uri.lower().endswith(".parquet"):
        table = read_list(uri)
        return _rows_of_uris(uri, table, _photo_column(uri, table.schema, ("URIs",)), folder)
    with open_parquet(uri) as file:
        schema = file.schema_arrow
        column = _photo_column(uri, schema, _IN_PARQUET)
        known = [name for name in ("key", "etag", "size") if name in schema.names]
        if content_of(schema.field(column).type) == "URIs":
            return _rows_of_uris(uri, file.read([*known, column]), column, folder)
        return _rows_of_bytes(uri, file, column, known, folder)


def _photo_column(uri: str, schema: pa.Schema, accepted: tuple[str, ...]) -> str:
    named = [name for name in _PHOTO_COLUMNS if name in schema.names][:1]
    others = [name for name in schema.names if name not in ("key", "etag", "size")]
    fitting = [name for name in named or others if content_of(schema.field(name).type) in accepted]
    if len(fitting) != 1:
        found = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise PhotosError(
            f"{uri} has the columns {found}; expected one of {', '.join(_PHOTO_COLUMNS)}, or only one other "
            f"beside key, etag and size, that holds {' or '.join(accepted)}. Name the photos' column `image`."
        )
    return fitting[0]


def _rows_of_uris(uri: str, table: pa.Table, column: str, folder: str) -> pa.Table:
    given = typed_column(uri, table, column, pa.string()).to_pylist()
    uris = [resolve_uri(folder, photo) if photo else "" for photo in given]
    if "key" in table.column_names:
        keys = typed_column(uri, table, "key", pa.string())
    else:
        keys = pa.chunked_array([pa.array([default_key(folder, photo) for photo in uris], pa.string())])
    etags, sizes = typed_column(uri, table, "etag", pa.string()), typed_column(uri, table, "size", pa.int64())
    nulls = pa.nulls(len(uris), pa.int64()), pa.nulls(len(uris), pa.string())
    return _rows(uri, keys, etags, sizes, pa.array(uris, pa.string()), *nulls)


def _rows_of_bytes(uri: str, file: pq.ParquetFile, column: str, known: list[str], folder: str) -> pa.Table:
    table = file.read(known)
    count = file.metadata.num_rows
    paths = [resolve_uri(folder, path) if path else "" for path in _paths_beside_bytes(file, column)] or [""] * count
    has_paths = any(paths)
    etags = typed_column(uri, table, "etag", pa.string()) if known else pa.nulls(count, pa.string())
    sizes = typed_column(uri, table, "size", pa.int64()) if known else pa.nulls(count, pa.int64())
    is_elsewhere = [False] * count
    if etags.null_count or sizes.null_count or has_paths:
        digests: list[str | None] = []
        lengths: list[int | None] = []
        for number, photo in enumerate(_values(file, column, range(file.num_row_groups))):
            data = photo.as_buffer() or b""
            is_elsewhere[number] = not len(data) and paths[number] != ""
            digest = hashlib.blake2b(data, digest_size=16).hexdigest() if len(data) else ""
            digests.append(None if is_elsewhere[number] else digest)
            lengths.append(None if is_elsewhere[number] else len(data))
        etags = pc.coalesce(etags, pa.array(digests, pa.string()))
        sizes = pc.coalesce(pa.array(lengths, pa.int64()), sizes)
    numbers = range(count)
    uris = [paths[number] if is_elsewhere[number] else uri for number in numbers]
    rows = [None if is_elsewhere[number] else number for number in numbers]
    if "key" in known:
        keys, names = typed_column(uri, table, "key", pa.string()), pa.nulls(count, pa.string())
    else:
        part = uri.removeprefix(folder).removesuffix(".parquet")
        places = [f"{part}/{number:06d}" for number in numbers]
        keys = pa.array([default_key(folder, paths[number]) or places[number] for number in numbers], pa.string())
        names = pa.array(places, pa.string())
    return _rows(uri, keys, etags, sizes, pa.array(uris, pa.string()), pa.array(rows, pa.int64()), names)


def _paths_beside_bytes(file: pq.ParquetFile, column: str) -> list[str | None]:
    """Return the field `path` of the structs with the photos' bytes; nothing if they have none."""
    kind = file.schema_arrow.field(column).type
    if (
        not pa.types.is_struct(kind)
        or kind.get_field_index("path") < 0
        or content_of(kind.field("path").type) != "URIs"
    ):
        return []
    # One row group at a time: pyarrow cannot read nested dictionaries of several.
    groups = (file.read_row_group(group, [f"{column}.path"])[column] for group in range(file.num_row_groups))
    return [path for group in groups for path in pc.struct_field(group, "path").cast(pa.string()).to_pylist()]


def _with_distinct_keys(table: pa.Table) -> pa.Table:
    """Return rows of `PHOTO_SCHEMA`, with the name of a row before its key where the keys of image bytes repeat."""
    keys, names = table["key"], table["name"]
    table = table.drop_columns("name")
    if names.null_count == len(names):
        return table
    counts = keys.value_counts()
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    is_repeated = pc.and_(pc.is_valid(names), pc.is_in(keys, repeated))
    named = pc.binary_join_element_wise(names, keys, "/")
    return table.set_column(0, "key", pc.if_else(is_repeated, named, keys))


def _rows(uri: str, *columns: pa.Array) -> pa.Table:
    table = pa.table(list(columns), schema=_NAMED_SCHEMA)
    keyless = pc.indices_nonzero(pc.equal(pc.fill_null(table["key"], ""), "")).to_pylist()
    if keyless:
        numbers = first_few([str(number + 1) for number in keyless])
        raise PhotosError(
            f"{uri} has neither a key nor a URI to take it from in row {numbers}; add them or drop the rows."
        )
    return table


def _with_versions(uri: str, table: pa.Table, folder: str) -> pa.Table:
    """Fill in the etag and size of each object for which the table lacks one of them."""
    unknown = pc.indices_nonzero(pc.or_(pc.is_null(table["etag"]), pc.is_null(table["size"]))).to_pylist()
    if not unknown:
        return table
    uris, etags, sizes = (table[name].to_pylist() for name in ("uri", "etag", "size"))
    missing = 0
    for index, stored in concurrently(lambda index: _stat(uris[index]), unknown, _STATS):
        missing += stored is None
        etag, size = ("", 0) if stored is None else (stored.etag, stored.size)
        etags[index] = etag if etags[index] is None else etags[index]
        sizes[index] = size if sizes[index] is None else sizes[index]
    if missing == len(table):  # such a table was misread, or is in another place than it was written for
        hint = " Write paths with '/'." if any("\\" in uri for uri in uris) else ""
        raise PhotosError(
            f"{uri} names {missing:,} photos, and none of them exists: {first_few(uris)}. Relative paths begin in "
            f"{folder or 'the working folder'}; correct them, or write absolute paths or URIs.{hint}"
        )
    columns = {"key": table["key"], "etag": etags, "size": sizes, "uri": table["uri"], "row": table["row"]}
    return pa.table(columns, schema=PHOTO_SCHEMA)


def _stat(uri: str) -> StoredFile | None:
    """Return size and etag of an object, None if there is none; "" and 0 if only reading it can tell the reason."""
    try:
        return store.stat(uri)
    except NotFoundError:
        return None
    except StorageError:
        return StoredFile("", 0, "")
