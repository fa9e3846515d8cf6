"""ledger: names never collide, the latest row counts, no interleaving of runs loses one, a million photos plan fast."""

import hashlib
import itertools
import json
import os
import posixpath
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from matting import ledger, storage
from matting.ledger import BadKey, LedgerError
from tests.jobs import peak_memory

Row = dict[str, Any]
START = datetime(2026, 11, 22, 14, 30, tzinfo=UTC)


PASSING = "cannot be read: Cannot read s3://b/x for now, tried 6 times: the store fails"


def row(key: str, second: float = 0, run: str = "r1", **values: Any) -> Row:
    """A row of SCHEMA, as of a photo that was done."""
    return {
        "key": key,
        "etag": f"etag of {key}",
        "size": 10_000,
        "model": "m1",
        "settings": "s1",
        "status": "done",
        "error": None,
        "width": 178,
        "height": 218,
        "coverage": 0.5,
        "confidence": 0.75,
        "outputs": [f"alpha/{key}.png"],
        "run": run,
        "finished_at": START.replace(tzinfo=None) + timedelta(seconds=second),
    } | values


def table(*rows: Row) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=ledger.SCHEMA)


def photos(**etags: str) -> pa.Table:
    return pa.table({"key": list(etags), "etag": list(etags.values()), "size": [1] * len(etags)})


def parts(output: str) -> list[str]:
    return sorted(path.name for path in Path(output, "_ledger").iterdir())


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "mattes of 100% #1")


# Names ----------------------------------------------------------------------------------------------------------------


def test_an_output_is_named_by_its_whole_input():
    assert ledger.output_name("alpha", "x/a.jpg", "png", 255) == "alpha/x/a.jpg.png"
    assert ledger.output_name("cutout", ".a %20#?é.PNG", "webp", 255) == "cutout/.a %20#?é.PNG.webp"
    assert ledger.output_name("alpha", "y" * 251, "png", 255) == "alpha/" + "y" * 251 + ".png"


def test_what_is_too_long_becomes_its_start_and_its_hash():
    part = "é" * 250
    digest = hashlib.sha256(part.encode()).hexdigest()[:32]
    assert ledger.output_name("alpha", part, "png", 255) == f"alpha/{'é' * 109}~{digest}.png"  # 218 + 33 + 4 bytes
    assert ledger.output_name("alpha", f"{part}/a", "png", 255) == f"alpha/{'é' * 111}~{digest}/a.png"
    assert ledger.output_name("alpha", part, "png", None) == f"alpha/{part}.png"


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", ".", "./a", "a/.", "..", "../../etc/x", "a/../b", "a\0b", "a\n/.."]
)
def test_a_key_that_would_leave_the_output_or_collide_there_is_refused(key):
    with pytest.raises(BadKey, match=r"^key .* rename the photo$") as refusal:
        ledger.output_name("alpha", key, "png", None)
    assert "\n" not in str(refusal.value)


PARTS = st.one_of(
    st.sampled_from(
        ["a", "a.jpg", "a.png", "a.jpg.png", "a.png.png", ".a", "a ", "a%20", "a#", "a?", "é", "e\u0301", "~"]
    ),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=12),
    st.integers(215, 500).flatmap(
        lambda size: st.sampled_from(["x" * size, "é" * size, "😀" * size, "x" * size + ".png"])
    ),
).filter(lambda part: part not in (".", ".."))
KEYS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)


def with_lookalikes(keys: Iterable[str]) -> set[str]:
    """The keys, and others that are named as the outputs of the first are, whole or without the ending."""
    names = [ledger.output_name("alpha", key, "png", 255).removeprefix("alpha/") for key in keys]
    folders = [posixpath.dirname(name) + "/a" for name in names if "/" in name]
    return {*keys, *names, *(name.removesuffix(".png") for name in names), *folders}


