"""The ledger: the latest row of a key counts, and plans follow from it.

test_ledger_concurrency.py has several runs at the same time, test_ledger_scale.py a million photos.
"""

import re
import tempfile
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matting.results import ledger
from matting.results.ledger import LedgerError
from matting.storage import store
from matting.storage.errors import NotFoundError
from tests.support.ledgers import START, Row, ledger_parts, ledger_row, ledger_table
from tests.support.paths import ROOT


def photos(**etags: str) -> pa.Table:
    return pa.table({"key": list(etags), "etag": list(etags.values()), "size": [1] * len(etags)})


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "mattes of 100% #1")


# Runs -----------------------------------------------------------------------------------------------------------------


def test_run_names_sort_by_time():
    assert re.fullmatch(r"20261122T143000Z-[0-9a-f]{8}", ledger.new_run_name(START))
    assert ledger.new_run_name(START) != ledger.new_run_name(START)
    later = START.astimezone(tz=None) + timedelta(seconds=1)
    assert ledger.new_run_name(START) < ledger.new_run_name(later)


# Parts ----------------------------------------------------------------------------------------------------------------


def test_rows_are_read_back_sorted_by_key(output):
    failed = {"status": "failed", "error": "empty file", "width": None, "height": None, "outputs": []}
    failed |= dict.fromkeys(ledger.MEASURED)
    ledger.write_part(output, "r1", 0, [ledger_row("b"), ledger_row("a", **failed)])
    ledger.write_part(output, "r1", 1, ledger_table(ledger_row("ä/c")))
    assert ledger.read(output) == ledger_table(ledger_row("a", **failed), ledger_row("b"), ledger_row("ä/c"))
    assert ledger.read(output).schema == ledger.LEDGER_SCHEMA
    assert ledger.read(output, ["status", "key"]).to_pylist()[0] == {"status": "failed", "key": "a"}
    assert ledger.read(output, ["status", "key"]).column_names == ["status", "key"]


def test_missing_ledger_is_empty(output):
    assert ledger.read(output) == ledger.LEDGER_SCHEMA.empty_table()
    assert ledger.compact(output) == ledger.LEDGER_SCHEMA.empty_table()
    assert ledger.last_rate(ledger.read(output)) is None
    assert not Path(output).exists()


def test_repeated_block_replaces_its_part(output):
    ledger.write_part(output, "r1", 7, [ledger_row("a"), ledger_row("b")])
    ledger.write_part(output, "r1", 7, [ledger_row("a"), ledger_row("c")])
    assert ledger_parts(output) == ["r1-000007.parquet"]
    assert ledger.read(output, ["key"])["key"].to_pylist() == ["a", "c"]


def test_parts_have_plain_types(output):
    ledger.write_part(output, "r1", 0, [ledger_row("a"), ledger_row("b", coverage=None)])
    expected = dict.fromkeys(("key", "etag", "model", "settings", "status", "error", "warning", "run"), "VARCHAR")
    expected |= {"size": "BIGINT", "width": "INTEGER", "height": "INTEGER", "coverage": "FLOAT", "confidence": "FLOAT"}
    expected |= dict.fromkeys(("left", "top", "right", "bottom"), "INTEGER")
    expected |= {"outputs": "VARCHAR[]", "finished_at": "TIMESTAMP"}
    for _ in ("as written", "as merged"):
        found = duckdb.sql(f"select * from '{output}/_ledger/*.parquet'")
        assert dict(zip(found.columns, map(str, found.types), strict=True)) == expected
        assert found.columns == ledger.LEDGER_SCHEMA.names
        values = found.select("key, outputs[1], epoch(finished_at)").order("key").fetchall()
        assert values == [(key, f"alpha/{key}.png", START.timestamp()) for key in "ab"]
        (name,) = ledger_parts(output)
        footer = pq.read_metadata(Path(output, "_ledger", name))
        assert footer.metadata is None, "metadata for pandas or Arrow"
        assert {footer.row_group(0).column(i).compression for i in range(footer.num_columns)} == {"ZSTD"}
        ledger.write_part(output, "r1", 1, [ledger_row("a")])
        ledger.compact(output)


