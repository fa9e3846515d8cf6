"""Timers for code that is called again and again inside one process.

    calls_per_second   wall time, over all cores          -> throughput
    rate_of_calls      the same, and the CPU time it took -> throughput and cost
    cpu_ms_per_call    CPU time of this process           -> cost

Several processes that measure at once start together: each waits in `rate_of_calls` for the others.
"""

import itertools
import time
from collections.abc import Callable, Iterable
from multiprocessing.synchronize import Barrier
from typing import NamedTuple

WARM_UP_CALLS = 2


class Rate(NamedTuple):
    """Rate of calls in one process."""

    per_second: float
    cores: float  # CPU seconds per second, over all threads


_start_barrier: Barrier | None = None


def set_start_barrier(barrier: Barrier) -> None:
    """Make measurements of this process wait at a barrier before they start. Initializer of a process pool."""
    global _start_barrier
    _start_barrier = barrier


def calls_per_second(calls: Iterable[Callable[[], object]], seconds: float) -> float:
    """Return the number of calls per second; see :func:`rate_of_calls`."""
    return rate_of_calls(calls, seconds).per_second


def rate_of_calls(calls: Iterable[Callable[[], object]], seconds: float) -> Rate:
    """Return the rate of calls, after two calls to warm up.

    Args:
        calls: Functions to call in turn, again and again.
        seconds: Duration of the measurement.
    """
    endless = itertools.cycle(calls)
    for call in itertools.islice(endless, WARM_UP_CALLS):
        call()
    if _start_barrier:
        _start_barrier.wait()
    began, cpu_began, done = time.perf_counter(), time.process_time(), 0
    while (elapsed := time.perf_counter() - began) < seconds:
        next(endless)()
        done += 1
    return Rate(done / elapsed, (time.process_time() - cpu_began) / elapsed)


def cpu_ms_per_call(call: Callable[[int], object], count: int, seconds: float) -> float:
    """Return the CPU milliseconds of one call, after one call to warm up.

    Args:
        call: Function of an item's index.
        count: Number of items; the indices 0 to count - 1 are used again and again.
        seconds: CPU time of the measurement.
    """
    call(0)
    began, done = time.process_time(), 0
    while (elapsed := time.process_time() - began) < seconds:
        call(done % count)
        done += 1
    return 1000 * elapsed / done
