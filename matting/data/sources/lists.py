"""Read lists of photos or pairs: CSV in its dialects, and JSON Lines.

    read_list      CSV, TSV, TXT or JSON Lines -> pa.Table

Nothing is guessed that could turn into other names.
"""

import codecs
import csv
import io
import json
import re
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from matting.data.images import IMAGE_SUFFIXES
from matting.storage import store

_JSON_SUFFIXES = (".jsonl", ".ndjson")
LIST_SUFFIXES = (".csv", ".tsv", ".txt", *_JSON_SUFFIXES)

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

_NO_LISTS = {
    **dict.fromkeys((b"PK\x03\x04", b"\xd0\xcf\x11\xe0"), "an Excel workbook or another archive"),
    **dict.fromkeys((b"\x1f\x8b", b"PAR1", bytes(4)), "binary or compressed data"),
    **dict.fromkeys((b"[{", b'["', b"[\n", b"[\r"), "a JSON array"),
}

_LONGEST_LINE = 16_000_000  # bytes of a list's line; pyarrow parses so many at a time


class TableError(ValueError):
    """A table cannot be read. The message says what was found, what was expected, and what to do."""


def read_list(uri: str) -> pa.Table:
    """Read a CSV, TSV or text file, or a file of JSON Lines.

    A list is UTF-8, or has a byte-order mark. Its delimiter is a comma, semicolon, tab or bar; spaces around values are
    dropped. A list of a single column needs no header: its column is then `image`.

    Raises:
        TableError: The file is malformed.
        StorageError: The file cannot be read.
    """
    data = store.read_bytes(uri)
    if kind := next((kind for start, kind in _NO_LISTS.items() if data.startswith(start)), None):
        raise TableError(f"{uri} is {kind}, not a list; save it as 'CSV UTF-8', or as JSON Lines.")
    text = _to_utf8(uri, data)
    if not text.strip():
        raise TableError(f"{uri} is empty; expected a table with one row per photo.")
    try:
        table = _parse_json(uri, text) if uri.lower().endswith(_JSON_SUFFIXES) else _parse_list(uri, text)
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise TableError(f"{uri} cannot be read as CSV with a header: {reason}. Correct the file.") from error
    return table


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
    refuse_repeated_names(uri, [name for name in dialect.names if name])
    table = pyarrow.csv.read_csv(
        pa.BufferReader(text if text.endswith(b"\n") else text + b"\n"),  # pyarrow does not find the end of a header
        # The header is the first row even where a name in it has a line break.
        pyarrow.csv.ReadOptions(
            block_size=_LONGEST_LINE, column_names=dialect.names, skip_rows_after_names=int(dialect.has_header)
        ),
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


def refuse_repeated_names(uri: str, names: list[str]) -> None:
    """Check that the columns of a table have different names.

    Raises:
        TableError: Two have one name.
    """
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise TableError(f"{uri} has more than one column named {', '.join(repeated)}; rename all but one.")
