"""Timers for work that a device does while the host goes on: by CUDA events on a GPU, by the clock on a CPU.

    ms_per_call    a call, again and again -> milliseconds of one, all its work on the device included
    kernels_of     a call, once            -> number of kernels that it starts, and the time that they take
    peak_gigabytes since forget_peak       -> memory

Work that waits for the host leaves the device idle: then kernels take less time than the call.
"""

import resource
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

MAX_CALLS = 10_000


class Kernels(NamedTuple):
    """Kernels of a call; on a CPU, torch's operators."""

    number: int
    ms: float  # milliseconds that they took, one after another


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ms_per_call(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return the milliseconds of one call, after two calls to warm up.

    Args:
        call: Function that gives the device work.
        device: The device.
        seconds: Duration of everything, warm-up included; but there is at least one call after the warm-up.
    """
    began = time.perf_counter()
    call()  # chooses algorithms and takes memory
    synchronize(device)
    second = time.perf_counter()
    call()
    synchronize(device)
    warm = time.perf_counter()
    count = min(MAX_CALLS, max(1, int((seconds - (warm - began)) / max(warm - second, 1e-6))))
    if device.type != "cuda":
        for _ in range(count):
            call()
        return 1000 * (time.perf_counter() - warm) / count
    start: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch does not annotate it
    end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # as above
    start.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / count


def kernels_of(call: Callable[[], object], device: torch.device) -> Kernels:
    """Return the kernels that a call runs on the device, copies included, by torch's profiler."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    synchronize(device)
    with profile(activities=activities) as profiler:
        call()
        synchronize(device)
    kind = "CUDA" if on_gpu else "CPU"
    microseconds = [
        event.self_device_time_total if on_gpu else event.self_cpu_time_total
        for event in profiler.events() or []
        if event.device_type.name == kind and not event.is_user_annotation
    ]
    return Kernels(len(microseconds), sum(microseconds) / 1000)


def forget_peak(device: torch.device) -> None:
    """Give cached memory back, and let `peak_gigabytes` begin anew; on a CPU it cannot."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gigabytes(device: torch.device) -> float:
    """Return the largest amount of the GPU's memory that tensors have held; on a CPU, of the process's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