@given(st.sets(KEYS, min_size=2, max_size=8))
@example({"x/1.jpg", "y/1.jpg", "x/1.png", "x/1.jpg.png", "x/1.jpg.png/1.jpg"})
def test_distinct_keys_have_distinct_names_below_the_folder(keys):
    keys = with_lookalikes(with_lookalikes(keys))
    names = {ledger.output_name("alpha", key, "png", 255) for key in keys}
    assert len(names) == len(keys) == len({ledger.output_name("alpha", key, "png", None) for key in keys})
    for name in names:
        assert posixpath.normpath(name) == name
        assert name.startswith("alpha/")
        assert max(len(part.encode()) for part in name.split("/")) <= 255
        assert not names.intersection(name[: slash.start()] for slash in re.finditer("/", name)), "a file and a folder"


def test_runs_sort_by_time_and_differ_within_a_second():
    assert re.fullmatch(r"20261122T143000Z-[0-9a-f]{8}", ledger.new_run(START))
    assert ledger.new_run(START) != ledger.new_run(START)
    later = START.astimezone(tz=None) + timedelta(seconds=1)
    assert ledger.new_run(START) < ledger.new_run(later)


# Parts ----------------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_back_sorted_by_key(output):
    failed = {"status": "failed", "error": "empty file", "width": None, "height": None, "outputs": []}
    failed |= {"coverage": None, "confidence": None}
    ledger.write_part(output, "r1", 0, [row("b"), row("a", **failed)])
    ledger.write_part(output, "r1", 1, table(row("ä/c")))
    assert ledger.read(output) == table(row("a", **failed), row("b"), row("ä/c"))
    assert ledger.read(output).schema == ledger.SCHEMA
    assert ledger.read(output, ["status", "key"]).to_pylist()[0] == {"status": "failed", "key": "a"}
    assert ledger.read(output, ["status", "key"]).column_names == ["status", "key"]


def test_no_ledger_is_an_empty_one(output):
    assert ledger.read(output) == ledger.SCHEMA.empty_table()
    assert ledger.compact(output) == ledger.SCHEMA.empty_table()
    assert ledger.last_rate(ledger.read(output)) is None
    assert not Path(output).exists()


def test_a_block_that_is_handled_again_replaces_its_part(output):
    ledger.write_part(output, "r1", 7, [row("a"), row("b")])
    ledger.write_part(output, "r1", 7, [row("a"), row("c")])
    assert parts(output) == ["r1-000007.parquet"]
    assert ledger.read(output, ["key"])["key"].to_pylist() == ["a", "c"]


def test_parts_have_plain_types_for_any_reader(output):
    ledger.write_part(output, "r1", 0, [row("a"), row("b", coverage=None)])
    expected = dict.fromkeys(("key", "etag", "model", "settings", "status", "error", "run"), "VARCHAR")
    expected |= {"size": "BIGINT", "width": "INTEGER", "height": "INTEGER", "coverage": "FLOAT", "confidence": "FLOAT"}
    expected |= {"outputs": "VARCHAR[]", "finished_at": "TIMESTAMP"}
    for _ in ("as written", "as merged"):
        found = duckdb.sql(f"select * from '{output}/_ledger/*.parquet'")
        assert dict(zip(found.columns, map(str, found.types), strict=True)) == expected
        assert found.columns == ledger.SCHEMA.names
        values = found.select("key, outputs[1], epoch(finished_at)").order("key").fetchall()
        assert values == [(key, f"alpha/{key}.png", START.timestamp()) for key in "ab"]
        (name,) = parts(output)
        footer = pq.read_metadata(Path(output, "_ledger", name))
        assert footer.metadata is None, "words for pandas or Arrow alone"
        assert {footer.row_group(0).column(i).compression for i in range(footer.num_columns)} == {"ZSTD"}
        ledger.write_part(output, "r1", 1, [row("a")])
        ledger.compact(output)


def test_a_part_that_another_program_wrote_with_wider_types_is_read(output):
    rewritten = table(row("b"), row("a")).select(ledger.SCHEMA.names[::-1])
    Path(output, "_ledger").mkdir(parents=True)
    pq.write_table(rewritten, Path(output, "_ledger", "spark.parquet"), use_deprecated_int96_timestamps=True)
    assert ledger.read(output) == table(row("a"), row("b"))


