"""Read tables that name photos or pairs: CSV in its dialects, JSON Lines, Parquet.

    find_table     URI of a file or a folder of parts -> URIs of the table's files
    read_list      CSV, TSV, TXT or JSON Lines        -> pa.Table
    open_parquet   Parquet                            -> pq.ParquetFile
    read_texts     any of these, names                -> columns of texts

A file that cannot be read as it was meant is refused. Nothing is guessed that could turn into other names.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from matting.data.images import IMAGE_SUFFIXES
from matting.storage import store

_LIST_SUFFIXES = (".csv", ".tsv", ".txt")
_JSON_SUFFIXES = (".jsonl", ".ndjson")
TABLE_SUFFIXES = (".parquet", *_LIST_SUFFIXES, *_JSON_SUFFIXES)

# Columns that are texts even where every value looks like a number or a date.
_TEXT_COLUMNS = ("image", "matte", "uri", "url", "path", "file_name", "key", "etag", "split", "group")
_KNOWN_COLUMNS = frozenset((*_TEXT_COLUMNS, "size"))

_DELIMITERS = ",;\t|"
_SAMPLE = 100_000  # characters of a list by which its delimiter is told
_SAMPLE_ROWS = 200
_DECODED = 4_000_000  # bytes of a list that are decoded at a time

# A longer mark that begins with a shorter one comes first.
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}

# The first row of a list names photos, and not columns, if a field of it is a path, a URI or a file's name.
_PHOTO = re.compile(rf"[/\\]|\.({'|'.join(IMAGE_SUFFIXES)})$", re.IGNORECASE)
_SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)  # Excel's first line, which names its delimiter

_READ_BUFFER = 8_000_000  # bytes of a Parquet column fetched at a time: few requests, and little memory


class TableError(ValueError):
    """A table cannot be read. The message says what was found, what was expected, and what to do."""


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


def read_list(uri: str) -> pa.Table:
    """Read a CSV, TSV or text file, or a file of JSON Lines.

    A list is UTF-8, or has a byte-order mark. Its delimiter is a comma, semicolon, tab or bar; spaces around values are
    dropped. A list of a single column needs no header: its column is then `image`.

    Raises:
        TableError: The file is malformed.
        StorageError: The file cannot be read.
    """
    text = _to_utf8(uri, store.read_bytes(uri))
    if not text.strip():
        raise TableError(f"{uri} is empty; expected a table with one row per photo.")
    try:
        table = _parse_json(uri, text) if uri.lower().endswith(_JSON_SUFFIXES) else _parse_list(uri, text)
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise TableError(f"{uri} cannot be read as CSV with a header: {reason}. Correct the file.") from error
    return table


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
            _refuse_repeated_names(uri, file.schema_arrow.names)
            yield file
    except (OSError, pa.ArrowException, UnicodeError) as error:
        raise TableError(f"{uri} cannot be read as Parquet: {error}. Write it again, or correct the URI.") from error


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


# Lists ----------------------------------------------------------------------------------------------------------------


class _Dialect(NamedTuple):
    delimiter: str
    names: list[str]
    has_header: bool


def _to_utf8(uri: str, data: bytes) -> bytes:
    mark = next((mark for mark in _BYTE_ORDER_MARKS if data.startswith(mark)), b"")
    encoding = _BYTE_ORDER_MARKS[mark] if mark else _encoding_without_mark(data)
    data = data.removeprefix(mark)
    decoder = codecs.getincrementaldecoder(encoding)()
    start = 0
    pieces = []
    try:
        for start in range(0, len(data), _DECODED):  # a whole list as Python's text would take several times its size
            piece = decoder.decode(data[start : start + _DECODED], start + _DECODED >= len(data))
            if encoding != "utf-8":
                pieces.append(piece.encode())
    except UnicodeError as error:
        line = data.count(b"\n", 0, start + getattr(error, "start", 0)) + 1
        raise TableError(
            f"{uri} cannot be read as text: its line {line:,} is not {encoding.upper()}. Save the file as UTF-8 "
            "('CSV UTF-8' in Excel)."
        ) from error
    return b"".join(pieces) if encoding != "utf-8" else data


def _encoding_without_mark(data: bytes) -> str:
    """Return UTF-16 where every other byte of the first characters is zero, as of ASCII in it; else UTF-8."""
    start = data[:64]
    if len(start) >= 2 and not any(start[1::2]) and all(start[::2]):
        return "utf-16-le"
    return "utf-16-be" if len(start) >= 2 and not any(start[::2]) and all(start[1::2]) else "utf-8"


def _parse_json(uri: str, text: bytes) -> pa.Table:
    """Return the columns of JSON Lines that are texts, and `size`; pyarrow's own parser crashes on some input."""
    columns: dict[str, list[Any]] = {}
    others: set[str] = set()  # columns with a value that is no text
    count = 0
    for number, line in enumerate(io.BytesIO(text), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("expected an object")
            for name, value in row.items():
                if value is None or name in others:
                    continue
                if type(value) is int and name in _TEXT_COLUMNS:
                    value = str(value)
                if type(value) is not (int if name == "size" else str):
                    if name in _KNOWN_COLUMNS:
                        raise ValueError(f"its {name} is {type(value).__name__}")
                    others.add(name)
                    continue
                column = columns.setdefault(name, [])
                column += [None] * (count - len(column))
                column.append(value)
        except (ValueError, RecursionError) as error:
            raise TableError(
                f"{uri} cannot be read as JSON Lines: line {number:,}: {error}. Correct the file."
            ) from error
        count += 1
    try:
        arrays = {
            name: pa.array(column + [None] * (count - len(column)), pa.int64() if name == "size" else pa.string())
            for name, column in columns.items()
            if name not in others
        }
    except (UnicodeError, OverflowError) as error:
        raise TableError(f"{uri} cannot be read as JSON Lines: {error}. Correct the file.") from error
    return pa.table(arrays)


def _parse_list(uri: str, text: bytes) -> pa.Table:
    start = text[:_SAMPLE].decode(errors="ignore")
    if separator := _SEPARATOR_LINE.match(start):
        text = text[separator.end() :]
        start = start[separator.end() :]
    dialect = _find_dialect(uri, start, separator[1] if separator else _DELIMITERS)
    _refuse_repeated_names(uri, [name for name in dialect.names if name])
    table = pyarrow.csv.read_csv(
        pa.BufferReader(text),
        # The header is the first row even where a name in it has a line break.
        pyarrow.csv.ReadOptions(column_names=dialect.names, skip_rows_after_names=int(dialect.has_header)),
        pyarrow.csv.ParseOptions(delimiter=dialect.delimiter, newlines_in_values=True),
        # pyarrow would tell a column's type by its first values, and refuse the file for a later one.
        pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(dialect.names, pa.string())),
    )
    table = table.select(
        [number for number, name in enumerate(dialect.names) if name]
    )  # spreadsheets add empty columns
    columns = [_numbers_or_texts(name, table[name]) for name in table.column_names]
    return pa.table(columns, names=table.column_names)


