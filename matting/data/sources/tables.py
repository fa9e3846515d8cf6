"""Read tables that name photos or pairs: lists, and Parquet.

    find_table     URI of a file or a folder of parts -> URIs of the table's files
    open_parquet   Parquet                            -> pq.ParquetFile
    read_texts     any of these, names                -> columns of texts

A file that cannot be read as it was meant is refused. Nothing is guessed that could turn into other names.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from matting.data.sources.lists import LIST_SUFFIXES, read_list, refuse_repeated_names
from matting.data.sources.lists import TableError as TableError
from matting.storage import store

TABLE_SUFFIXES = (".parquet", *LIST_SUFFIXES)

_READ_BUFFER = 8_000_000  # bytes of a Parquet column fetched at a time: few requests, and little memory


def find_table(uri: str) -> list[str]:
    """Return the URIs of a table's files: the file itself, or the parts in a folder of the table's suffix.

    Hidden files and those whose path has a part that begins with '_' are no parts, as Spark names its own.

    Args:
        uri: URI without a slash at its end.

    Returns:
        URIs, sorted; none if `uri` is no table by its suffix, or a folder without parts.

    Raises:
        NotFoundError: The URI has the suffix of a table, and there is nothing.
        StorageError: The store cannot be asked.
    """
    suffix = "." + uri.rpartition(".")[2].lower()
    if suffix not in TABLE_SUFFIXES:
        return []
    if store.exists(uri):
        return [uri]
    keys = [file.key for file in store.list_files(uri)]
    return [f"{uri}/{key}" for key in keys if key.lower().endswith(suffix) and not re.search(r"(^|/)[._]", key)]


@contextmanager
def open_parquet(uri: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file for reading inside a `with` block.

    Raises:
        TableError: The file is missing or damaged, as found on opening or reading, or has two columns of one name.
        StorageError: The file cannot be reached.
    """
    filesystem, path = store.filesystem(uri)
    try:
        # The buffer reads page by page; pre-buffering would read a whole row group at a time.
        with pq.ParquetFile(path, filesystem=filesystem, buffer_size=_READ_BUFFER, pre_buffer=False) as file:
            refuse_repeated_names(uri, file.schema_arrow.names)
            yield file
    except (OSError, pa.ArrowException, UnicodeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise TableError(f"{uri} cannot be read as Parquet: {reason}. Write it again, or correct the URI.") from error


def content_of(kind: pa.DataType) -> Literal["URIs", "bytes"] | None:
    """Return what values of a type can be: URIs, or bytes of a file. None for all others, such as extension types."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
        return "bytes" if content_of(kind) == "bytes" else None
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "URIs"
    is_binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    return "bytes" if is_binary else None


def typed_column(uri: str, table: pa.Table, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    """Return a column as the type `kind`; null where the table has no such column, or an empty text.

    Raises:
        TableError: The column holds other values.
    """
    if name not in table.column_names:
        return pa.chunked_array([pa.nulls(len(table), kind)])
    try:
        column = table[name].cast(kind)
        column.validate(full=True)  # texts in Parquet may be no UTF-8
    except pa.ArrowException as error:
        raise TableError(f"{uri} has a column {name} that does not hold {kind} ({error}); correct it.") from error
    return pc.if_else(pc.equal(column, ""), None, column) if kind == pa.string() else column


def read_texts(uri: str, required: tuple[str, ...], optional: tuple[str, ...]) -> pa.Table:
    """Read some columns of a table as texts; other columns are not read.

    Args:
        uri: URI of a file, or of a folder of parts.
        required: Names of columns that every file must have.
        optional: Names of columns that a file may have.

    Returns:
        These columns, without those that no file has.

    Raises:
        TableError: There is no table, a file of it is malformed or lacks a column, or a column does not hold texts.
        StorageError: A file cannot be read.
    """
    parts = find_table(uri)
    if not parts:
        raise TableError(f"{uri} is no table; expected a file, or a folder of parts, {', '.join(TABLE_SUFFIXES)}.")
    tables = []
    for part in parts:
        table = _read_texts_of_file(part, (*required, *optional))
        if missing := [name for name in required if name not in table.column_names]:
            raise TableError(
                f"{part} lacks the columns {', '.join(missing)}; expected {', '.join(required)}, and optionally "
                f"{', '.join(optional)}. Name its columns so."
            )
        tables.append(table)
    return pa.concat_tables(tables, promote_options="default")


def _read_texts_of_file(uri: str, names: tuple[str, ...]) -> pa.Table:
    if not uri.lower().endswith(".parquet"):
        table = read_list(uri)
    else:
        with open_parquet(uri) as file:
            present = [name for name in names if name in file.schema_arrow.names]
            for name in present:
                if content_of(file.schema_arrow.field(name).type) == "bytes":
                    raise TableError(f"{uri} has bytes in its column {name}; expected URIs or other texts.")
            table = file.read(present)
    columns = {name: typed_column(uri, table, name, pa.string()) for name in names if name in table.column_names}
    return pa.table(columns)