def test_part_with_wider_types_is_read(output):
    rewritten = ledger_table(ledger_row("b"), ledger_row("a")).select(ledger.LEDGER_SCHEMA.names[::-1])
    Path(output, "_ledger").mkdir(parents=True)
    pq.write_table(rewritten, Path(output, "_ledger", "spark.parquet"), use_deprecated_int96_timestamps=True)
    assert ledger.read(output) == ledger_table(ledger_row("a"), ledger_row("b"))


def test_part_without_boxes_is_read(output):
    row = ledger_row("a", left=None, top=None, right=None, bottom=None)
    written = ledger_table(row).drop_columns(["left", "top", "right", "bottom"])  # as before they were measured
    Path(output, "_ledger").mkdir(parents=True)
    pq.write_table(written, Path(output, "_ledger", "r1-000000.parquet"))
    ledger.write_part(output, "r2", 0, [ledger_row("b", run="r2")])
    assert ledger.read(output) == ledger_table(row, ledger_row("b", run="r2"))
    assert ledger.read(output, ["key"])["key"].to_pylist() == ["a", "b"]
    assert ledger.compact(output) == ledger.read(output)


def test_query_of_the_guide_measures_boxes(output):
    nobody = dict.fromkeys(("left", "top", "right", "bottom"))
    rows = [ledger_row("a"), ledger_row("b", left=5, right=178), ledger_row("c", **nobody)]
    ledger.write_part(output, "r1", 0, rows)
    guide = (ROOT / "jobs/README.md").read_text()
    (query,) = (line for line in guide.splitlines() if line.startswith("select") and '"left"' in line)
    assert duckdb.sql(query.replace("s3://mattes/celeba", output)).fetchall() == [("b", 173, 198), ("a", 100, 198)]


def test_damaged_part_is_named_and_kept(output):
    ledger.write_part(output, "r1", 0, [ledger_row(f"{number:04}") for number in range(500)])
    ledger.write_part(output, "r1", 1, [ledger_row("b")])
    part = Path(output, "_ledger", "r1-000000.parquet")
    whole = part.read_bytes()
    flipped = bytearray(whole)
    flipped[100] ^= 1
    no_time = parquet_bytes(ledger_table(ledger_row("a")).drop_columns("finished_at"))
    no_number = parquet_bytes(ledger_table(ledger_row("a")).set_column(2, "size", pa.array(["large"])))
    for damaged in (b"", b"<html>", whole[:-9], bytes(flipped), no_time, no_number):
        part.write_bytes(damaged)
        for function in (ledger.read, ledger.compact):
            with pytest.raises(LedgerError, match=r"r1-000000\.parquet is damaged or no part .* Move it away"):
                function(output)
        assert ledger_parts(output) == ["r1-000000.parquet", "r1-000001.parquet"]


