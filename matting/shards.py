"""Packed pairs: Parquet parts, and the description file that makes them a collection.

    <uri>/part-00000.parquet …   rows (key, split, image, matte, width, height, source), sorted by split and key
    <uri>/_pairs.json            written last: schema version, options, counts, what is left out and why, SHA-256s

A part's footer also carries the fingerprint of what went into it, so that a packing job which is run again can tell a
part that is done from one that is not. The same rows give the same bytes. This file knows bytes and rows, no pixels.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from matting import storage

FORMAT = 1
DESCRIPTION = "_pairs.json"
ROW_GROUP = 64  # rows: the unit that a shuffled read fetches
_FOOTER_KEY = b"matting.part"
_REQUESTS = 16  # at a time: footers and small columns of parts

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("split", pa.string()),
        ("image", pa.binary()),  # an image file's bytes
        ("matte", pa.binary()),  # an 8-bit grey PNG
        ("width", pa.int32()),  # of the image, upright
        ("height", pa.int32()),
        ("source", pa.string()),  # the collection that the pair came from
    ]
)


class ShardError(Exception):
    """Not a packed collection, or not a whole one. The message says what was found and what to do."""


@dataclass(frozen=True)
class PartFooter:
    """What a part says of itself."""

    fingerprint: str  # of the inputs and options that it was made from
    rejected: tuple[tuple[str, str], ...]  # (key, reason) of pairs that could not be packed


def part_name(index: int) -> str:
    """``part-00000.parquet`` and so on."""
    return f"part-{index:05d}.parquet"


def encode_part(rows: Sequence[dict[str, Any]], footer: PartFooter) -> bytes:
    """One part as Parquet bytes; the same rows and footer give the same bytes.

    Pictures are compressed already, so the columns are not.
    """
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    table = table.replace_schema_metadata({_FOOTER_KEY: json.dumps(asdict(footer))})
    sink = io.BytesIO()
    pq.write_table(
        table, sink, row_group_size=ROW_GROUP, compression="none", use_dictionary=False, write_page_checksum=True
    )
    return sink.getvalue()


def part_footer(data: bytes) -> PartFooter | None:
    """What a part's bytes say of themselves; None if they are no whole part of ours."""
    try:
        metadata = pq.read_schema(io.BytesIO(data)).metadata or {}
        content = json.loads(metadata[_FOOTER_KEY])
        return PartFooter(content["fingerprint"], tuple((key, reason) for key, reason in content["rejected"]))
    except (OSError, pa.ArrowException, KeyError, ValueError):  # the first two are Parquet's words for damage
        return None


def write_description(uri: str, description: dict[str, Any]) -> None:
    """Make the parts under ``uri`` a collection. Call it last."""
    content = json.dumps({"format": FORMAT, **description}, indent=2, sort_keys=True) + "\n"
    storage.write_bytes(storage.join(uri, DESCRIPTION), content.encode())


def is_packed(uri: str) -> bool:
    """Whether ``uri`` holds packed pairs."""
    return storage.exists(storage.join(uri, DESCRIPTION))


def read_description(uri: str) -> dict[str, Any]:
    """The description file.

    Raises:
        ShardError: of another format, or damaged.
    """
    try:
        description: dict[str, Any] = json.loads(storage.read_bytes(storage.join(uri, DESCRIPTION)))
        found = description["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{uri}/{DESCRIPTION} is damaged ({error}). Pack the pairs again.") from error
    if found != FORMAT:
        raise ShardError(f"{uri} has packed format {found}; this version reads {FORMAT}. Pack the pairs again.")
    return description


def fingerprint(description: dict[str, Any]) -> str:
    """One hash over all parts of a packed collection."""
    return hashlib.sha256(json.dumps(description["parts"], sort_keys=True).encode()).hexdigest()


def read_index(uri: str, description: dict[str, Any]) -> pa.Table:
    """Where every row is: (key, split, width, height, part, row_group, row), in the order of the parts.

    Reads the small columns only.

    Raises:
        ShardError: a part is missing, damaged, or has other rows than the description says.
    """

    def index_of(part: dict[str, Any]) -> pa.Table:
        part_uri = storage.join(uri, part["name"])
        with open_part(part_uri) as file:
            if file.metadata.num_rows != part["rows"]:
                raise ShardError(
                    f"{part_uri} has {file.metadata.num_rows} rows where {DESCRIPTION} says {part['rows']}. "
                    "Pack the pairs again."
                )
            groups = [
                (group, row)
                for group in range(file.num_row_groups)
                for row in range(file.metadata.row_group(group).num_rows)
            ]
            table = file.read(columns=["key", "split", "width", "height"])
        return (
            table.append_column("part", pa.array([part_uri] * len(groups), pa.string()))
            .append_column("row_group", pa.array([group for group, _ in groups], pa.int32()))
            .append_column("row", pa.array([row for _, row in groups], pa.int32()))
            .replace_schema_metadata(None)
        )

    return pa.concat_tables([index for _, index in storage.concurrently(index_of, description["parts"], _REQUESTS)])


def read_pairs(index: pa.Table) -> Iterator[tuple[str, bytes, bytes]]:
    """(key, image bytes, matte bytes) of an index's rows, in its order. A row group is fetched once and held.

    Raises:
        ShardError: a part cannot be read.
    """
    groups: dict[tuple[str, int], pa.Table] = {}
    for row in index.to_pylist():
        place = (row["part"], row["row_group"])
        if place not in groups:
            with open_part(row["part"]) as file:
                groups[place] = file.read_row_group(row["row_group"], columns=["image", "matte"])
        group = groups[place]
        yield row["key"], group["image"][row["row"]].as_py(), group["matte"][row["row"]].as_py()


@contextmanager
def open_part(uri: str) -> Iterator[pq.ParquetFile]:
    """A part, to be read from inside a ``with``; every page's checksum is verified.

    Raises:
        ShardError: missing, foreign or damaged, as found when it is opened or read from.
    """
    filesystem, path = storage.filesystem(uri)
    try:
        with pq.ParquetFile(path, filesystem=filesystem, pre_buffer=True, page_checksum_verification=True) as file:
            if not _is_ours(file):
                raise ShardError(f"{uri} is no part that this version packs. Pack the pairs again.")
            yield file
    except (OSError, pa.ArrowException, storage.StorageError) as error:
        raise ShardError(
            f"{uri} cannot be read as Parquet ({error}). If the store can be reached, pack the pairs again."
        ) from error


def _is_ours(file: pq.ParquetFile) -> bool:
    """Whether a part is built as `encode_part` builds them. What a stranger built might unpickle objects (columns of
    Ray's extension type, in a process that has imported Ray) or unpack to any size."""
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    return bool(file.schema_arrow.equals(SCHEMA)) and all(
        group.num_rows <= ROW_GROUP and group.column(number).compression == "UNCOMPRESSED"
        for group in groups
        for number in range(group.num_columns)
    )
