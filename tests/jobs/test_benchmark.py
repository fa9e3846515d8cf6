"""jobs/benchmark.py and jobs/bench: small runs of every measurement, and the report of given figures."""

import copy
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from jobs import benchmark
from jobs.bench import job_runs, loop, network, null_jobs, processes, report, timing
from jobs.bench.processes import environment_with, monitor
from jobs.bench.report import Results
from jobs.bench.workload import Workload, link_copies, prepare, untrained_unet, write_drawn_pair
from jobs.benchmark import BenchmarkConfig
from jobs.common.cli import JobError
from matting.data import images
from matting.data.dataset import PairOptions, open_dataset
from matting.nn import checkpoint
from matting.nn.schedule import Budget
from matting.nn.trainer import Step, TrainingConfig
from matting.nn.unet import UNet, UNetConfig
from tests.support.drawing import write_folders

SIZE = 32


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    """Eight photos, twenty pairs and a tiny network."""
    folder = tmp_path_factory.mktemp("work")
    paths = [folder / f"{number}.jpg" for number in range(8)]
    for number, path in enumerate(paths):
        write_drawn_pair(number, (60, 70), path, None)
    write_folders(folder / "raw", 20, 40)
    model = untrained_unet(UNetConfig(width=4))
    checkpoint.save(str(folder / "checkpoint"), model, checkpoint.describe(model, SIZE, {}, {}), {})
    pairs = str(folder / "raw")
    return Workload({"60x70": paths}, pairs, pairs, str(folder / "checkpoint"), folder)


@pytest.mark.slow
def test_measurements_without_cluster_give_figures(work: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "usable_cores", lambda: 1)  # one layout of processes instead of two
    results = Results()
    options = BenchmarkConfig(seconds=0.2)
    benchmark.bench_stages(results, work, options)
    with processes.fresh_pool(1) as pool:  # one process for what each measures in a fresh one, which takes seconds

        def run_in_the_pool(function: Callable[..., Any], *arguments: Any, processes: int = 1) -> Any:
            assert processes == 1
            return pool.submit(function, *arguments).result()

        monkeypatch.setattr(benchmark, "run_fresh", run_in_the_pool)
        for measurement in (benchmark.bench_network, benchmark.bench_scripts):
            measurement(results, work, options)
    assert all(value > 0 for values in results.values.values() for value in values)
    for name in ("network alone, training", "stage, 60x70: decode", "script, predicting, plain loop"):
        assert len(results.values[name]) == 1
    assert len(list((work.scratch / "script").iterdir())) >= 64
    # A network can hardly beat matrix products; the margin is for a machine whose speed drifts between the two.
    assert results.last("network alone, predicting, share of matmul") < 500


def test_rates_of_the_network_alone(work: Workload) -> None:
    for rate in (network.eager_rate, network.train_step_rate):
        assert rate(work.checkpoint, 1, 0.01) > 0
    assert network.forward_rate(work.checkpoint, 1, 0.01, "fp32") > 0
    assert network.matmul_flops(1, 0.01, "int8") > 0
    forward, training = network.count_flops(work.checkpoint)
    assert 2 * forward < training < 3 * forward


@pytest.mark.slow
def test_predict_without_network_does_everything_else(work: Workload) -> None:
    photos = link_copies(work.photos["60x70"], 40, work.scratch / "photos")
    run = job_runs.run_predict(work, photos, "--refine=none", without_network=True)
    assert run.photos_per_second > 0
    assert run.first_photo_seconds > run.ray_start_seconds > 0
    assert run.peak_megabytes > 50
    assert sum(run.stage_percent.values()) == pytest.approx(100)
    mattes = sorted((work.scratch / "mattes").rglob("*.png"))
    assert len(mattes) == 40
    disc = images.decode_alpha(mattes[0].read_bytes())
    assert (disc[35, 30], disc[0, 0]) == (255, 0)


@pytest.mark.slow
def test_job_is_compared_with_a_loop_that_does_the_same(work: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "REFINES", ("none",))
    results = Results()
    benchmark.compare_with_loop(results, work, BenchmarkConfig(seconds=0.1), "60x70", 40)
    for name in ("predict", "pipeline in a loop"):
        assert results.last(f"{name}, 60x70, none, 40 photos") > 0
        assert results.last(f"{name}, 60x70, none, 40 photos, cost") > 0


def test_loop_has_a_rate_and_a_cost(work: Workload) -> None:
    folder = link_copies(work.photos["60x70"], 8, work.scratch / "few")
    photos_per_second, cores = loop.loop_rate(folder, work.checkpoint, "none", "fp32", 0.05)
    assert photos_per_second > 8
    assert cores > 0


