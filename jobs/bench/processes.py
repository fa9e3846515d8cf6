"""Processes for measurements: functions run in fresh ones, and commands monitored until they end.

    run_fresh   a function, in one fresh process or in several at once -> its results, added up
    monitor     a command -> its output, and CPU time and memory of all its processes over time

This module knows nothing about what is measured.
"""

import math
import multiprocessing
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]  # psutil has no types

from jobs.bench import timing
from jobs.common.cli import JobError

SAMPLE_SECONDS = 0.5  # between two samples of a monitored command


def fresh_pool(processes: int) -> ProcessPoolExecutor:
    """Return a pool of fresh processes, whose measurements start together."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    return ProcessPoolExecutor(processes, mp_context=context, initializer=timing.set_start_barrier, initargs=(barrier,))


def run_fresh(
    function: Callable[..., Any], *arguments: Any, processes: int = 1, environment: Mapping[str, str] | None = None
) -> Any:
    """Call a function in fresh processes and return its result; with several processes, the sum of their results.

    Args:
        function: Function at the top level of a module.
        arguments: Arguments of the call, the same in each process.
        processes: Number of processes that call the function at once.
        environment: Variables that the processes start with, beside those of this process.
    """
    with environment_with(environment or {}), fresh_pool(processes) as pool:
        values = [future.result() for future in [pool.submit(function, *arguments) for _ in range(processes)]]
    return sum(values) if processes > 1 else values[0]


@contextmanager
def environment_with(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables during a ``with``, for processes that start meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@dataclass(frozen=True)
class MonitoredCommand:
    """Record of a command that ended well, with samples over all its processes together."""

    output: str  # standard output and error
    began: float  # seconds since the epoch
    samples: list[tuple[float, float, float]]  # seconds since the epoch, CPU seconds so far, unshared megabytes

    def cpu_seconds(self, start: float, end: float) -> float:
        """Return the CPU seconds used between two times, which are seconds since the epoch."""
        times, used, _ = zip(*self.samples, strict=True)
        return float(np.interp(end, times, used) - np.interp(start, times, used))

    @property
    def peak_megabytes(self) -> float:
        """Peak memory in megabytes, shared memory excluded."""
        return max(sample[2] for sample in self.samples)


def monitor(command: Sequence[str], limit_seconds: float = math.inf) -> MonitoredCommand:
    """Run a command until it ends, and sample the CPU time and memory of its processes.

    Args:
        command: Program and arguments.
        limit_seconds: Time after which the command and its processes are killed.

    Raises:
        JobError: The command failed, or took longer. The message contains its output.
    """
    began = time.time()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    used: dict[psutil.Process, float] = {}
    samples = [(began, 0.0, 0.0)]
    while True:
        memory = 0.0
        family = [process, *process.children(recursive=True)]
        for each in family:
            with suppress(psutil.NoSuchProcess):
                times, size = each.cpu_times(), each.memory_info()
                used[each] = times.user + times.system
                memory += (size.rss - size.shared) / 1e6
        samples.append((time.time(), sum(used.values()), memory))
        try:
            output, _ = process.communicate(timeout=SAMPLE_SECONDS)
            break
        except subprocess.TimeoutExpired:
            if time.time() - began < limit_seconds:
                continue
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        output, _ = process.communicate()
        raise JobError(f"{' '.join(command)} took longer than {limit_seconds:g} s:\n{output}")
    if process.returncode:
        raise JobError(f"{' '.join(command)} failed:\n{output}")
    return MonitoredCommand(output, began, samples)