def test_a_damaged_or_foreign_part_is_named_and_nothing_is_deleted(output):
    ledger.write_part(output, "r1", 0, [row(f"{number:04}") for number in range(500)])
    ledger.write_part(output, "r1", 1, [row("b")])
    part = Path(output, "_ledger", "r1-000000.parquet")
    whole = part.read_bytes()
    flipped = bytearray(whole)
    flipped[100] ^= 1
    no_time = io_bytes(table(row("a")).drop_columns("finished_at"))
    no_number = io_bytes(table(row("a")).set_column(2, "size", pa.array(["large"])))
    for damaged in (b"", b"<html>", whole[:-9], bytes(flipped), no_time, no_number):
        part.write_bytes(damaged)
        for function in (ledger.read, ledger.compact):
            with pytest.raises(LedgerError, match=r"r1-000000\.parquet is damaged or no part .* Move it away"):
                function(output)
        assert parts(output) == ["r1-000000.parquet", "r1-000001.parquet"]


def io_bytes(content: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(content, sink)
    return sink.getvalue().to_pybytes()


def test_what_is_no_part_is_left_alone_and_a_broken_link_is_told(output):
    ledger.write_part(output, "r1", 0, [row("a")])
    Path(output, "_ledger", "README.txt").write_text("mine")
    Path(output, "_ledger", "old").mkdir()
    Path(output, "_ledger", "old", "r0-000000.parquet").write_text("mine")
    ledger.write_part(output, "r1", 1, [row("b")])
    assert ledger.compact(output) == ledger.read(output) == table(row("a"), row("b"))
    assert {"README.txt", "old"} < set(parts(output))

    Path(output, "_ledger", "gone.parquet").symlink_to("nowhere")
    with pytest.raises(storage.NotFoundError, match=r"gone\.parquet"):
        ledger.read(output)


# The latest row counts ------------------------------------------------------------------------------------------------

ROWS = st.builds(
    lambda key, second, run, etag: row(key, second, run, etag=etag),
    st.sampled_from("abcdé"),
    st.integers(0, 3),
    st.sampled_from(["r1", "r2", "r3"]),
    st.sampled_from(["e1", "e2"]),
)


def newest(rows: Iterable[Row]) -> list[Row]:
    """Each key's row with the greatest (finished_at, run), sorted by key."""
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
def test_the_latest_row_of_a_key_counts(blocks, without):
    # A run finishes a photo once at a time: rows alike in key, time and run are the same row, repeated.
    etags = {(one["key"], one["finished_at"], one["run"]): one["etag"] for block in blocks for one in block}
    blocks = [[one | {"etag": etags[one["key"], one["finished_at"], one["run"]]} for one in block] for block in blocks]
    expected = newest(one for block in blocks for one in block)
    with tempfile.TemporaryDirectory() as output:
        for number, block in enumerate(blocks):
            ledger.write_part(output, "r", number, block)
        assert ledger.read(output) == table(*expected)

        kept = table(*(one for one in expected if one["key"] not in without))
        assert ledger.compact(output, without) == kept == ledger.read(output)
        assert len(list(Path(output).rglob("*.parquet"))) == min(len(blocks), 1)
        if blocks:
            (part,) = Path(output, "_ledger").iterdir()
            assert pq.read_table(part, schema=ledger.SCHEMA) == kept or len(blocks) == 1


def test_a_compact_ledger_is_left_as_it_is(output):
    ledger.write_part(output, "r1", 0, [row("a"), row("b")])
    ledger.write_part(output, "r1", 1, [row("c"), row("b", 1)])
    ledger.compact(output)
    before = storage.list_files(output)
    assert len(before) == 1
    ledger.compact(output, without=["not there"])
    assert storage.list_files(output) == before
    ledger.compact(output, without=pa.chunked_array([["a"], ["c"]]))
    assert ledger.read(output) == table(row("b", 1))
    assert len(parts(output)) == 1


def test_many_parts_in_a_bucket(bucket):
    for number in range(45):  # more than two pages of a listing
        ledger.write_part(f"{bucket}/out", "r1", number, [row(f"{number:02}"), row("same", number)])
    expected = table(*(row(f"{number:02}") for number in range(45)), row("same", 44))
    assert ledger.read(f"{bucket}/out") == expected
    assert ledger.compact(f"{bucket}/out") == expected
    assert ledger.read(f"{bucket}/out") == expected
    assert len(storage.list_files(bucket)) == 1


# Several runs at the same time ----------------------------------------------------------------------------------------


class Died(Exception):
    pass


class TakingTurns:
    """Lets actors do one storage operation at a time, in the order of `turns`; each dies after so many of them.

    An actor is known by how it spells the location. After each operation, `check` runs.
    """

    def __init__(self, turns: Iterable[str], lives: dict[str, int], check: Any) -> None:
        self.turns, self.lives, self.check = iter(turns), lives, check
        self.changed = threading.Condition()
        self.turn = next(self.turns, None)
        self.active = set(lives)
        self.results: dict[str, Any] = {}

    def gate(self, function: Any) -> Any:
        def gated(uri: str, *arguments: Any) -> Any:
            actor = next((actor for actor in self.lives if uri.startswith(actor)), None)
            if actor is None:
                return function(uri, *arguments)
            with self.changed:
                self.changed.wait_for(lambda: self.turn == actor or self.turn not in self.active)
                if not self.lives[actor]:
                    raise Died
                self.lives[actor] -= 1
                try:
                    return function(uri, *arguments)
                finally:
                    self.check()
                    self.turn = next(self.turns, None)
                    self.changed.notify_all()

        return gated

    def act(self, actor: str, work: Any) -> None:
        try:
            self.results[actor] = work(actor)
        except Exception as error:
            self.results[actor] = error
        with self.changed:
            self.active.discard(actor)
            self.changed.notify_all()

    def run(self, works: dict[str, Any]) -> dict[str, Any]:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("list_files", "read_bytes", "write_bytes", "delete"):
                patch.setattr(storage, name, self.gate(getattr(storage, name)))
            threads = [threading.Thread(target=self.act, args=item) for item in works.items()]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
                assert not thread.is_alive(), "it does not end"
        return self.results


ALWAYS = 10**9
LIVES = st.just(ALWAYS) | st.integers(0, 25)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 12), max_size=20), LIVES, LIVES, st.booleans())
@example([1] * 40, ALWAYS, ALWAYS, True)  # in step
@example([10_000], 5, ALWAYS, False)
def test_two_runs_that_write_and_merge_lose_nothing_at_any_interleaving_and_wherever_one_dies(
    stretches, first_lives, second_lives, second_writes
):
    with tempfile.TemporaryDirectory() as output:
        ledger.write_part(output, "r1", 0, [row("a"), row("b", 1), row("dropped")])
        ledger.write_part(output, "r1", 1, [row("b"), row("c")])
        ledger.write_part(output, "r2", 0, [row("a", 2, "r2"), row("dropped", 2, "r2")])
        expected = {one["key"]: one for one in (row("a", 2, "r2"), row("b", 1), row("c"))}
        first, second = f"file://{output}", f"File://{output}"

        def check() -> None:
            found = {one["key"]: one for one in ledger.read(output).to_pylist()}
            assert {key: found.get(key) for key in expected} == expected

        def drop(output: str) -> pa.Table:
            if second_writes:
                ledger.write_part(output, "r3", 0, [row("new", 0, "r3")])
                expected["new"] = row("new", 0, "r3")
            return ledger.compact(output, without={"dropped"})

        turns = [(first, second)[index % 2] for index, count in enumerate(stretches) for _ in range(count)]
        taking_turns = TakingTurns(turns, {first: first_lives, second: second_lives}, check)
        results = taking_turns.run({first: ledger.compact, second: drop})
        assert all(isinstance(result, pa.Table | Died) for result in results.values()), results
        check()
        if any(isinstance(result, Died) for result in results.values()):
            ledger.compact(output, without={"dropped"})
        assert len(parts(output)) == 1
        assert ledger.read(output).to_pylist() == [expected[key] for key in sorted(expected)]
        (part,) = Path(output, "_ledger").iterdir()
        assert len(pq.read_table(part)) == len(expected)


