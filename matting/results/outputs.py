"""Outputs of a prediction beside its ledger: files of their own, or rows of Parquet tables.

mattes/<run>-<number>.parquet   a table of the mattes of many photos
every other path                a file with the matte or cutout of one photo
"""

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from matting.data.mattes import MATTE_SCHEMA
from matting.storage import store
from matting.storage.uri import join_uri

TABLE_FOLDER = "mattes"
TABLE_SCHEMA = MATTE_SCHEMA.insert(1, pa.field("etag", pa.string()))


def remove(output: str, paths_by_key: Mapping[str, Sequence[str]]) -> None:
    """Remove outputs; missing ones are no error.

    Args:
        output: URI of the output folder.
        paths_by_key: Keys, and the `outputs` of their ledger rows.

    Raises:
        StorageError: An output could not be removed.
    """
    parts = defaultdict[str, list[str]](list)
    for key, paths in paths_by_key.items():
        for path in paths:
            if is_in_table(path):
                parts[path].append(key)
            else:
                store.delete(join_uri(output, path))
    for path, keys in parts.items():
        uri = join_uri(output, path)
        if store.exists(uri):
            table = pq.read_table(pa.BufferReader(store.read_bytes(uri)))
            write_table(uri, table.filter(pc.invert(pc.is_in(table["key"], pa.array(keys)))))


def is_in_table(path: str) -> bool:
    """Return whether an output is in a table, which holds the mattes of other photos, too."""
    return path.startswith(f"{TABLE_FOLDER}/")


def table_path(run: str, part: str) -> str:
    """Return the path of a table below the output folder."""
    return f"{TABLE_FOLDER}/{run}-{part}.parquet"


def write_table(uri: str, table: pa.Table) -> None:
    """Write a table of mattes, uncompressed, since its PNGs are compressed already."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="none")
    store.write_bytes(uri, buffer.getvalue())
