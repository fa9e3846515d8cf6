"""Read a matte: which stored value is opaque, and where a predicted one is.

A predicted matte is a file, or a row of a Parquet table that jobs/predict.py wrote with --sink table.
"""

import threading
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from matting.data.images import Pixels, StoredMatte
from matting.storage import store
from matting.storage.errors import DamagedError, NotFoundError

_TABLE_SUFFIX = ".parquet"
MATTE_SCHEMA = pa.schema([("key", pa.string()), ("alpha", pa.binary()), ("cutout", pa.binary())])
_loading = threading.Lock()


@dataclass(frozen=True)
class MatteReading:
    """How the stored values of mattes become alphas.

    Args:
        matte_range: Stored value that is opaque; None for the largest of the file's bit depth, 255 or 65535.
        invert: Whether mattes show the background in place of the person.
    """

    matte_range: int | None = None
    invert: bool = False

    def opaque(self, matte_HW: StoredMatte) -> int:
        """Return the stored value that is opaque in this matte."""
        return self.matte_range or (255 if matte_HW.dtype == np.uint8 else 65535)

    def alpha(self, matte_HW: StoredMatte) -> Pixels:
        """Return alpha_HW, uint8, of stored values: scaled and rounded; values above the opaque one are opaque."""
        opaque = self.opaque(matte_HW)
        if opaque == 255 and matte_HW.dtype == np.uint8:
            alpha_HW: Pixels = matte_HW.astype(np.uint8, copy=False)
        else:
            values = np.minimum(matte_HW.astype(np.uint32), opaque)
            alpha_HW = ((values * 255 + opaque // 2) // opaque).astype(np.uint8)
        return 255 - alpha_HW if self.invert else alpha_HW


AS_STORED = MatteReading()


def read_matte(key: str, matte_uri: str, max_bytes: int) -> bytes:
    """Return the bytes of a photo's matte, or of its cutout where the table has no matte.

    A process keeps the two tables that it read last, and does not see later changes of them.

    Args:
        key: Key of the photo, which names its row in a table.
        matte_uri: URI of the matte's file, or of a table (.parquet).
        max_bytes: Size limit of a file; tables have none.

    Raises:
        DamagedError: The table is not one of jobs/predict.py.
        StorageError: The matte cannot be read.
    """
    if not matte_uri.endswith(_TABLE_SUFFIX):
        return store.read_bytes(matte_uri, max_bytes)
    with _loading:  # so that threads that need the same table fetch it once
        mattes = _mattes_by_key(matte_uri)
    if key not in mattes:
        raise NotFoundError(f"{matte_uri} has no matte of {key!r}.")
    return mattes[key]


@lru_cache(maxsize=2)
def _mattes_by_key(uri: str) -> dict[str, bytes]:
    data = store.read_bytes(uri)
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
        # Only what jobs/predict.py writes: other tables might unpack to any size, or unpickle objects.
        has_schema = all(file.schema_arrow.field(field.name).type == field.type for field in MATTE_SCHEMA)
        if not has_schema or any(chunk.compression != "UNCOMPRESSED" for chunk in chunks):
            raise DamagedError(f"{uri} is no table of mattes that jobs/predict.py wrote.")
        rows = file.read(MATTE_SCHEMA.names).to_pylist()
    except (OSError, KeyError, pa.ArrowException) as error:  # damage, or other columns
        raise DamagedError(f"{uri} cannot be read as a table of mattes ({error}).") from error
    return {row["key"]: row["alpha"] or row["cutout"] for row in rows}
