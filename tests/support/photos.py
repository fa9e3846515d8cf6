"""Collections of photos, written and read for tests."""

from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from matting.data.photo_tables import ReadFailure
from matting.data.photos import Photos, read_photos
from matting.storage import store
from matting.storage.uri import join_uri


def write_keys(root: str, *names: str) -> None:
    """Write files that hold their own key."""
    for name in names:
        store.write_bytes(join_uri(root, name), name.encode())


def write_table(uri: str, columns: dict[str, Any] | pa.Table, **options: Any) -> str:
    """Write a table, as CSV or Parquet by its suffix, and return its URI."""
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    sink = pa.BufferOutputStream()
    if uri.lower().endswith(".csv"):
        pyarrow.csv.write_csv(table, sink)
    else:
        pq.write_table(table, sink, **options)
    store.write_bytes(uri, sink.getvalue().to_pybytes())
    return uri


def keys(photos: Photos) -> list[str]:
    """Return the keys of a collection."""
    return photos.table["key"].to_pylist()


def read_all(photos: Photos, ahead: int = 4) -> dict[str, bytes | str]:
    """Read all photos of a collection: their bytes, or why they cannot be read, by key."""
    found = keys(photos)
    return {
        found[index]: photo.reason if isinstance(photo, ReadFailure) else photo
        for index, photo in read_photos(photos.table, ahead)
    }
