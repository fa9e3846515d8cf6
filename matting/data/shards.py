"""Packed pairs: Parquet parts, and the description file that makes them a dataset.

    <uri>/part-00000.parquet …   rows (key, split, image, matte, width, height, source), sorted by split and key
    <uri>/_pairs.json            written last: format, options, counts, pairs that are left out and why, SHA-256s

The footer of a part holds the fingerprint of its inputs, by which a repeated packing job recognizes finished parts. The
same rows give the same bytes. Nothing is decoded here.
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

from matting.storage import store
from matting.storage.concurrent import concurrently
from matting.storage.errors import StorageError
from matting.storage.uri import join_uri

PACKED_FORMAT = 1

DESCRIPTION = "_pairs.json"
ROW_GROUP = 64  # rows that a shuffled read fetches together
_FOOTER_KEY = b"matting.part"
_INDEX_FETCHES = 16  # parts whose footers and small columns are in flight at a time

PART_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("split", pa.string()),
        ("image", pa.binary()),  # bytes of an image file
        ("matte", pa.binary()),  # bytes of an 8-bit grey PNG
        ("width", pa.int32()),  # pixels of the upright image
        ("height", pa.int32()),
        ("source", pa.string()),  # name of the dataset that the pair came from
    ]
)


class ShardError(Exception):
    """Packed pairs are missing, incomplete or damaged. The message says what was found and what to do."""


@dataclass(frozen=True)
class PartFooter:
    """Metadata of a part.

    Args:
        fingerprint: Hash of the inputs and options that the part was made from.
        rejected: Pairs that could not be packed, as (key, reason).
        suspicious: Pairs that are packed and may be wrong, as (key, reason).
    """

    fingerprint: str
    rejected: tuple[tuple[str, str], ...]
    suspicious: tuple[tuple[str, str], ...] = ()


def part_name(index: int) -> str:
    """Return the file name of a part: `part-00000.parquet` for 0."""
    return f"part-{index:05d}.parquet"


def encode_part(rows: Sequence[dict[str, Any]], footer: PartFooter) -> bytes:
    """Encode a part as Parquet. The same rows and footer give the same bytes.

    The columns are not compressed, because image files are compressed already.

    Args:
        rows: Rows of `PART_SCHEMA`.
        footer: Metadata of the part.
    """
    table = pa.Table.from_pylist(list(rows), schema=PART_SCHEMA)
    table = table.replace_schema_metadata({_FOOTER_KEY: json.dumps(asdict(footer))})
    sink = io.BytesIO()
    pq.write_table(
        table, sink, row_group_size=ROW_GROUP, compression="none", use_dictionary=False, write_page_checksum=True
    )
    return sink.getvalue()


def part_footer(data: bytes) -> PartFooter | None:
    """Return the metadata of a part from its bytes; None if they are no whole part that `encode_part` made."""
    try:
        metadata = pq.read_schema(io.BytesIO(data)).metadata or {}
        content = json.loads(metadata[_FOOTER_KEY])
        lists = (content[name] for name in ("rejected", "suspicious"))
        return PartFooter(content["fingerprint"], *(tuple((key, reason) for key, reason in pairs) for pairs in lists))
    except (OSError, pa.ArrowException, KeyError, ValueError):  # OSError and ArrowException mean damage
        return None


def write_description(uri: str, description: dict[str, Any]) -> None:
    """Write the description file, which makes the parts below `uri` a dataset. Write it last."""
    content = json.dumps({"format": PACKED_FORMAT, **description}, indent=2, sort_keys=True) + "\n"
    store.write_bytes(join_uri(uri, DESCRIPTION), content.encode())


def is_packed(uri: str) -> bool:
    """Return whether `uri` holds packed pairs."""
    return store.exists(join_uri(uri, DESCRIPTION))


def read_description(uri: str) -> dict[str, Any]:
    """Read the description file.

    Raises:
        ShardError: The file has another format, or is damaged.
        StorageError: The file cannot be read.
    """
    try:
        description: dict[str, Any] = json.loads(store.read_bytes(join_uri(uri, DESCRIPTION)))
        found = description["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{uri}/{DESCRIPTION} is damaged ({error}). Pack the pairs again.") from error
    if found != PACKED_FORMAT:
        raise ShardError(f"{uri} has packed format {found}; this version reads {PACKED_FORMAT}. Pack the pairs again.")
    return description


def fingerprint(description: dict[str, Any]) -> str:
    """Return one SHA-256, in hexadecimal, over the SHA-256s of all parts of a packed dataset."""
    return hashlib.sha256(json.dumps(description["parts"], sort_keys=True).encode()).hexdigest()


def read_index(uri: str, description: dict[str, Any]) -> pa.Table:
    """Read where every row is: (key, split, width, height, part, row_group, row), in the order of the parts.

    Only the small columns are fetched.

    Raises:
        ShardError: A part is missing or damaged, or its number of rows differs from the description.
    """

    def index_of(part: dict[str, Any]) -> pa.Table:
        part_uri = join_uri(uri, part["name"])
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

    return pa.concat_tables([index for _, index in concurrently(index_of, description["parts"], _INDEX_FETCHES)])


def read_pairs(index: pa.Table) -> Iterator[tuple[str, bytes, bytes]]:
    """Read (key, image bytes, matte bytes) of an index's rows, in order. A row group is fetched once, then kept.

    Raises:
        ShardError: A part cannot be read.
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
    """Open a part for reading inside a `with` block. The checksum of every page is verified.

    Raises:
        ShardError: The part is missing, foreign or damaged, as found on opening or reading.
    """
    filesystem, path = store.filesystem(uri)
    try:
        with pq.ParquetFile(path, filesystem=filesystem, pre_buffer=True, page_checksum_verification=True) as file:
            if not _is_ours(file):
                raise ShardError(f"{uri} is no part that this version packs. Pack the pairs again.")
            yield file
    except (OSError, pa.ArrowException, StorageError) as error:
        raise ShardError(
            f"{uri} cannot be read as Parquet ({error}). If the store can be reached, pack the pairs again."
        ) from error


def _is_ours(file: pq.ParquetFile) -> bool:
    """Return whether a part has the form that `encode_part` gives it.

    Other files might unpack to any size, or unpickle objects: columns of Ray's extension type do, in a process that has
    imported Ray.
    """
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    return bool(file.schema_arrow.equals(PART_SCHEMA)) and all(
        group.num_rows <= ROW_GROUP and group.column(number).compression == "UNCOMPRESSED"
        for group in groups
        for number in range(group.num_columns)
    )
