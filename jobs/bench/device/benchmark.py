"""Measurement of one device within a limit of time: what training and predicting on it could reach, and what bounds it.

    drawn people -> matrix products and copies -> training steps by phase and batch -> predicting by stage
    -> the train job without its network, the predict job -> figures, and the reasons of what could not be measured

The time that is left is shared among the measurements to come, by weight. One that fails leaves a reason, and the
others go on.
"""

import gc
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from jobs.bench.device.predict import DrawnBatch, PredictFigures, draw_batch, measure_batch, measure_task
from jobs.bench.device.timing import forget_peak, ms_per_call
from jobs.bench.device.training import Recipe, StepFigures, matting_recipe, measure_step, phases
from jobs.bench.job_runs import run_predict, run_train
from jobs.bench.network import matmul, matmul_side
from jobs.bench.report import Results
from jobs.bench.workload import DRAWN_SIZES, Workload, draw_photos, draw_raw_pairs, link_copies, pack, save_untrained
from jobs.common.devices import NoGpuError, gpu_problem
from jobs.common.machine import usable_cores
from matting.inference.device_predictor import download, upload
from matting.inference.predictor import Refine
from matting.nn.precision import fastest_float

JOB_START_SECONDS = 30.0  # of a job's time that are not its work: Ray, GPU actors, the end
REFINES: tuple[Refine, ...] = ("none", "guided")


@dataclass(frozen=True)
class DevicePlan:
    """Extent of the measurements.

    Args:
        recipe: Recipe of network and trainer.
        batches: Numbers of samples in a training step.
        photo_sizes: Width and height of photos, by name.
        photos: Number of photos in a batch of a prediction, and of different photos of the jobs.
        pairs: Number of packed pairs of the feed.
        feed_batch: Number of rows in a batch of the feed.
        copied_bytes: Size of the arrays whose copies are timed.
    """

    recipe: Recipe = field(default_factory=matting_recipe)
    batches: tuple[int, ...] = (16, 64, 128, 256, 512)
    photo_sizes: dict[str, tuple[int, int]] = field(default_factory=lambda: DRAWN_SIZES)
    photos: int = 256
    pairs: int = 2_000
    feed_batch: int = 256
    copied_bytes: int = 1 << 28


@dataclass(frozen=True)
class Measurement:
    """One measurement.

    Args:
        name: Name, for the reason why it failed.
        weight: Share of the time, relative to the others'.
        run: Function of the seconds that it may take.
    """

    name: str
    weight: float
    run: Callable[[float], None]


def find_device(name: str) -> torch.device:
    """Return the device "cpu" or "gpu".

    Raises:
        NoGpuError: torch cannot compute on a GPU of this machine.
    """
    if name == "cpu":
        return torch.device("cpu")
    if problem := gpu_problem():
        raise NoGpuError(f"--device gpu needs a GPU that torch can compute on: {problem}.")
    return torch.device("cuda", 0)


def plan_of(device: torch.device) -> DevicePlan:
    """Return the extent that suits a device: on CPUs, larger batches only take longer."""
    return DevicePlan() if device.type == "cuda" else DevicePlan(batches=(8, 16, 32))


def run_in_time(measurements: list[Measurement], deadline: float, device: torch.device) -> dict[str, str]:
    """Run measurements one after another, and return the reasons of those that failed, by name.

    Args:
        measurements: Measurements; each gets its share of the time that is left when its turn comes.
        deadline: Time at which all shall be done, by `time.monotonic`.
        device: Device whose memory is given back after each.
    """
    reasons = dict[str, str]()
    for number, measurement in enumerate(measurements):
        left = deadline - time.monotonic()
        if left <= 0:
            reasons[measurement.name] = "no time was left; give more --minutes"
            continue
        try:
            forget_peak(device)
            measurement.run(left * measurement.weight / sum(later.weight for later in measurements[number:]))
        except Exception as error:  # any type: whatever fails, the others are worth their time on a rented machine
            first_line = (str(error).strip().splitlines() or [""])[0]
            reasons[measurement.name] = f"{type(error).__name__}: {first_line}"
            print(f"{measurement.name}: not measured: {reasons[measurement.name]}", flush=True)
        if measurement.name in reasons:
            gc.collect()  # tensors that the error's traceback held
    return reasons