def test_variables_reach_fresh_processes_and_leave_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATTING_TEST_OLD", "before")
    with environment_with({"MATTING_TEST_OLD": "during", "MATTING_TEST_NEW": "during"}):
        shown = monitor([sys.executable, "-c", "import os; print(os.environ['MATTING_TEST_OLD'])"]).output
    assert (shown.strip(), os.environ["MATTING_TEST_OLD"]) == ("during", "before")
    assert "MATTING_TEST_NEW" not in os.environ


@pytest.mark.slow
def test_train_without_network_gives_figures(work: Workload) -> None:
    run = job_runs.run_train(work, work.raw, 1, without_network=True)
    assert run.samples_per_second > 0
    assert run.cpu_ms > 0
    assert run.first_batch_seconds > 0
    assert 0 <= run.waiting <= 1


def test_null_network_predicts_a_disc() -> None:
    network, squashed = null_jobs.DiscNetwork(SIZE), np.zeros((3, SIZE, SIZE, 3), np.uint8)
    alphas = network.small_alphas(squashed)
    np.testing.assert_array_equal(network.alphas_on_device(torch.from_numpy(squashed), 1), alphas)
    assert alphas.shape == (3, SIZE, SIZE)
    assert (alphas[0, SIZE // 2, SIZE // 2], alphas[0, 0, 0]) == (255, 0)


def test_null_trainer_reads_all_batches_and_learns_nothing() -> None:
    batches = [{"key": np.array([f"{number}"] * 8, object)} for number in range(5)]
    model = UNet(UNetConfig(width=4))
    before = copy.deepcopy(model.state_dict())
    config = TrainingConfig(precision="fp32")
    trainer = null_jobs.NullTrainer(model, config, torch.device("cpu"))
    steps: list[Step] = []
    epoch = trainer.train_epoch(batches, on_step=steps.append)
    assert (epoch.steps, epoch.samples, len(steps), trainer.epochs_done, trainer.steps) == (5, 40, 5, 1, 5)
    assert trainer.train_epoch(batches, Budget(seconds=0)).steps == 1
    assert len(trainer.validate(batches)) == 40
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_waiting_fraction_leaves_out_the_first_epoch() -> None:
    epochs = [
        {"step": 10, "samples_per_second": 80.0, "waiting": 0.9},
        {"step": 20, "samples_per_second": 80.0, "waiting": 0.5},
    ]
    assert job_runs.waiting_fractions(epochs, 8) == [0.5]  # ten steps of eight samples take a second
    assert job_runs.waiting_fractions(epochs[:1], 8) == [0.9]
    assert job_runs.waiting_fractions(epochs, 16) == [0.25]  # two workers at the same total rate take two seconds


def test_command_is_monitored_with_its_children() -> None:
    busy = "import time; began = time.process_time()\nwhile time.process_time() - began < 1: pass"
    code = f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {busy!r}]); time.sleep(1)"
    command = monitor([sys.executable, "-c", code])
    assert command.cpu_seconds(command.began, command.samples[-1][0]) == pytest.approx(1, abs=0.6)


