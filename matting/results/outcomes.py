"""Outcomes of handled photos: rows of the ledger, with figures that the ledger leaves out.

new_row          a photo that is being handled                  -> row
without_outputs  row of a photo that failed                     -> row with the reason
record           rows of a block                                -> ledger part; superseded outputs are removed
"""

from collections.abc import Mapping
from typing import Any, Literal

import pyarrow as pa

from matting.results import ledger
from matting.results.outputs import is_in_table
from matting.storage import store
from matting.storage.uri import join_uri

Row = dict[str, Any]
Status = Literal["done", "failed", "transient"]


def new_row(photo: Mapping[str, Any], model: str, settings: str, run: str) -> Row:
    """Return the ledger row of a photo that is being handled, and its bytes `read` and `written`.

    Args:
        photo: Key, etag and size.
        model: Identity of the checkpoint.
        settings: Text of the `PredictionSettings`.
        run: Name of the run.
    """
    return {
        **{name: photo[name] for name in ("key", "etag", "size")},
        "model": model,
        "settings": settings,
        "status": "done",
        "error": None,
        "warning": None,
        "outputs": [],
        "run": run,
        "read": 0,
        "written": 0,
    }


def without_outputs(row: Row, status: Status, reason: str) -> Row:
    """Return the row of a photo that has no outputs, and why."""
    unknown = dict.fromkeys(ledger.MEASURED)
    return {**row, **unknown, "status": status, "error": reason, "outputs": [], "written": 0}


def record(output: str, run: str, number: int, photos: pa.Table, rows: list[Row]) -> None:
    """Write the ledger part of a block, then remove the outputs that its rows supersede.

    Args:
        output: URI of the output folder.
        run: Name of the run.
        number: Number of the block, unique in its run.
        photos: Photos of the block, with their earlier `outputs`.
        rows: New ledger row of each photo, in any order.

    Raises:
        StorageError: The part cannot be written.
    """
    names = ledger.LEDGER_SCHEMA.names
    ledger.write_part(output, run, number, [{name: row[name] for name in names} for row in rows])
    earlier = dict(zip(photos["key"].to_pylist(), photos["outputs"].to_pylist(), strict=True))
    for row in rows:
        for path in set(earlier[row["key"]] or ()) - set(row["outputs"]):
            if not is_in_table(path):
                store.delete(join_uri(output, path))