def test_two_runs_that_merge_in_step_come_to_an_end(output):
    for number in range(2):
        ledger.write_part(output, "r1", number, [row("a", number)])
    first, second = f"file://{output}", f"File://{output}"
    taking_turns = TakingTurns(itertools.cycle((first, second)), {first: 200, second: 200}, check=lambda: None)
    results = taking_turns.run({first: ledger.compact, second: ledger.compact})
    assert results == {first: table(row("a", 1)), second: table(row("a", 1))}
    assert len(parts(output)) == 1


WRITE_AND_MERGE = """
import sys
from tests.test_ledger import row
from matting import ledger
output, name = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
for number in range(15):
    ledger.write_part(output, name, number, [row("same", number, name), row(f"{name}/{number}")])
    ledger.compact(output)
"""


def test_processes_that_write_and_merge_never_hide_a_row_from_a_reader(output):
    ledger.write_part(output, "r0", 0, [row(f"{number:03}") for number in range(300)])
    command = [sys.executable, "-c", WRITE_AND_MERGE, output]
    here = Path(__file__).parents[1]
    pipe = subprocess.PIPE
    runs = [subprocess.Popen([*command, f"r{i}"], cwd=here, stdin=pipe, stdout=pipe, text=True) for i in (1, 2)]
    for run in runs:
        run.stdout.readline()
    for run in runs:
        run.stdin.write("go\n")
        run.stdin.flush()
    seen: set[str] = set()
    while any(run.poll() is None for run in runs):
        keys = set(ledger.read(output, ["key"])["key"].to_pylist())
        assert seen <= keys
        seen = keys
    for run in runs:
        run.communicate()
        assert run.returncode == 0
    assert len(parts(output)) == 1
    assert len(ledger.read(output)) == 300 + 1 + 2 * 15