class DeviceBenchmark:
    """All measurements of one device.

    Args:
        device: The device.
        plan: Extent of the measurements.
        scratch: Folder for whatever a measurement makes.

    Attributes:
        results: Figures so far.
    """

    def __init__(self, device: torch.device, plan: DevicePlan, scratch: Path) -> None:
        self.results = Results()
        self._device, self._plan, self._scratch = device, plan, scratch
        self._name = "gpu" if device.type == "cuda" else "cpu"
        self._format = fastest_float(device)
        self._peak = math.nan  # FLOP/s of matrix products
        self._photos = dict[str, DrawnBatch]()

    def measurements(self) -> Iterator[Measurement]:
        """Yield the measurements, those first that the later ones refer to, and the jobs last."""
        yield Measurement("matrix products", 2, self._matmul)
        yield Measurement("copies", 2, self._copies)
        for phase in phases(self._plan.recipe):
            for batch in self._plan.batches:
                yield Measurement(f"train, {phase}, batch {batch}", 2, partial(self._step, phase, batch))
        for photos in self._plan.photo_sizes:
            yield Measurement(f"drawing {photos}", 1, partial(self._draw, photos))
            for refine in REFINES:
                yield Measurement(f"predict, {photos}, {refine}", 3, partial(self._predict, photos, refine))
            yield Measurement(f"predict, {photos}, tasks", 2, partial(self._task, photos))
        yield Measurement("feed", 20, self._feed)
        for photos in self._plan.photo_sizes:
            yield Measurement(f"predict job, {photos}", 15, partial(self._job, photos))

    def _matmul(self, seconds: float) -> None:
        side = matmul_side(self._device)
        for number_format in dict.fromkeys((self._format, "fp32")):
            multiply = matmul(self._device, number_format, side)
            flops = 2 * side**3 / ms_per_call(multiply, self._device, seconds / 2) * 1e3
            self.results.add(f"matmul, {number_format}", "TFLOP/s", flops / 1e12)
            if number_format == self._format:
                self._peak = flops

    def _copies(self, seconds: float) -> None:
        array = np.zeros(self._plan.copied_bytes, np.uint8)
        tensor, one = upload(array, self._device), torch.zeros(1, device=self._device)
        gigabytes = len(array) / 1e9
        copies: dict[str, tuple[Callable[[], object], float]] = {
            "copy on the device, read and write": (tensor.clone, 2 * gigabytes)
        }
        if self._device.type == "cuda":
            copies["copy to the device, through pinned memory"] = (lambda: upload(array, self._device), gigabytes)
            copies["copy from the device"] = (lambda: download(tensor), gigabytes)
        for name, (call, moved) in copies.items():
            self.results.add(name, "GB/s", 1000 * moved / ms_per_call(call, self._device, seconds / 4))
        milliseconds = ms_per_call(lambda: one.add_(1), self._device, seconds / 4)
        self.results.add("start of an operation", "µs", 1000 * milliseconds)

    def _step(self, phase: str, batch: int, seconds: float) -> None:
        training, side = phases(self._plan.recipe)[phase]
        found = measure_step(self._plan.recipe, training, side, batch, self._device, seconds / 2)
        name = f"train, {phase}, batch {batch}"
        self.results.add(name, "samples/s", 1000 * batch / found.ms)
        self.results.add(f"{name}: step", "ms", found.ms)
        self.results.add(f"{name}: share of matmul", "%", self._share_of_peak(found.flops, found.ms))
        self._add_use(name, found)

    def _draw(self, photos: str, _: float) -> None:
        size, recipe = self._plan.photo_sizes[photos], self._plan.recipe
        self._photos[photos] = draw_batch(*size, self._plan.photos, recipe.size)

    def _predict(self, photos: str, refine: Refine, seconds: float) -> None:
        recipe, drawn = self._plan.recipe, self._photos[photos]
        found = measure_batch(drawn, recipe.network, recipe.size, refine, self._device, seconds)
        name, count = f"predict, {photos}, {refine}", len(drawn.files)
        self.results.add(name, "photos/s", 1000 * count / found.ms)
        for stage, milliseconds in found.stage_ms.items():
            self.results.add(f"{name}: {stage}", "µs/photo", 1000 * milliseconds / count)
        share = self._share_of_peak(found.network_flops, found.stage_ms["network"])
        self.results.add(f"{name}: network, share of matmul", "%", share)
        self._add_use(name, found)

    def _share_of_peak(self, flops: float, milliseconds: float) -> float:
        return 1e5 * flops / milliseconds / self._peak

    def _add_use(self, name: str, found: StepFigures | PredictFigures) -> None:
        self.results.add(f"{name}: kernels", "a call", found.kernels.number)
        self.results.add(f"{name}: device busy", "%", 100 * found.kernels.ms / found.ms)
        self.results.add(f"{name}: peak memory", "GB", found.gigabytes)

    def _task(self, photos: str, seconds: float) -> None:
        cost = measure_task(self._photos[photos], self._plan.recipe.size, seconds / 2)
        name = f"predict, {photos}, tasks"
        self.results.add(f"{name}: cost", "CPU-ms/photo", cost)
        self.results.add(name, "photos/s", 1000 * usable_cores() / cost)

    def _feed(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        raw = draw_raw_pairs(self._scratch / "raw", min(self._plan.photos, self._plan.pairs), self._plan.pairs)
        packed = pack(str(raw), self._scratch / "packed")
        left = end - time.monotonic()
        run = run_train(
            *(self._workload(), packed, max(1.0, left - JOB_START_SECONDS), f"--device={self._name}"),
            batch=self._plan.feed_batch,
            without_network=True,
            limit_seconds=left,
        )
        self.results.add("feed, the train job without its network", "rows/s", run.samples_per_second)
        self.results.add("feed: cost", "CPU-ms/row", run.cpu_ms)

    def _job(self, photos: str, seconds: float) -> None:
        end = time.monotonic() + seconds
        drawn = draw_photos(self._plan.photo_sizes[photos], self._scratch / "drawn" / photos, self._plan.photos)
        bounds = [self.results.last(f"predict, {photos}, {part}") for part in ("guided", "tasks")]
        left = end - time.monotonic()
        count = int(min(bounds) * max(1.0, left - JOB_START_SECONDS) / 2)  # the job may be half as fast as its parts
        folder = link_copies(drawn, max(len(drawn), count), self._scratch / "photos")
        options = (f"--device={self._name}", "--refine=guided")
        run = run_predict(self._workload(), folder, *options, limit_seconds=left)
        self.results.add(f"predict job, {photos}, guided", "photos/s", run.photos_per_second)
        self.results.add(f"predict job, {photos}, guided: cost", "CPU-ms/photo", run.cpu_ms)

    def _workload(self) -> Workload:
        recipe = self._plan.recipe
        uri = save_untrained(recipe.network, recipe.size, self._scratch / "checkpoint")
        return Workload({}, "", "", uri, self._scratch)