def test_failed_command_is_reported_with_its_output() -> None:
    with pytest.raises(JobError, match="no such thing"):
        monitor([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_command_that_takes_too_long_is_killed() -> None:
    began = time.monotonic()
    with pytest.raises(JobError, match=r"took longer than 1 s:\nbegun"):
        monitor([sys.executable, "-c", "import time; print('begun'); time.sleep(60)"], limit_seconds=1)
    assert time.monotonic() - began < 30


def figures(rounds: int) -> Results:
    """Return made-up figures of a machine that is twice as fast in the second round."""
    results = Results()
    for number in range(rounds):
        for name, value in {
            "network alone, predicting": 50,
            "network alone, predicting, float": 30,
            "network alone, training": 20,
            "network alone, predicting, eager fp32": 20,
            "predict, s, none": 45,
            "predict, s, guided": 40,
            "predict, s, guided, cutouts": 30,
            "predict, s, none, 1 worker": 25,
            "predict, s, mirrored": 10,
            "predict, s, none, 5,000 photos": 46,
            "pipeline in a loop, s, none, 5,000 photos": 50,
            "script, predicting, plain loop": 10,
            "script, predicting, DataLoader loop": 15,
        }.items():
            results.add(name, "photos/s", value * (number + 1))
        for name, value in {
            "train, packed": 19,
            "network alone, training, between jobs": 19,
            "train, raw": 18,
            "train, raw, no cache": 17,
            "train, packed, 2 workers": 20,
            "script, training, DataLoader, packed": 15,
            "script, training, DataLoader, raw": 12,
        }.items():
            results.add(name, "samples/s", value * (number + 1))
        results.add("train, packed, waiting for data", "%", 2 + 30 * number)
        results.add("predict overhead, s, none", "CPU-ms", 2)
    for size in (500, 5000):
        results.add(f"predict overhead, {size:,} photos", "CPU-ms", 2 if size == 500 else 2.1)
    results.stage_percent = {
        "predict, s, none": {"network": 85.0, "decode": 5.0},
        "predict, s, guided": {"decode": 61.0},
    }
    return results


def test_report_has_medians_ratios_and_bottlenecks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.write_benchmark(figures(2), datetime.now(UTC), tmp_path)
    written = json.loads((tmp_path / "benchmark.json").read_text())
    assert written["figures"]["predict, s, none"] == {"unit": "photos/s", "median": 67.5, "values": [45, 90]}
    assert written["ratios"]["predict, s, none / network alone, predicting"] == 0.9
    assert written["ratios"]["predict, s, none / network alone, predicting, float"] == 1.5
    assert written["ratios"]["predict, s, guided / script, predicting, plain loop"] == 4
    assert written["ratios"]["predict, s, mirrored / predict, s, guided"] == 0.25
    assert written["ratios"]["train, raw / script, training, DataLoader, raw"] == 1.5
    assert written["ratios"]["train, packed / network alone, training"] == 0.95
    assert written["ratios"]["train, packed / network alone, training, between jobs"] == 1
    assert written["ratios"]["predict, s, none, 5,000 photos / pipeline in a loop, s, none, 5,000 photos"] == 0.92
    size = "predict overhead, {} photos"
    assert written["ratios"][f"{size.format('5,000')} / {size.format('500')}"] == pytest.approx(1.05)
    assert written["sentences"] == [
        "predict, s, none: network is 85 % of the time; only a faster network, more cores or a GPU help.",
        "predict, s, guided: decode is 61 % of the time; add CPU workers.",
        "train, packed, waiting for data: 17 % of the time; add CPUs for reading, or pack the pairs.",
        "predict overhead, s, none: 2.0 CPU-ms a photo, so one core feeds a GPU of 500 photos/s.",
    ]
    printed = capsys.readouterr().out
    assert all(sentence in printed for sentence in written["sentences"])
    bars = ElementTree.fromstring((tmp_path / "benchmark.svg").read_text())
    assert "predict, s, guided, cutouts" in ElementTree.tostring(bars, "unicode")


@pytest.mark.slow
def test_workload_is_copied_to_the_disk(work: Workload, tmp_path: Path) -> None:
    photos = tmp_path / "photos"  # also the name of a folder that measurements make; they must not collide
    photos.mkdir()
    for number in range(3):
        write_drawn_pair(number, (20, 30), photos / f"{number}.jpg", None)
    made = prepare(work.raw, str(photos), None, tmp_path / "scratch")
    copied = Path(link_copies(made.photos["photos"], 6, made.scratch / "photos"))
    originals = [path.read_bytes() for path in sorted(photos.iterdir())]
    assert [path.read_bytes() for path in sorted(copied.rglob("*.jpg"))] == 2 * originals
    packed, raw = (sum(open_dataset(uri, PairOptions()).counts().values()) for uri in (made.packed, work.raw))
    assert packed == raw == 20
    assert checkpoint.load(made.checkpoint).size == 128


def test_collections_of_the_same_name_are_refused() -> None:
    with pytest.raises(ValueError, match="folders of different names"):
        BenchmarkConfig(images="s3://one/photos,s3://other/photos/")


def test_copies_are_hard_links(work: Workload) -> None:
    folder = Path(link_copies(work.photos["60x70"], 1003, work.scratch / "many"))
    links = list(folder.rglob("*.jpg"))
    assert len(links) == 1003
    assert len({path.stat().st_ino for path in links}) == 8


def test_measurements_last_as_long_as_asked() -> None:
    calls: list[int] = []
    began = time.perf_counter()
    rate = timing.calls_per_second([lambda: calls.append(1)], 0.1)
    measured = len(calls) - timing.WARM_UP_CALLS
    assert measured / (time.perf_counter() - began) <= rate <= measured / 0.1
    assert timing.cpu_ms_per_call(lambda _: np.ones(1000).sum(), 3, 0.05) < 5