def parquet_bytes(content: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(content, sink)
    return sink.getvalue().to_pybytes()


def test_other_files_are_left_alone(output):
    ledger.write_part(output, "r1", 0, [ledger_row("a")])
    Path(output, "_ledger", "README.txt").write_text("mine")
    Path(output, "_ledger", "old").mkdir()
    Path(output, "_ledger", "old", "r0-000000.parquet").write_text("mine")
    ledger.write_part(output, "r1", 1, [ledger_row("b")])
    assert ledger.compact(output) == ledger.read(output) == ledger_table(ledger_row("a"), ledger_row("b"))
    assert {"README.txt", "old"} < set(ledger_parts(output))


def test_broken_link_is_an_error(output):
    ledger.write_part(output, "r1", 0, [ledger_row("a")])
    Path(output, "_ledger", "gone.parquet").symlink_to("nowhere")
    with pytest.raises(NotFoundError, match=r"gone\.parquet"):
        ledger.read(output)


# The latest row counts ------------------------------------------------------------------------------------------------

ROWS = st.builds(
    lambda key, second, run, etag: ledger_row(key, second, run, etag=etag),
    st.sampled_from("abcdé"),
    st.integers(0, 3),
    st.sampled_from(["r1", "r2", "r3"]),
    st.sampled_from(["e1", "e2"]),
)


def newest(rows: Iterable[Row]) -> list[Row]:
    """Return each key's row with the greatest (finished_at, run), sorted by key."""
    found: dict[str, Row] = {}
    for one in rows:
        old = found.get(one["key"])
        if old is None or (old["finished_at"], old["run"]) < (one["finished_at"], one["run"]):
            found[one["key"]] = one
    return [found[key] for key in sorted(found)]


@settings(max_examples=60)
@given(
    st.lists(st.lists(ROWS, max_size=6), max_size=4),
    st.sets(st.sampled_from("abx")),
)
def test_latest_row_of_a_key_counts(blocks, without):
    # A run finishes a photo once at a time, so rows with the same key, time and run are copies of one row.
    etags = {(one["key"], one["finished_at"], one["run"]): one["etag"] for block in blocks for one in block}
    blocks = [[one | {"etag": etags[one["key"], one["finished_at"], one["run"]]} for one in block] for block in blocks]
    expected = newest(one for block in blocks for one in block)
    with tempfile.TemporaryDirectory() as output:
        for number, block in enumerate(blocks):
            ledger.write_part(output, "r", number, block)
        assert ledger.read(output) == ledger_table(*expected)

        kept = ledger_table(*(one for one in expected if one["key"] not in without))
        assert ledger.compact(output, without) == kept == ledger.read(output)
        assert len(list(Path(output).rglob("*.parquet"))) == min(len(blocks), 1)
        if blocks:
            (part,) = Path(output, "_ledger").iterdir()
            assert pq.read_table(part, schema=ledger.LEDGER_SCHEMA) == kept or len(blocks) == 1


def test_compact_ledger_is_not_rewritten(output):
    ledger.write_part(output, "r1", 0, [ledger_row("a"), ledger_row("b")])
    ledger.write_part(output, "r1", 1, [ledger_row("c"), ledger_row("b", 1)])
    ledger.compact(output)
    before = store.list_files(output)
    assert len(before) == 1
    ledger.compact(output, without=["not there"])
    assert store.list_files(output) == before
    ledger.compact(output, without=pa.chunked_array([["a"], ["c"]]))
    assert ledger.read(output) == ledger_table(ledger_row("b", 1))
    assert len(ledger_parts(output)) == 1


def test_bucket_with_many_parts_is_compacted(bucket):
    for number in range(45):  # more than two pages of a listing
        ledger.write_part(f"{bucket}/out", "r1", number, [ledger_row(f"{number:02}"), ledger_row("same", number)])
    expected = ledger_table(*(ledger_row(f"{number:02}") for number in range(45)), ledger_row("same", 44))
    assert ledger.read(f"{bucket}/out") == expected
    assert ledger.compact(f"{bucket}/out") == expected
    assert ledger.read(f"{bucket}/out") == expected
    assert len(store.list_files(bucket)) == 1


# Planning -------------------------------------------------------------------------------------------------------------


def test_plan_has_every_state():
    known = ledger_table(
        ledger_row("changed", etag="old"),
        ledger_row("deleted"),
        ledger_row("done", etag="e"),
        ledger_row("failed", etag="e", status="failed"),
        ledger_row("failed before", etag="e", status="failed", model="m0"),
        ledger_row("failed for a transient reason", etag="e", status="transient"),
        ledger_row("other model", etag="e", model="m0"),
        ledger_row("other settings", etag="e", settings="s0"),
    )
    states = {
        "changed": "changed",
        "done": "done",
        "failed": "failed",
        "failed before": "outdated",
        "failed for a transient reason": "transient",
        "new": "new",
        "other model": "outdated",
        "other settings": "outdated",
    }
    listing = photos(**dict.fromkeys(states, "e"))
    found = ledger.plan(listing, known, "m1", "s1", retry_failed=False)
    assert found.states.to_pylist() == list(states.values())
    due = [key for key, state in states.items() if state not in ("done", "failed")]
    assert found.due == listing.filter(pc.is_in(listing["key"], pa.array(due)))
    assert found.deleted.to_pylist() == ["deleted"]
    assert found.counts == {"new": 1, "changed": 1, "outdated": 3, "transient": 1, "failed": 1, "done": 1}

    retried = ledger.plan(listing, known, "m1", "s1", retry_failed=True)
    assert retried.due["key"].to_pylist() == sorted([*due, "failed"])
    assert retried.counts == found.counts


def test_empty_ledger_or_collection_is_planned():
    known, nothing = ledger_table(ledger_row("a"), ledger_row("b")), ledger.LEDGER_SCHEMA.empty_table()
    first = ledger.plan(photos(a="e", b="e"), nothing, "m1", "s1", False)
    assert first.states.to_pylist() == ["new", "new"]
    assert len(first.due) == 2
    assert first.deleted.to_pylist() == []
    last = ledger.plan(known.slice(0, 0), known, "m1", "s1", False)
    assert last.counts == dict.fromkeys(ledger.STATES, 0)
    assert last.deleted.to_pylist() == ["a", "b"]


def plan_slowly(listing: list[Row], known: list[Row], retry_failed: bool) -> tuple[list[str], list[str], list[str]]:
    """Return states, keys that are due, and keys that were deleted."""
    rows = {one["key"]: one for one in known}
    states, due = [], []
    for photo in listing:
        before = rows.pop(photo["key"], None)
        if before is None:
            state = "new"
        elif before["etag"] != photo["etag"]:
            state = "changed"
        elif (before["model"], before["settings"]) != ("m1", "s1"):
            state = "outdated"
        else:
            state = before["status"]
        states.append(state)
        if state in ("new", "changed", "outdated", "transient") or (state == "failed" and retry_failed):
            due.append(photo["key"])
    return states, due, list(rows)


FEW = st.sampled_from
LEDGER_ROWS = st.builds(
    lambda key, etag, model, settings, status: ledger_row(
        key, etag=etag, model=model, settings=settings, status=status
    ),
    FEW("abcdefgh"),
    FEW(["e1", "e2"]),
    FEW(["m1", "m2"]),
    FEW(["s1", "s2"]),
    FEW(["done", "failed", "transient"]),
)


@given(
    st.dictionaries(FEW("abcdefgh"), FEW(["e1", "e2"])),
    st.lists(LEDGER_ROWS, unique_by=lambda one: one["key"]),
    st.booleans(),
)
def test_plan_matches_a_plain_loop(etags, known, retry_failed):
    listing = [{"key": key, "etag": etag} for key, etag in sorted(etags.items())]
    known.sort(key=lambda one: one["key"])
    states, due, deleted = plan_slowly(listing, known, retry_failed)
    schema = pa.schema([("key", pa.string()), ("etag", pa.string())])
    found = ledger.plan(pa.Table.from_pylist(listing, schema), ledger_table(*known), "m1", "s1", retry_failed)
    assert found.states.to_pylist() == states
    assert found.due["key"].to_pylist() == due
    assert found.deleted.to_pylist() == deleted
    assert found.counts == {state: states.count(state) for state in ledger.STATES}


def test_rate_is_of_the_last_run():
    earlier = [ledger_row("a", 100, "r1"), ledger_row("b", 200, "r1")]
    last = [ledger_row("c", 10, "r2"), ledger_row("d", 12, "r2"), ledger_row("e", 11, "r2")]
    assert ledger.last_rate(ledger_table(*earlier, *last)) == 1.0
    assert ledger.last_rate(ledger_table(ledger_row("a", 0), ledger_row("b", 0.25))) == 4.0
    assert ledger.last_rate(ledger_table(*earlier, ledger_row("c", 300, "r2"))) is None
    assert ledger.last_rate(ledger_table(ledger_row("a"), ledger_row("b"))) is None
