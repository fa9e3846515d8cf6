"""Several runs on one ledger at the same time: no interleaving loses a row, wherever a run dies."""

import itertools
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from matting.results import ledger
from matting.storage import store
from tests.support.ledgers import ledger_parts, ledger_row, ledger_table
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "mattes")


class Died(Exception):
    """The end of an actor's life."""


class TakingTurns:
    """A scheduler that lets actors do one storage operation at a time, in a given order.

    Args:
        turns: Order of the actors. An actor is recognized by the spelling of its URI.
        lives: Number of operations after which each actor dies.
        check: Function to call after each operation.
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
                patch.setattr(store, name, self.gate(getattr(store, name)))
            threads = [threading.Thread(target=self.act, args=item) for item in works.items()]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
                assert not thread.is_alive(), "an actor does not end"
        return self.results


ALWAYS = 10**9
LIVES = st.just(ALWAYS) | st.integers(0, 25)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 12), max_size=20), LIVES, LIVES, st.booleans())
@example([1] * 40, ALWAYS, ALWAYS, True)  # in step
@example([10_000], 5, ALWAYS, False)
def test_no_interleaving_of_two_runs_loses_a_row(stretches, first_lives, second_lives, second_writes):
    with tempfile.TemporaryDirectory() as output:
        ledger.write_part(output, "r1", 0, [ledger_row("a"), ledger_row("b", 1), ledger_row("dropped")])
        ledger.write_part(output, "r1", 1, [ledger_row("b"), ledger_row("c")])
        ledger.write_part(output, "r2", 0, [ledger_row("a", 2, "r2"), ledger_row("dropped", 2, "r2")])
        expected = {one["key"]: one for one in (ledger_row("a", 2, "r2"), ledger_row("b", 1), ledger_row("c"))}
        first, second = f"file://{output}", f"File://{output}"

        def check() -> None:
            found = {one["key"]: one for one in ledger.read(output).to_pylist()}
            assert {key: found.get(key) for key in expected} == expected

        def drop(output: str) -> pa.Table:
            if second_writes:
                ledger.write_part(output, "r3", 0, [ledger_row("new", 0, "r3")])
                expected["new"] = ledger_row("new", 0, "r3")
            return ledger.compact(output, without={"dropped"})

        turns = [(first, second)[index % 2] for index, count in enumerate(stretches) for _ in range(count)]
        taking_turns = TakingTurns(turns, {first: first_lives, second: second_lives}, check)
        results = taking_turns.run({first: ledger.compact, second: drop})
        assert all(isinstance(result, pa.Table | Died) for result in results.values()), results
        check()
        if any(isinstance(result, Died) for result in results.values()):
            ledger.compact(output, without={"dropped"})
        assert len(ledger_parts(output)) == 1
        assert ledger.read(output).to_pylist() == [expected[key] for key in sorted(expected)]
        (part,) = Path(output, "_ledger").iterdir()
        assert len(pq.read_table(part)) == len(expected)


def test_two_runs_in_step_come_to_an_end(output):
    for number in range(2):
        ledger.write_part(output, "r1", number, [ledger_row("a", number)])
    first, second = f"file://{output}", f"File://{output}"
    taking_turns = TakingTurns(itertools.cycle((first, second)), {first: 200, second: 200}, check=lambda: None)
    results = taking_turns.run({first: ledger.compact, second: ledger.compact})
    assert results == {first: ledger_table(ledger_row("a", 1)), second: ledger_table(ledger_row("a", 1))}
    assert len(ledger_parts(output)) == 1


WRITE_AND_MERGE = """
import sys
from matting.results import ledger
from tests.support.ledgers import ledger_row
output, name = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
for number in range(15):
    ledger.write_part(output, name, number, [ledger_row("same", number, name), ledger_row(f"{name}/{number}")])
    ledger.compact(output)
"""


def test_processes_never_hide_a_row(output):
    ledger.write_part(output, "r0", 0, [ledger_row(f"{number:03}") for number in range(300)])
    command = [sys.executable, "-c", WRITE_AND_MERGE, output]
    pipe = subprocess.PIPE
    runs = [subprocess.Popen([*command, f"r{i}"], cwd=ROOT, stdin=pipe, stdout=pipe, text=True) for i in (1, 2)]
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
    assert len(ledger_parts(output)) == 1
    assert len(ledger.read(output)) == 300 + 1 + 2 * 15
