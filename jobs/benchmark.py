"""Measure this machine's speed: the network and every stage alone, the jobs, and scripts that a user would write.

    photos, pairs -> copies under <output>/scratch, as many as a measurement needs
    rounds of measurements, each in processes of its own, one after another -> medians and spreads
    -> a table and a few sentences on the terminal; <output>/benchmark.json, <output>/benchmark.svg

The network alone is the limit of both jobs. Their overhead is measured with the network taken out, as CPU time of all
their processes, Ray's included. A noisy machine harms all measurements of a round alike, so ratios are taken within a
round. To measure a GPU node of a cluster, run the benchmark there.

With --device it measures one device instead, for --minutes: training steps, predicting by stage, and both jobs; see
jobs/bench/device/benchmark.py.
"""

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

import torch

from jobs.bench import network, scripts
from jobs.bench.device.benchmark import DeviceBenchmark, find_device, plan_of, run_in_time
from jobs.bench.device.report import write_device_report
from jobs.bench.job_runs import run_predict, run_train
from jobs.bench.loop import LoopRates
from jobs.bench.processes import run_fresh
from jobs.bench.report import Results, write_benchmark
from jobs.bench.stages import measure_stages
from jobs.bench.workload import Workload, collection_name, link_copies, prepare
from jobs.common import config
from jobs.common.cli import run_job
from jobs.common.machine import usable_cores
from matting.data.dataset import PairOptions, open_dataset
from matting.inference.predictor import Refine
from matting.nn.precision import fastest_float, fastest_number_format
from matting.storage.uri import absolute_uri, is_local, split_uri

