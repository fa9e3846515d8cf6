"""Report of one device's measurements: a table, what bounds each, and JSON.

figures of jobs/bench/device/benchmark.py, reasons of those that are missing -> terminal, benchmark-<device>.json
"""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from jobs.bench.report import Results, print_table, record_of, to_json

BUSY_PERCENT = 80.0  # from which on the device, and not the host, is the limit
ARITHMETIC_PERCENT = 40.0  # share of matmul from which on products are the limit


def write_device_report(results: Results, reasons: dict[str, str], began: datetime, path: Path) -> None:
    """Print the table, sentences and JSON, and write the JSON.

    Args:
        results: Figures.
        reasons: Reasons of the measurements that failed, by name.
        began: Time at which the benchmark began.
        path: File to write.
    """
    print_table(results)
    sentences = [*bounds(results), *(f"{name}: not measured: {reason}." for name, reason in reasons.items())]
    print("\n" + "\n".join(sentences))
    report = to_json({**record_of(results, began), "not measured": reasons, "sentences": sentences})
    path.write_text(report)
    print(f"\n{report}\n{path}")


def bounds(results: Results) -> Iterator[str]:
    """Yield a sentence for each measurement that is there, on what bounds it."""
    for name, unit in results.units.items():
        if f"{name}: device busy" in results.values:
            busy, kernels = results.last(f"{name}: device busy"), results.last(f"{name}: kernels")
            rate = f"{name}: {results.last(name):,.0f} {unit}"
            if name.startswith("train"):
                yield f"{rate}; {bound_of_step(busy, kernels, results.last(f'{name}: share of matmul'))}."
            else:
                yield f"{rate}; {bound_of_batch(results, name, busy, kernels)}."
    yield from bound_of_feed(results)
    for name in [name for name in results.values if name.startswith("predict job, ") and ": " not in name]:
        yield f"{name}: {results.last(name):,.0f} photos/s; {bound_of_job(results, name.split(', ')[1])}."


def bound_of_step(busy: float, kernels: float, share: float) -> str:
    """Return what bounds a training step.

    Args:
        busy: Percentage of the time that the device computes.
        kernels: Number of kernels of a step.
        share: Percentage of the FLOP/s of matrix products.
    """
    if busy < BUSY_PERCENT:
        return f"the host is the limit: it starts {kernels:,.0f} kernels a step, and the device is busy {busy:.0f} %"
    if share < ARITHMETIC_PERCENT:
        return f"the device is the limit, by memory traffic and small kernels: products reach {share:.0f} % of matmul"
    return f"the device's arithmetic is the limit, at {share:.0f} % of matmul"


def bound_of_batch(results: Results, name: str, busy: float, kernels: float) -> str:
    """Return what bounds the prediction of a batch: the host, or the stage that takes longest."""
    stages = {
        figure.removeprefix(f"{name}: "): results.last(figure)
        for figure, unit in results.units.items()
        if figure.startswith(f"{name}: ") and unit == "µs/photo"
    }
    longest = max(stages, key=lambda stage: stages[stage])
    sentence = f"the longest stage is {longest}, {100 * stages[longest] / sum(stages.values()):.0f} % of their sum"
    if busy < BUSY_PERCENT:
        sentence += f"; the device waits for the host, which starts {kernels:,.0f} kernels: it is busy {busy:.0f} %"
    return sentence


def bound_of_feed(results: Results) -> Iterator[str]:
    """Yield whether the feed or the training step is the limit, if both were measured."""
    steps = [name for name, unit in results.units.items() if unit == "samples/s"]
    feed = next((name for name, unit in results.units.items() if unit == "rows/s"), None)
    if not feed or not steps:
        return
    fastest = max(steps, key=results.last)
    limit = "the step is the limit" if results.last(feed) > results.last(fastest) else "the feed is the limit"
    yield f"{feed}: {results.last(feed):,.0f} rows/s, for {results.last(fastest):,.0f} of {fastest}; {limit}."


def bound_of_job(results: Results, photos: str) -> str:
    """Return whether the predict job is bounded by its tasks on CPUs or by the device."""
    tasks, device = (results.last(f"predict, {photos}, {part}") for part in ("tasks", "guided"))
    limit = "tasks on the CPU cores are" if tasks < device else "the device is"
    return f"{limit} the limit: tasks alone would make {tasks:,.0f}, the device {device:,.0f}"