# What is left to do ---------------------------------------------------------------------------------------------------


def test_a_plan_by_hand():
    known = table(
        row("changed", etag="old"),
        row("deleted"),
        row("done", etag="e"),
        row("failed", etag="e", status="failed"),
        row("failed before", etag="e", status="failed", model="m0"),
        row("failed for now", etag="e", status="failed", error=PASSING),
        row("other model", etag="e", model="m0"),
        row("other settings", etag="e", settings="s0"),
    )
    states = {
        "changed": "changed",
        "done": "done",
        "failed": "failed",
        "failed before": "outdated",
        "failed for now": "unavailable",
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
    assert found.counts == {"new": 1, "changed": 1, "outdated": 3, "unavailable": 1, "failed": 1, "done": 1}

    retried = ledger.plan(listing, known, "m1", "s1", retry_failed=True)
    assert retried.due["key"].to_pylist() == sorted([*due, "failed"])
    assert retried.counts == found.counts


def test_plans_of_nothing():
    known, nothing = table(row("a"), row("b")), ledger.SCHEMA.empty_table()
    first = ledger.plan(photos(a="e", b="e"), nothing, "m1", "s1", False)
    assert first.states.to_pylist() == ["new", "new"]
    assert len(first.due) == 2
    assert first.deleted.to_pylist() == []
    last = ledger.plan(known.slice(0, 0), known, "m1", "s1", False)
    assert last.counts == dict.fromkeys(ledger.STATES, 0)
    assert last.deleted.to_pylist() == ["a", "b"]


def plan_slowly(listing: list[Row], known: list[Row], retry_failed: bool) -> tuple[list[str], list[str], list[str]]:
    """States, keys that are due, keys that are deleted."""
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
        elif before["error"] == PASSING:
            state = "unavailable"
        else:
            state = before["status"]
        states.append(state)
        if state in ("new", "changed", "outdated", "unavailable") or (state == "failed" and retry_failed):
            due.append(photo["key"])
    return states, due, list(rows)


FEW = st.sampled_from
LEDGER_ROWS = st.builds(
    lambda key, etag, model, settings, outcome: row(
        key, etag=etag, model=model, settings=settings, status=outcome[0], error=outcome[1]
    ),
    FEW("abcdefgh"),
    FEW(["e1", "e2"]),
    FEW(["m1", "m2"]),
    FEW(["s1", "s2"]),
    FEW([("done", None), ("failed", "truncated"), ("failed", PASSING)]),
)


@given(
    st.dictionaries(FEW("abcdefgh"), FEW(["e1", "e2"])),
    st.lists(LEDGER_ROWS, unique_by=lambda one: one["key"]),
    st.booleans(),
)
def test_a_plan_is_as_a_loop_would_make_it(etags, known, retry_failed):
    listing = [{"key": key, "etag": etag} for key, etag in sorted(etags.items())]
    known.sort(key=lambda one: one["key"])
    states, due, deleted = plan_slowly(listing, known, retry_failed)
    schema = pa.schema([("key", pa.string()), ("etag", pa.string())])
    found = ledger.plan(pa.Table.from_pylist(listing, schema), table(*known), "m1", "s1", retry_failed)
    assert found.states.to_pylist() == states
    assert found.due["key"].to_pylist() == due
    assert found.deleted.to_pylist() == deleted
    assert found.counts == {state: states.count(state) for state in ledger.STATES}


def test_the_rate_is_that_of_the_last_run():
    earlier = [row("a", 100, "r1"), row("b", 200, "r1")]
    assert ledger.last_rate(table(*earlier, row("c", 10, "r2"), row("d", 12, "r2"), row("e", 11, "r2"))) == 1.0
    assert ledger.last_rate(table(row("a", 0), row("b", 0.25))) == 4.0
    assert ledger.last_rate(table(*earlier, row("c", 300, "r2"))) is None
    assert ledger.last_rate(table(row("a"), row("b"))) is None


# A million photos -----------------------------------------------------------------------------------------------------

MILLION = 1_000_000
MODEL, SETTINGS = "5e" * 32, "write=alpha,cutout format=png refine=guided size=128 batch=16 precision=bfloat16"


def million_photos() -> pa.Table:
    """As a listing of CelebA would be, were it five times as large."""
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
    empty = {name: pa.nulls(MILLION, ledger.SCHEMA.field(name).type) for name in ledger.SCHEMA.names}
    return pa.table(empty | columns)


def plan_a_million(output: str, listing_file: str) -> None:
    """In a process of its own; prints what it took as JSON."""
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
def million(output: str, tmp_path: Path) -> tuple[str, str]:
    """A ledger, and a listing in which one photo is new, one changed and one deleted."""
    listing = million_photos()
    ledger.write_part(output, "r1", 0, million_rows(listing))
    etags = pa.chunked_array([["another"], *listing["etag"][1:].chunks])
    listing = pa.table({"key": pa.chunked_array([*listing["key"][:-1].chunks, ["new.jpg"]]), "etag": etags})
    pq.write_table(listing, tmp_path / "listing.parquet")
    return output, str(tmp_path / "listing.parquet")


def test_a_million_photos_are_planned_in_seconds_and_less_than_a_gigabyte(million):
    code = "import sys; from tests.test_ledger import plan_a_million; plan_a_million(*sys.argv[1:])"
    command = [sys.executable, "-c", code, *million]
    took = json.loads(subprocess.run(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, check=True).stdout)
    assert took["counts"] == {"new": 1, "changed": 1, "outdated": 0, "unavailable": 0, "failed": 0, "done": MILLION - 2}
    assert took["due"] == ["img_align_celeba/000001.jpg", "new.jpg"]
    assert took["deleted"] == [f"img_align_celeba/{MILLION}.jpg"]
    assert took["rate"] == pytest.approx(100)
    assert took["cpu_seconds"] < 15, took
    assert took["megabytes"] < 1000, took
