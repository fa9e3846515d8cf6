"""Jobs as a user runs them: in a process with a local cluster of its own, or in this process; and their processes.

A process and its cluster take some ten seconds to start. They are for tests of what only a process shows: its death,
its signals, its nodes, what else is printed there.
"""

import io
import json
import os
import runpy
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from unittest.mock import patch

from jobs.common import cluster
from tests.support.paths import ROOT


def started(job: str, *arguments: str) -> subprocess.Popen[str]:
    """Start ``python jobs/<job>.py`` with these arguments. Both of its outputs are in stdout."""
    command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


@contextmanager
def running(job: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start a job, and kill it at the end if it still runs."""
    with started(job, *arguments) as process:
        try:
            yield process
        finally:
            process.kill()


def run(job: str, *arguments: str) -> tuple[int, str]:
    """Run a job. Returns its exit code and its output."""
    with running(job, *arguments) as process:
        output, _ = process.communicate(timeout=240)
        return process.returncode, output


@contextmanager
def taken_as_own() -> Iterator[None]:
    """Let jobs take the cluster of this process for the one that each would start for itself alone.

    As on a laptop, a single training worker then runs in the driver, which saves the start of further processes.
    """
    is_own = patch.object(cluster, "is_own", lambda: True)
    with is_own, patch.object(cluster, "start_own", lambda cores: None):  # noqa: ARG005 - it runs already
        yield


def run_here(job: str, *arguments: str) -> tuple[int, str]:
    """Run a job as ``python jobs/<job>.py`` would, but in this process. Returns its exit code and its output."""
    argv, said = [str(ROOT / "jobs" / f"{job}.py"), *arguments], io.StringIO()
    never_started = patch.object(cluster, "_has_started", False)  # whatever earlier jobs of this process did
    with (
        patch.object(sys, "argv", argv),
        never_started,
        warnings.catch_warnings(),
        redirect_stdout(said),
        redirect_stderr(said),
    ):
        try:
            runpy.run_path(argv[0], run_name="__main__")
        except SystemExit as ended:
            return int(ended.code or 0), said.getvalue()
    return 0, said.getvalue()


def run_joined(*commands: Sequence[str]) -> list[tuple[int, str]]:
    """Run jobs one after another in a new process, which joins the cluster of RAY_ADDRESS once.

    Args:
        commands: Each job's name, and its arguments.

    Returns:
        Exit code and output of each.
    """
    script = "import json, sys; from tests.support.jobs import run_here; "
    script += "print(json.dumps([run_here(*command) for command in json.loads(sys.argv[1])]))"
    driver = [sys.executable, "-c", script, json.dumps(commands)]
    printed = subprocess.run(driver, stdout=subprocess.PIPE, text=True, check=True, timeout=240).stdout
    return [(code, said) for code, said in json.loads(printed.splitlines()[-1])]


def wait_for_line(process: subprocess.Popen[str], start: str) -> str:
    """Read a job's output until a line begins with ``start``. Returns that line."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if line.startswith(start):
            return line
    raise AssertionError(f"{process.args} ended without a line {start!r}:\n{seen}")


def kill(pids: list[int]) -> None:
    """Send SIGKILL to processes, some of which may have ended."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """Return all processes below this one, by their parents in /proc."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found: list[int] = []
    level = {pid}
    while level:
        level = {child for child, parent in parents.items() if parent in level}
        found += sorted(level)
    return found


def command_line(pid: int) -> str:
    """Return the command of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def peak_memory(pid: int) -> float:
    """Return the peak memory of a process in megabytes, without the memory of its parent before a fork."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6
