"""jobs/benchmark.py --device: every measurement of a device, on a CPU and small, and its report."""

import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from jobs import benchmark
from jobs.bench import network
from jobs.bench.device.benchmark import DeviceBenchmark, DevicePlan, Measurement, run_in_time
from jobs.bench.device.report import bounds, write_device_report
from jobs.bench.device.timing import kernels_of, ms_per_call
from jobs.bench.device.training import LONG, matting_recipe, phases
from jobs.bench.report import Results
from jobs.common.devices import NoGpuError

CPU = torch.device("cpu")
PLAN = DevicePlan(
    recipe=replace(matting_recipe(), width=4, depth=2, max_width=8, size=64, augment_size=64),
    batches=(2,),
    photo_sizes={"60x70": (60, 70)},
    photos=6,
    pairs=24,
    feed_batch=4,
    copied_bytes=1 << 12,
)


def measure(folder: Path, seconds: float, *names: str) -> Results:
    """Return the figures of all measurements whose name begins with one of these, each for so long."""
    bench = DeviceBenchmark(CPU, PLAN, folder)
    for measurement in bench.measurements():
        if measurement.name.startswith(names):
            measurement.run(seconds)
    return bench.results


@pytest.mark.slow
def test_device_is_measured_without_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.bench.device.benchmark.matmul_side", lambda _: 64)
    results = measure(tmp_path, 0.1, "matrix", "copies", "train", "drawing", "predict,")
    assert all(results.last(name) > 0 for name in results.values)
    for phase in ("augmented at 32", "augmented at 64", "plain at 64"):
        for batch in PLAN.batches:
            name = f"train, {phase}, batch {batch}"
            assert results.last(name) == pytest.approx(1000 * batch / results.last(f"{name}: step"))
    stages = [name.rpartition(": ")[2] for name, unit in results.units.items() if unit == "µs/photo"]
    first, last = ["upload", "squash", "network"], ["download"]
    assert stages == [*first, "interpolate", *last, *first, "refine", *last]
    write_device_report(results, {"feed": "JobError: no"}, datetime.now(UTC), tmp_path / "benchmark-cpu.json")
    report = json.loads((tmp_path / "benchmark-cpu.json").read_text())
    assert report["figures"].keys() == results.values.keys()
    assert report["not measured"] == {"feed": "JobError: no"}
    assert len(report["sentences"]) == 3 * len(PLAN.batches) + 2 + 1


@pytest.mark.slow
def test_jobs_are_measured_on_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.bench.device.benchmark.JOB_START_SECONDS", 200)  # leaves a second for the job's work
    bench = DeviceBenchmark(CPU, PLAN, tmp_path)
    measurements = {measurement.name: measurement for measurement in bench.measurements()}
    for name in ("drawing 60x70", "predict, 60x70, guided", "predict, 60x70, tasks"):
        measurements[name].run(0.1)
    for name in ("feed", "predict job, 60x70"):
        measurements[name].run(200)
    assert bench.results.last("feed, the train job without its network") > 0
    assert bench.results.last("predict job, 60x70, guided") > 0
    assert "tasks alone would make" in list(bounds(bench.results))[-1]


def test_gpu_that_is_not_there_is_named(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(NoGpuError, match="--device gpu needs a GPU"):
        benchmark.main(["--device", "gpu", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_device_takes_no_collections() -> None:
    with pytest.raises(ValueError, match="leave out --data"):
        benchmark.BenchmarkConfig(device="gpu", images="photos")


def test_measurement_that_fails_is_named_and_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    done = list[str]()

    def run_out_of_memory(_: float) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore")

    measurements = [
        Measurement("large", 1, run_out_of_memory),
        Measurement("small", 1, lambda _: done.append("small")),
    ]
    reasons = run_in_time(measurements, time.monotonic() + 60, CPU)
    assert reasons == {"large": "OutOfMemoryError: CUDA out of memory. Tried to allocate 9 GiB"}
    assert done == ["small"]
    assert "large: not measured" in capsys.readouterr().out


def test_time_is_shared_by_weight_and_ends() -> None:
    shares = list[float]()
    measurements = [Measurement(f"{weight}", weight, shares.append) for weight in (1, 3, 4)]
    assert run_in_time(measurements, time.monotonic() + 80, CPU) == {}
    assert shares == pytest.approx([10, 80 * 3 / 7, 80], rel=0.05)  # what one leaves is shared by those that follow
    assert run_in_time(measurements, time.monotonic() - 1, CPU).keys() == {"1", "3", "4"}


def test_phases_hold_for_a_whole_run() -> None:
    recipe = matting_recipe()
    progress = [LONG.progress(1, 0), LONG.progress(1000, 0)]
    found = [
        (
            side,
            [at < training.augment_fraction for at in progress],
            [at < training.half_res_fraction for at in progress],
        )
        for training, side in phases(recipe).values()
    ]
    assert found == [
        (64, [True, True], [True, True]),
        (128, [True, True], [False, False]),
        (160, [False, False], [False, False]),
    ]


def test_sentences_tell_what_bounds_steps_feed_and_jobs() -> None:
    results = Results()
    for name, rate, busy, share in (("a", 100, 30, 5), ("b", 200, 95, 10), ("c", 300, 95, 60)):
        for figure, unit, value in (
            (f"train, {name}", "samples/s", rate),
            (f"train, {name}: share of matmul", "%", share),
            (f"train, {name}: kernels", "a call", 900),
            (f"train, {name}: device busy", "%", busy),
        ):
            results.add(figure, unit, value)
    for figure, unit, value in (
        ("predict, s, guided", "photos/s", 9000),
        ("predict, s, guided: network", "µs/photo", 10),
        ("predict, s, guided: refine", "µs/photo", 30),
        ("predict, s, guided: kernels", "a call", 700),
        ("predict, s, guided: device busy", "%", 90),
        ("predict, s, tasks", "photos/s", 4000),
        ("feed, the train job", "rows/s", 250),
        ("predict job, s, guided", "photos/s", 3500),
    ):
        results.add(figure, unit, value)
    assert list(bounds(results)) == [
        "train, a: 100 samples/s; the host is the limit: it starts 900 kernels a step, and the device is busy 30 %.",
        "train, b: 200 samples/s; the device is the limit, by memory traffic and small kernels: products reach 10 % of "
        "matmul.",
        "train, c: 300 samples/s; the device's arithmetic is the limit, at 60 % of matmul.",
        "predict, s, guided: 9,000 photos/s; the longest stage is refine, 75 % of their sum.",
        "feed, the train job: 250 rows/s, for 300 of train, c; the feed is the limit.",
        "predict job, s, guided: 3,500 photos/s; tasks on the CPU cores are the limit: tasks alone would make 4,000, "
        "the device 9,000.",
    ]


def test_kernels_are_counted_and_timed() -> None:
    matrix = torch.rand(256, 256)
    kernels = kernels_of(lambda: matrix @ matrix, CPU)
    assert kernels.number >= 1
    assert kernels.ms > 0


def test_calls_are_timed_within_their_time() -> None:
    multiply = network.matmul(CPU, "fp32", 8)
    began = time.monotonic()
    assert 0 < ms_per_call(multiply, CPU, 0.05) < 50
    assert time.monotonic() - began < 5
