"""Running a job as a user does: a process of its own, with its own local cluster."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]


def started(job: str, *arguments: str) -> subprocess.Popen[str]:
    """``python jobs/<job>.py`` with these arguments. Both outputs are in stdout."""
    command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


@contextmanager
def running(job: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The same, killed at the end if it still runs."""
    with started(job, *arguments) as process:
        try:
            yield process
        finally:
            process.kill()


def run(job: str, *arguments: str) -> tuple[int, str]:
    """Exit code and output."""
    with running(job, *arguments) as process:
        output, _ = process.communicate(timeout=240)
        return process.returncode, output


def wait_for_line(process: subprocess.Popen[str], start: str) -> str:
    """Read its output until a line starts so."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if line.startswith(start):
            return line
    raise AssertionError(f"{process.args} ended without a line {start!r}:\n{seen}")


def kill(pids: list[int]) -> None:
    """SIGKILL; those that are gone already do not matter."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """All processes below this one, by their parents in /proc."""
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
    """As /proc has it; empty for one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def peak_memory(pid: int) -> float:
    """The most memory that a process ever had, in megabytes. Unlike getrusage's, it does not count what its parent had
    when it was forked."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6