REFINES: tuple[Refine, ...] = ("none", "guided")  # what is compared everywhere


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure the speed of this machine.

    Args:
        data: URI of raw pairs to train on; drawn ones by default.
        images: URI of a folder of photos to predict, or several with commas between, the ones with larger photos last;
            by default drawn photos of 178×218 and 600×800.
        checkpoint: URI of a checkpoint folder, whose network predicts, and is trained anew by the baseline's recipe.
            The default is an untrained network of the baseline's shape; its mattes are noise, so refining and encoding
            them takes longer than usual.
        output: URI of a local folder for results, and for scratch files, which are removed at the end.
        rounds: Number of times that everything is measured.
        seconds: Duration of one measurement, start-up excluded.
        sizes: Numbers of photos in the collections of which overhead per photo is compared, and throughput with a plain
            loop of the job's own functions.
        device: Device to measure instead of the machine, on drawn people: "gpu" (the first one) or "cpu".
        minutes: Duration of the whole benchmark of a device.
    """

    data: str | None = None
    images: str | None = None
    checkpoint: str | None = None
    output: str = "benchmark"
    rounds: int = 3
    seconds: float = 10.0
    sizes: tuple[int, ...] = (5_000, 50_000)
    device: Literal["cpu", "gpu"] | None = None
    minutes: float = 8.0

    def __post_init__(self) -> None:
        if self.minutes <= 0:
            raise ValueError(f"--minutes must be more than 0, is {self.minutes:g}")
        if self.device and (self.data or self.images or self.checkpoint):
            raise ValueError("--device measures drawn people: leave out --data, --images and --checkpoint")
        if self.rounds < 1 or self.seconds <= 0 or not self.sizes or min(self.sizes) < 1:
            raise ValueError("--rounds, --seconds and --sizes must be more than 0")
        if not is_local(self.output):
            raise ValueError(f"--output must be a local folder, is {self.output!r}")
        names = [collection_name(uri) for uri in (self.images or "").split(",")]
        if len(set(names)) < len(names):
            raise ValueError(f"--images need folders of different names, by which their figures are known; got {names}")


def main(argv: Sequence[str]) -> None:
    """Prepare the workload, measure everything in rounds, and write the results."""
    options = config.parse(BenchmarkConfig, argv)
    os.environ.pop("RAY_ADDRESS", None)  # the jobs must start a cluster on this machine
    output = Path(absolute_uri(split_uri(options.output)[1]))
    if options.device:
        measure_device(options.device, 60 * options.minutes, output)
        return
    output.mkdir(parents=True, exist_ok=True)
    results, began = Results(), datetime.now(UTC)
    try:
        work = prepare(options.data, options.images, options.checkpoint, output / "scratch")
        for number in range(options.rounds):
            print(f"\nRound {number + 1} of {options.rounds}", flush=True)
            for benchmark in (bench_network, bench_stages, bench_predict, bench_scripts, bench_train, bench_sizes):
                benchmark(results, work, options)
    finally:
        shutil.rmtree(output / "scratch", ignore_errors=True)
    write_benchmark(results, began, output)


def measure_device(name: str, seconds: float, output: Path) -> None:
    """Measure a device, and write the results.

    Raises:
        NoGpuError: torch cannot compute on a GPU of this machine.
    """
    began, deadline = datetime.now(UTC), time.monotonic() + seconds
    device = find_device(name)
    scratch = output / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    bench = DeviceBenchmark(device, plan_of(device), scratch)
    try:
        reasons = run_in_time(list(bench.measurements()), deadline, device)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    write_device_report(bench.results, reasons, began, output / f"benchmark-{name}.json")


def bench_network(results: Results, work: Workload, options: BenchmarkConfig) -> None:
    """Measure the limits: matrix products, and the network alone in every layout of processes and threads."""
    cores, seconds = usable_cores(), options.seconds / 4
    layouts = [(1, cores)] if torch.cuda.is_available() or cores == 1 else [(1, cores), (cores, 1)]
    device = network.default_device()
    fastest, fastest_of_floats = fastest_number_format(device), fastest_float(device)
    photo_flops, sample_flops = network.count_flops(work.checkpoint)
    limits = {
        number_format: max(
            run_fresh(network.matmul_flops, threads, seconds, number_format, processes=processes)
            for processes, threads in layouts
        )
        for number_format in dict.fromkeys((fastest, fastest_of_floats))
    }
    for number_format, value in limits.items():
        results.add(f"matmul, {number_format}", "GFLOP/s", value / 1e9)
    for name, unit, flops, number_format, function, arguments in (
        ("network alone, predicting", "photos/s", photo_flops, fastest, network.forward_rate, (fastest,)),
        (
            "network alone, predicting, float",
            *("photos/s", photo_flops, fastest_of_floats, network.forward_rate, (fastest_of_floats,)),
        ),
        ("network alone, training", "samples/s", sample_flops, fastest_of_floats, network.train_step_rate, ()),
    ):
        rates = {
            (processes, threads): run_fresh(
                function, work.checkpoint, threads, seconds, *arguments, processes=processes
            )
            for processes, threads in layouts
        }
        for (processes, threads), value in rates.items():
            results.add(f"{name}, {processes} × {threads} threads", unit, value)
        results.add(name, unit, max(rates.values()))
        results.add(f"{name}, share of matmul", "%", 100 * flops * results.last(name) / limits[number_format])
    rate = run_fresh(network.eager_rate, work.checkpoint, cores, seconds)
    results.add("network alone, predicting, eager fp32", "photos/s", rate)


def bench_stages(results: Results, work: Workload, options: BenchmarkConfig) -> None:
    """Measure every stage except the network, one at a time."""
    for collection, photos in work.photos.items():
        uris = [str(path) for path in photos[:32]]
        for name, value in run_fresh(measure_stages, uris, work.checkpoint, options.seconds / 2).items():
            results.add(f"stage, {collection}: {name}", "CPU-ms", value)


def bench_predict(results: Results, work: Workload, options: BenchmarkConfig) -> None:
    """Measure the predict job by size of photos and by options, and its overhead."""
    limit = results.last("network alone, predicting")
    for number, (collection, photos) in enumerate(work.photos.items()):
        folder = link_copies(photos, max(64, int(1.25 * options.seconds * limit)), work.scratch / "photos")
        variants = {"none": ["--refine=none"], "guided": ["--refine=guided"]}
        if number == 0:
            variants |= {
                "guided, cutouts": ["--refine=guided", "--write=cutout"],
                "none, 1 worker": ["--refine=none", "--workers=1"],
                "mirrored": ["--refine=mirrored"],
            }
        for variant, arguments in variants.items():
            name = f"predict, {collection}, {variant}"
            run = run_predict(work, folder, *arguments)
            results.add(name, "photos/s", run.photos_per_second)
            results.stage_percent[name] = run.stage_percent
            if number == 0 and variant == "none":
                results.add("predict, command to first photo", "s", run.first_photo_seconds)
                results.add("predict, start of Ray", "s", run.ray_start_seconds)
        folder = link_copies(photos, max(64, int(500 * options.seconds)), work.scratch / "photos")
        for refine in REFINES:
            run = run_predict(work, folder, f"--refine={refine}", without_network=True)
            results.add(f"predict overhead, {collection}, {refine}", "CPU-ms", run.cpu_ms)


def bench_scripts(results: Results, work: Workload, options: BenchmarkConfig) -> None:
    """Measure the scripts that a user would write."""
    count = max(64, int(options.seconds * results.last("network alone, predicting") / 4))
    photos = [str(path) for path in islice(cycle(next(iter(work.photos.values()))), count)]
    output = work.scratch / "script"
    output.mkdir(exist_ok=True)
    for name, script in (("plain loop", scripts.plain_loop), ("DataLoader loop", scripts.loader_loop)):
        results.add(f"script, predicting, {name}", "photos/s", run_fresh(script, photos, work.checkpoint, str(output)))
    for name, uri in (("packed", work.packed), ("raw", work.raw)):
        pairs = open_dataset(uri, PairOptions())
        rate = run_fresh(scripts.loader_training, pairs, work.checkpoint, options.seconds)
        results.add(f"script, training, DataLoader, {name}", "samples/s", rate)


def bench_train(results: Results, work: Workload, options: BenchmarkConfig) -> None:
    """Measure the train job on packed and raw pairs and with several workers, and its overhead."""
    workers = torch.cuda.device_count() or usable_cores()
    for name, uri, cache, count in (
        ("packed", work.packed, "auto", 1),
        ("raw", work.raw, "auto", 1),
        ("raw, no cache", work.raw, "off", 1),
        (f"packed, {workers} workers", work.packed, "auto", workers),
    ):
        run = run_train(work, uri, 4 * options.seconds, f"--cache={cache}", workers=count)
        results.add(f"train, {name}", "samples/s", run.samples_per_second)
        results.add(f"train, {name}, waiting for data", "%", 100 * run.waiting)
        results.add(f"train, {name}, start of Ray to first batch", "s", run.first_batch_seconds)
        if name == "packed":  # right between the two jobs that it is compared with: a shared machine's speed drifts
            rate = run_fresh(network.train_step_rate, work.checkpoint, usable_cores(), options.seconds)
            results.add("network alone, training, between jobs", "samples/s", rate)
    run = run_train(work, work.packed, options.seconds, without_network=True)
    results.add("train overhead, packed", "CPU-ms", run.cpu_ms)


def bench_sizes(results: Results, work: Workload, options: BenchmarkConfig) -> None:
    """Measure collections of several sizes: the overhead per photo, peak memory, and the job beside a plain loop."""
    for size in options.sizes:
        folder = link_copies(next(iter(work.photos.values())), size, work.scratch / "photos")
        run = run_predict(work, folder, "--refine=none", without_network=True)
        results.add(f"predict overhead, {size:,} photos", "CPU-ms", run.cpu_ms)
        results.add(f"predict overhead, {size:,} photos, peak memory", "MB", run.peak_megabytes)
        if not torch.cuda.is_available():
            for collection in work.photos:
                compare_with_loop(results, work, options, collection, size)


def compare_with_loop(results: Results, work: Workload, options: BenchmarkConfig, collection: str, size: int) -> None:
    """Measure the predict job on CPUs, and before and after it a plain loop of the same functions, on these photos."""
    folder = link_copies(work.photos[collection], size, work.scratch / "photos")
    number_format = fastest_number_format(torch.device("cpu"))
    for refine in REFINES:
        loop = LoopRates(folder, work.checkpoint, refine, number_format, options.seconds)
        loop.measure()
        run = run_predict(work, folder, f"--refine={refine}")
        loop.measure()
        for job, measured in (("predict", run), ("pipeline in a loop", loop)):
            name = f"{job}, {collection}, {refine}, {size:,} photos"
            results.add(name, "photos/s", measured.photos_per_second)
            results.add(f"{name}, cost", "CPU-ms", measured.cpu_ms)


if __name__ == "__main__":
    run_job(main)
