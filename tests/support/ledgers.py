"""Ledger rows for tests."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from matting.results import ledger

Row = dict[str, Any]
START = datetime(2026, 11, 22, 14, 30, tzinfo=UTC)


def ledger_row(key: str, second: float = 0, run: str = "r1", **values: Any) -> Row:
    """Return a row of LEDGER_SCHEMA, of a photo that is done unless `values` change it."""
    return {
        "key": key,
        "etag": f"etag of {key}",
        "size": 10_000,
        "model": "m1",
        "settings": "s1",
        "status": "done",
        "error": None,
        "warning": None,
        "width": 178,
        "height": 218,
        "coverage": 0.5,
        "confidence": 0.75,
        "left": 10,
        "top": 20,
        "right": 110,
        "bottom": 218,
        "outputs": [f"alpha/{key}.png"],
        "run": run,
        "finished_at": START.replace(tzinfo=None) + timedelta(seconds=second),
    } | values


def ledger_table(*rows: Row) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=ledger.LEDGER_SCHEMA)


def ledger_parts(output: str) -> list[str]:
    """Return the names of all files of a ledger, sorted."""
    return sorted(path.name for path in Path(output, "_ledger").iterdir())
