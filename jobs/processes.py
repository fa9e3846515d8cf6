"""Processes to measure in: functions run in fresh ones, and commands watched to their end.

    alone   a function of jobs/measure.py, in one fresh process or in many at once -> what it returns, added up
    watch   a command -> what it said; CPU seconds and memory of all its processes over time

Knows nothing of what is measured.
"""

import multiprocessing
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from jobs import cluster, measure

WATCHED_EVERY = 0.5  # seconds


def pool(processes: int) -> ProcessPoolExecutor:
    """Fresh processes, whose measurements begin together."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    return ProcessPoolExecutor(processes, mp_context=context, initializer=measure.begin_together, initargs=(barrier,))


def alone(function: Callable[..., Any], *arguments: Any, processes: int = 1) -> Any:
    """What a function of `measure` returns, added up over so many processes that run it at once."""
    with pool(processes) as fresh:
        found = [future.result() for future in [fresh.submit(function, *arguments) for _ in range(processes)]]
    return sum(found) if processes > 1 else found[0]


@dataclass(frozen=True)
class Watched:
    """A command that ran. Of all its processes together: CPU seconds so far and megabytes of their own, at times."""

    said: str
    began: float
    samples: list[tuple[float, float, float]]  # seconds since the epoch, CPU seconds, megabytes

    def cpu(self, since: float, until: float) -> float:
        """CPU seconds between two times."""
        times, used, _ = zip(*self.samples, strict=True)
        return float(np.interp(until, times, used) - np.interp(since, times, used))

    @property
    def megabytes(self) -> float:
        """At the worst moment."""
        return max(sample[2] for sample in self.samples)


def watch(command: Sequence[str]) -> Watched:
    """Run a command to its end.

    Raises:
        cluster.JobError: it failed.
    """
    began = time.time()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    used: dict[psutil.Process, float] = {}
    samples = [(began, 0.0, 0.0)]
    said = ""
    while True:
        memory = 0.0
        for each in [process, *process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                times, size = each.cpu_times(), each.memory_info()
                used[each] = times.user + times.system
                memory += (size.rss - size.shared) / 1e6
        samples.append((time.time(), sum(used.values()), memory))
        try:
            said, _ = process.communicate(timeout=WATCHED_EVERY)
            break
        except subprocess.TimeoutExpired:
            continue
    if process.returncode:
        raise cluster.JobError(f"{' '.join(command)} failed:\n{said}")
    return Watched(said, began, samples)
