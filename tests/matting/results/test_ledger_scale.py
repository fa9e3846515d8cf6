"""Planning at scale: a ledger of a million photos is read and compared in seconds and in less than a gigabyte."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from matting.results import ledger
from tests.support.jobs import peak_memory
from tests.support.ledgers import START
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

MILLION = 1_000_000
MODEL, SETTINGS = "5e" * 32, "write=alpha,cutout format=png refine=guided size=128 batch=16 precision=bfloat16"


def million_photos() -> pa.Table:
    """Return a listing like CelebA's, five times as long."""
    numbers = pc.utf8_lpad(pa.array(range(1, MILLION + 1)).cast(pa.string()), 6, "0")
    offsets = pa.array(range(0, 32 * MILLION + 1, 32), pa.int32()).buffers()[1]
    etags = pa.py_buffer(os.urandom(16 * MILLION).hex().encode())
    return pa.table(
        {
            "key": pc.binary_join_element_wise("img_align_celeba/", numbers, ".jpg", ""),
            "etag": pa.StringArray.from_buffers(MILLION, offsets, etags),
        }
    )


def million_rows(listing: pa.Table) -> pa.Table:
    names = pc.binary_join_element_wise("alpha/", listing["key"], ".png", "").combine_chunks()
    started = int(START.timestamp() * 1e6)
    columns: dict[str, Any] = {
        "key": listing["key"],
        "etag": listing["etag"],
        "model": pa.repeat(MODEL, MILLION),
        "settings": pa.repeat(SETTINGS, MILLION),
        "status": pa.repeat("done", MILLION),
        "outputs": pa.ListArray.from_arrays(pa.array(range(MILLION + 1), pa.int32()), names),
        "run": pa.repeat("20261122T143000Z-3f9c2a1b", MILLION),
        "finished_at": pa.array(range(started, started + 10_000 * MILLION, 10_000)).cast(pa.timestamp("us")),
    }
    empty = {name: pa.nulls(MILLION, ledger.LEDGER_SCHEMA.field(name).type) for name in ledger.LEDGER_SCHEMA.names}
    return pa.table(empty | columns)


def plan_a_million(output: str, listing_file: str) -> None:
    """Plan in a process of its own, and print the result and its costs as JSON."""
    listing = pq.read_table(listing_file)
    began = time.process_time()
    known = ledger.read(output, ["key", "etag", "model", "settings", "status", "error", "run", "finished_at"])
    found = ledger.plan(listing, known, MODEL, SETTINGS, retry_failed=False)
    print(
        json.dumps(
            {
                "cpu_seconds": time.process_time() - began,
                "megabytes": peak_memory(os.getpid()),
                "counts": found.counts,
                "due": found.due["key"].to_pylist(),
                "deleted": found.deleted.to_pylist(),
                "rate": ledger.last_rate(known),
            }
        )
    )


@pytest.fixture
def million(tmp_path: Path) -> tuple[str, str]:
    """Output folder with a ledger, and a listing in which one photo is new, one is changed and one was deleted."""
    output = str(tmp_path / "mattes")
    listing = million_photos()
    ledger.write_part(output, "r1", 0, million_rows(listing))
    etags = pa.chunked_array([["another"], *listing["etag"][1:].chunks])
    listing = pa.table({"key": pa.chunked_array([*listing["key"][:-1].chunks, ["new.jpg"]]), "etag": etags})
    pq.write_table(listing, tmp_path / "listing.parquet")
    return output, str(tmp_path / "listing.parquet")


def test_million_photos_are_planned_in_seconds(million):
    code = (
        "import sys; from tests.matting.results.test_ledger_scale import plan_a_million; plan_a_million(*sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, *million]
    took = json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
    assert took["counts"] == {"new": 1, "changed": 1, "outdated": 0, "transient": 0, "failed": 0, "done": MILLION - 2}
    assert took["due"] == ["img_align_celeba/000001.jpg", "new.jpg"]
    assert took["deleted"] == [f"img_align_celeba/{MILLION}.jpg"]
    assert took["rate"] == pytest.approx(100)
    assert took["cpu_seconds"] < 15, took
    assert took["megabytes"] < 1000, took
