"""Mattes that a network made, as pairs to train another one with: self-training on what it is confident of.

    pair_predictions   output folder of jobs/predict.py, photos, a confidence -> Pairing
    read_matte         a photo's key, the URI of its matte                    -> the matte's bytes

A matte is a file of its own, or lies with others in a Parquet table; then its URI is the table's.
"""

import hashlib
import json
import threading
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from matting import ledger, storage
from matting.pairs import Pair, Pairing, PairsError

_TABLE = ".parquet"
_MATTES = pa.schema([("key", pa.string()), ("alpha", pa.binary()), ("cutout", pa.binary())])
_loading = threading.Lock()


def pair_predictions(output: str, photos: str, min_confidence: float) -> Pairing:
    """Pairs photos with the mattes that jobs/predict.py made of them, as far as it was confident of those.

    All are for training: a network is not to be judged by what another one guessed.

    Args:
        output: URI of the mattes, with their ledger.
        photos: URI of the photos.
        min_confidence: as the ledger has it, in [0, 1]; photos with less are passed over.

    Raises:
        PairsError: no photo of the ledger is done with so much confidence.
        LedgerError, StorageError: the ledger is damaged, or cannot be read.
    """
    rows = ledger.read(output, ("key", "etag", "model", "settings", "status", "confidence", "outputs"))
    done = rows.filter(pc.equal(rows["status"], "done"))
    sure = done.filter(pc.greater_equal(done["confidence"], min_confidence))
    if not len(sure):
        raise PairsError(
            f"Of {len(done)} mattes in {output}, none has a confidence of at least {min_confidence:g}. Give the output "
            "folder of jobs/predict.py, or ask for less: the ledger there has the confidence of each."
        )
    pairs = [
        Pair(row["key"], storage.join(photos, row["key"]), storage.join(output, row["outputs"][0]), "train")
        for row in sure.to_pylist()
    ]
    contents = sure.drop_columns(["confidence", "status"]).to_pylist()
    return Pairing("predictions", tuple(pairs), (), hashlib.sha256(json.dumps(contents).encode()).hexdigest())


def read_matte(key: str, matte_uri: str, limit: int) -> bytes:
    """The bytes of a photo's matte, of at most so many bytes if it is a file of its own.

    Raises:
        storage.StorageError: it cannot be read.
    """
    if not matte_uri.endswith(_TABLE):
        return storage.read_bytes(matte_uri, limit)
    with _loading:  # else all threads that wait for one table would fetch it
        mattes = _table(matte_uri)
    if key not in mattes:
        raise storage.NotFoundError(f"{matte_uri} has no matte of {key!r}.")
    return mattes[key]


@lru_cache(maxsize=2)
def _table(uri: str) -> dict[str, bytes]:
    data = storage.read_bytes(uri)
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
        # As jobs/predict.py writes them: what a stranger packed might unpack to any size, or unpickle objects.
        plain = all(file.schema_arrow.field(name).type == _MATTES.field(name).type for name in _MATTES.names)
        if not plain or any(chunk.compression != "UNCOMPRESSED" for chunk in chunks):
            raise storage.StorageError(f"{uri} is no table of mattes that jobs/predict.py wrote.")
        rows = file.read(_MATTES.names).to_pylist()
    except (OSError, KeyError, pa.ArrowException) as error:  # Parquet's words for damage and other columns
        raise storage.StorageError(f"{uri} cannot be read as a table of mattes ({error}).") from error
    return {row["key"]: row["alpha"] or row["cutout"] for row in rows}