def _numbers_or_texts(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    texts = pc.utf8_trim_whitespace(column)
    if name not in _TEXT_COLUMNS:
        try:
            return pc.if_else(pc.equal(texts, ""), None, texts).cast(pa.float64())
        except pa.ArrowException:
            return texts
    return texts


def _find_dialect(uri: str, start: str, delimiters: str) -> _Dialect:
    """Choose the delimiter that finds most known columns in the first row, and as many in the rows below."""

    def fit(rows: list[list[str]]) -> tuple[int, float, int]:
        width = len(rows[0])
        alike = sum(len(row) == width for row in rows) / len(rows)
        return len(_KNOWN_COLUMNS & {name.strip() for name in rows[0]}), alike, width

    parsed = {delimiter: _first_rows(start, delimiter) for delimiter in delimiters}
    parsed = {delimiter: rows for delimiter, rows in parsed.items() if rows}
    if not parsed:
        raise TableError(f"{uri} cannot be read as CSV: its quotation marks are unbalanced. Correct the file.")
    delimiter = max(parsed, key=lambda delimiter: fit(parsed[delimiter]))
    names = [name.strip() for name in parsed[delimiter][0]]
    if _KNOWN_COLUMNS & set(names) or not any(_PHOTO.search(name) for name in names):
        return _Dialect(delimiter, names, has_header=True)
    if len(names) == 1:
        return _Dialect(delimiter, ["image"], has_header=False)
    raise TableError(
        f"{uri} has no header: its first row is {', '.join(names)}. Expected the names of its columns, such as "
        "image,matte for pairs or key,image for photos; add them as the first line."
    )


def _first_rows(start: str, delimiter: str) -> list[list[str]]:
    """Return the first rows that are not empty, without the last, which may be cut; none if they cannot be parsed."""
    try:
        # A `"` in the middle of a value belongs to it; an unclosed one would swallow the rest of the sample.
        rows = list(islice(filter(None, csv.reader(io.StringIO(start, newline=""), delimiter=delimiter)), _SAMPLE_ROWS))
    except csv.Error:
        return []
    return rows[:-1] if len(rows) > 1 and len(rows) < _SAMPLE_ROWS and len(start) >= _SAMPLE - 4 else rows


def _refuse_repeated_names(uri: str, names: list[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise TableError(f"{uri} has more than one column named {', '.join(repeated)}; rename all but one.")
