"""Turns on cores: as many tasks compute as there are cores, and the core of a killed one is free."""

import multiprocessing
import os
import tempfile
from contextlib import ExitStack
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import pytest

from jobs.common.cluster import Resources
from jobs.prediction import rounds
from jobs.prediction.turns import turn_on_a_core

SECONDS = 20  # after which a process that should have said something is stuck


def compute(connection: Connection, run: str, cores: int) -> None:
    """Say that the turn has come, and hold it until told to end."""
    with turn_on_a_core(run, cores):
        connection.send("computes")
        connection.recv()


def test_as_many_tasks_compute_as_there_are_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    context = multiprocessing.get_context("spawn")  # its processes read TMPDIR
    ours, theirs = zip(*(Pipe() for _ in range(3)), strict=True)
    tasks = [context.Process(target=compute, args=(end, "run", 2)) for end in theirs]
    with ExitStack() as stack:
        for task in tasks:
            task.start()
            stack.callback(task.kill)
        first = multiprocessing.connection.wait(ours, SECONDS)
        while len(first) < 2:
            first = multiprocessing.connection.wait(ours, SECONDS)
        waiting = next(end for end in ours if end not in first)
        assert not waiting.poll(0.3)
        other = context.Process(target=compute, args=(theirs[ours.index(first[1])], "another run", 1))
        other.start()
        stack.callback(other.kill)
        tasks[ours.index(first[0])].kill()
        assert waiting.poll(SECONDS)
        assert waiting.recv() == "computes"
        assert first[1].recv() == "computes"
        assert first[1].poll(SECONDS)  # the other run does not wait for this one's cores
        assert first[1].recv() == "computes"


def test_tasks_compute_without_turns_where_no_file_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"matting-{os.getuid()}.turns").mkdir()
    with turn_on_a_core("run", 1), turn_on_a_core("run", 1):
        pass


def test_long_runs_have_a_task_that_waits_on_each_node(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"Resources": {"CPU": 16.0}},
        {"Resources": {"CPU": 1.0}},
        {"Resources": {"CPU": 32.0}},
        {"Resources": {"GPU": 1.0}},
    ]
    monkeypatch.setattr(rounds.cluster, "alive_nodes", lambda: nodes)
    found = Resources(False, 48, 0, 1.0)
    cpus = rounds.cpus_of_a_task(found, None, 10_000)
    assert [cores // cpus for cores in (1, 16, 32)] == [1, 18, 36]
    assert rounds.cpus_of_a_task(found, None, 100) == 1  # a short run
    assert rounds.cpus_of_a_task(found, 4, 10_000) == 1  # as many tasks as the user says
    assert rounds.cpus_of_a_task(Resources(False, 48, 2, 1.0), None, 10_000) == 0.5
