"""How fast this machine is on these data: the network and every stage alone, the jobs, and what a user would write.

    photos, pairs -> copies under <output>/scratch, as many as a measurement wants
    rounds of measurements, each in processes of its own, in turn -> medians and spreads
    -> a table and a few sentences on the terminal; <output>/benchmark.json, <output>/benchmark.svg

What the network alone does is the limit of both jobs. What they spend beside it is measured with the network taken out,
in CPU time of all their processes, Ray's included. A noisy machine harms all measurements of a round alike, so ratios
are taken within a round. It measures one machine, on which it runs: to measure a GPU node of a cluster, run it there.
"""

import json
import os
import re
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs import cluster, config, measure
from jobs.findings import Results, tell
from jobs.processes import alone, watch
from jobs.workload import JOBS, Workload, collection_name, copies, prepare
from matting import checkpoint, ledger, storage
from matting.collection import PairOptions, open_pairs
from matting.devices import fastest_float, fastest_format

WITHOUT_NETWORK = ["-c", "from jobs import cluster, idle; cluster.run(idle.main)"]


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure speed.

    Args:
        data: URI of raw pairs to train on; drawn ones by default.
        images: URI of a folder of photos to predict, the larger collections after the first with commas between; drawn
            ones of 178×218 and 600×800 by default.
        checkpoint: URI of a checkpoint folder, whose network predicts, and is trained anew by the seed's recipe; by
            default an untrained one of the seed's shape, whose mattes are noise, so that refining and encoding them
            takes longer than it would.
        output: URI of a local folder for results and for scratch files, which are removed at the end.
        rounds: how often everything is measured.
        seconds: that one measurement takes, start-up apart.
        sizes: of collections whose cost per photo is compared, without the network.
    """

    data: str | None = None
    images: str | None = None
    checkpoint: str | None = None
    output: str = "benchmark"
    rounds: int = 3
    seconds: float = 10.0
    sizes: tuple[int, ...] = (500, 5_000, 50_000)

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.seconds <= 0 or not self.sizes or min(self.sizes) < 1:
            raise ValueError("--rounds, --seconds and --sizes must be more than 0")
        if not storage.is_local(self.output):
            raise ValueError(f"--output must be a local folder, is {self.output!r}")
        names = [collection_name(uri) for uri in (self.images or "").split(",")]
        if len(set(names)) < len(names):
            raise ValueError(f"--images are told apart by their folders' names, which have to differ: {names}")


def main(argv: Sequence[str]) -> None:
    """Prepare, measure, tell."""
    options = config.parse(BenchmarkConfig, argv)
    os.environ.pop("RAY_ADDRESS", None)  # jobs start a cluster on this machine
    output = Path(options.output).absolute()
    output.mkdir(parents=True, exist_ok=True)
    results = Results()
    began = datetime.now(UTC)
    try:
        work = prepare(options.data, options.images, options.checkpoint, output / "scratch")
        for number in range(options.rounds):
            print(f"\nRound {number + 1} of {options.rounds}", flush=True)
            for measurement in (network, stages, predictions, scripts, trainings, collections):
                measurement(results, work, options)
    finally:
        shutil.rmtree(output / "scratch", ignore_errors=True)
    tell(results, began, output)


# How it is measured ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Predicted:
    """What a prediction did. Steady is it between a tenth and nine tenths of its photos."""

    photos_a_second: float
    cpu_ms: float  # a photo, of all processes
    first: float  # seconds from the command to the first photo
    ray: float  # seconds of them that Ray took to start
    megabytes: float
    shares: dict[str, float]


def predicted(work: Workload, photos: str, *options: str, without_network: bool = False) -> Predicted:
    """A prediction of a folder of photos, from nothing."""
    output = str(work.scratch / "mattes")
    shutil.rmtree(output, ignore_errors=True)
    job = [*WITHOUT_NETWORK, "predict"] if without_network else [str(JOBS / "predict.py")]
    watched = watch(
        [sys.executable, *job, f"--checkpoint={work.checkpoint}", f"--images={photos}", f"--output={output}", *options]
    )
    times = np.sort(ledger.read(output, ["finished_at"])["finished_at"].to_numpy().astype("datetime64[us]"))
    seconds = times.astype(np.int64) / 1e6
    since, until = (int(part * (len(seconds) - 1)) for part in (0.1, 0.9))
    count, span = max(1, until - since), (seconds[since], seconds[until])
    ray = re.search(r"Ray's (\d+\.\d)", watched.said)
    shares = re.search(r"Time went to (.*)\.", watched.said)
    assert ray
    assert shares
    return Predicted(
        photos_a_second=count / max(span[1] - span[0], 1e-6),
        cpu_ms=1000 * watched.cpu(*span) / count,
        first=seconds[0] - watched.began,
        ray=float(ray[1]),
        megabytes=watched.megabytes,
        shares={stage: float(share) for stage, share in re.findall(r"(\w+) (\d+) %", shares[1])},
    )


@dataclass(frozen=True)
class Trained:
    """What a training did."""

    samples_a_second: float  # after the first epoch
    cpu_ms: float  # a sample, of all processes, after the first epoch, validation included
    first_batch: float  # seconds from when Ray was up
    waiting: float  # share of the time in which the step waited for data


def trained(
    work: Workload, data: str, seconds: float, *options: str, workers: int = 1, without_network: bool = False
) -> Trained:
    """A training, from nothing, until so many seconds of steps."""
    output = work.scratch / "runs"
    shutil.rmtree(output, ignore_errors=True)
    job = [*WITHOUT_NETWORK, "train"] if without_network else [str(JOBS / "train.py")]
    loaded = checkpoint.load(work.checkpoint)
    shape = {"size": loaded.size, **asdict(loaded.model.config)}  # of the network whose step is measured alone
    watched = watch(
        [
            *(sys.executable, *job, "--recipe=seed", *(f"--{name}={value}" for name, value in shape.items())),
            *(f"--data={data}", f"--output={output}", "--name=run"),
            *("--epochs=100000", f"--minutes={seconds / 60}", f"--batch={measure.TRAIN_BATCH}"),
            *(f"--workers={workers}", *options),
        ]
    )
    lines = (output / "run/metrics.jsonl").read_text().splitlines()
    epochs = [row for row in map(json.loads, lines) if "val_mad" in row]
    later = epochs[1:] or epochs
    # An epoch without steps is over before two looks at the processes: of one epoch, all that led to it counts.
    since, steps = (epochs[0]["time"], epochs[0]["step"]) if len(epochs) > 1 else (watched.began, 0)
    batch = measure.TRAIN_BATCH * workers
    samples = (epochs[-1]["step"] - steps) * batch
    first = re.search(r"first batch after (\d+\.\d) s", watched.said)
    assert first
    return Trained(
        samples_a_second=statistics.median(row["samples_per_second"] for row in later),
        cpu_ms=1000 * watched.cpu(since, epochs[-1]["time"]) / samples,
        first_batch=float(first[1]),
        waiting=statistics.median(waiting_shares(epochs, batch)),
    )


def waiting_shares(epochs: Sequence[dict[str, Any]], batch: int) -> list[float]:
    """Of each epoch's time, that its steps, of a batch over all workers, waited for data; but for the first, if there
    are more."""
    steps = np.diff([0, *(row["step"] for row in epochs)])
    shares = [
        row["waiting"] * row["samples_per_second"] / (count * batch) for row, count in zip(epochs, steps, strict=True)
    ]
    return shares[1:] or shares


# What is measured -----------------------------------------------------------------------------------------------------


def network(results: Results, work: Workload, options: BenchmarkConfig) -> None:
    """The limits: arithmetic, and the network with nothing around it."""
    cores, seconds = os.cpu_count() or 1, options.seconds / 4
    layouts = [(1, cores)] if torch.cuda.is_available() or cores == 1 else [(1, cores), (cores, 1)]
    fastest, floats = fastest_format(measure.device()), fastest_float(measure.device())
    of_photo, of_sample = measure.flops(work.checkpoint)
    products = {
        number_format: max(
            alone(measure.product, threads, seconds, number_format, processes=processes)
            for processes, threads in layouts
        )
        for number_format in dict.fromkeys((fastest, floats))
    }
    for number_format, value in products.items():
        results.add(f"matrix products, {number_format}", "GFLOP/s", value / 1e9)
    for what, unit, flops, number_format, function, arguments in (
        ("network alone, predicting", "photos/s", of_photo, fastest, measure.forward, (fastest,)),
        ("network alone, predicting, floats", "photos/s", of_photo, floats, measure.forward, (floats,)),
        ("network alone, training", "samples/s", of_sample, floats, measure.step, ()),
    ):
        found = {
            (processes, threads): alone(function, work.checkpoint, threads, seconds, *arguments, processes=processes)
            for processes, threads in layouts
        }
        for (processes, threads), value in found.items():
            results.add(f"{what}, {processes} × {threads} threads", unit, value)
        results.add(what, unit, max(found.values()))
        share = 100 * flops * results.last(what) / products[number_format]
        results.add(f"{what}, of matrix products", "%", share)
    results.add("plain eager fp32", "photos/s", alone(measure.eager, work.checkpoint, cores, seconds))


def stages(results: Results, work: Workload, options: BenchmarkConfig) -> None:
    """Everything but the network, one by one."""
    for size, photos in work.photos.items():
        some = [str(path) for path in photos[:32]]
        for name, value in alone(measure.stages, some, work.checkpoint, options.seconds / 2).items():
            results.add(f"stage, {size}: {name}", "CPU-ms", value)


def predictions(results: Results, work: Workload, options: BenchmarkConfig) -> None:
    """The predict job, by size of photos, by options, and without its network."""
    limit = results.last("network alone, predicting")
    for number, (size, photos) in enumerate(work.photos.items()):
        folder = copies(photos, max(64, int(1.25 * options.seconds * limit)), work.scratch / "photos")
        variants = {"none": ["--refine=none"], "guided": ["--refine=guided"]}
        if number == 0:
            variants |= {
                "guided, cutouts": ["--refine=guided", "--write=cutout"],
                "none, 1 worker": ["--refine=none", "--workers=1"],
                "mirrored": ["--refine=mirrored"],
            }
        for name, arguments in variants.items():
            found = predicted(work, folder, *arguments)
            results.add(f"predict, {size}, {name}", "photos/s", found.photos_a_second)
            results.shares[f"predict, {size}, {name}"] = found.shares
            if number == 0 and name == "none":
                results.add("predict, command to first photo", "s", found.first)
                results.add("of which Ray's own start", "s", found.ray)
        folder = copies(photos, max(64, int(500 * options.seconds)), work.scratch / "photos")
        for refine in ("none", "guided"):
            found = predicted(work, folder, f"--refine={refine}", without_network=True)
            results.add(f"predict without network, {size}, {refine}", "CPU-ms", found.cpu_ms)


def scripts(results: Results, work: Workload, options: BenchmarkConfig) -> None:
    """What a user would write."""
    count = max(64, int(options.seconds * results.last("network alone, predicting") / 4))
    photos = [str(path) for path in islice(cycle(next(iter(work.photos.values()))), count)]
    output = work.scratch / "script"
    output.mkdir(exist_ok=True)
    for name, loop in (("plain loop", measure.plain_loop), ("DataLoader loop", measure.loader_loop)):
        results.add(f"script, predicting, {name}", "photos/s", alone(loop, photos, work.checkpoint, str(output)))
    for name, uri in (("packed", work.packed), ("raw", work.raw)):
        pairs = open_pairs(uri, PairOptions())
        value = alone(measure.loader_training, pairs, work.checkpoint, options.seconds)
        results.add(f"script, training, DataLoader, {name}", "samples/s", value)


def trainings(results: Results, work: Workload, options: BenchmarkConfig) -> None:
    """The train job, on packed and raw pairs, with more workers, and without its steps."""
    workers = torch.cuda.device_count() or os.cpu_count() or 1
    for name, uri, cache, count in (
        ("packed", work.packed, "auto", 1),
        ("raw", work.raw, "auto", 1),
        ("raw, not kept", work.raw, "off", 1),
        (f"packed, {workers} workers", work.packed, "auto", workers),
    ):
        found = trained(work, uri, 4 * options.seconds, f"--cache={cache}", workers=count)
        results.add(f"train, {name}", "samples/s", found.samples_a_second)
        results.add(f"train, {name}, waiting for data", "%", 100 * found.waiting)
        results.add(f"train, {name}, first batch after Ray is up", "s", found.first_batch)
        if name == "packed":  # between the two that it is compared with: minutes later a machine may be another's
            step = alone(measure.step, work.checkpoint, os.cpu_count() or 1, options.seconds)
            results.add("step alone, between trainings", "samples/s", step)
    found = trained(work, work.packed, options.seconds, without_network=True)
    results.add("train without network, packed", "CPU-ms", found.cpu_ms)


def collections(results: Results, work: Workload, options: BenchmarkConfig) -> None:
    """What a photo costs in collections of several sizes."""
    for size in options.sizes:
        folder = copies(next(iter(work.photos.values())), size, work.scratch / "photos")
        found = predicted(work, folder, "--refine=none", without_network=True)
        results.add(f"predict without network, {size:,} photos", "CPU-ms", found.cpu_ms)
        results.add(f"predict without network, {size:,} photos, memory", "MB", found.megabytes)


if __name__ == "__main__":
    cluster.run(main)
