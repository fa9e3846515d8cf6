"""Jobs as a user runs them, each a process with a local cluster of its own; and their processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
