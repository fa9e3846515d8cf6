"""The benchmark: that it measures what it says, in small, and that what it tells follows from the figures."""

import copy
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from jobs import benchmark, findings, idle, measure
from jobs.benchmark import BenchmarkConfig
from jobs.findings import Results
from jobs.processes import watch
from jobs.workload import Workload, copies, draw, prepare, untrained
from matting import checkpoint, images
from matting.collection import PairOptions, open_pairs
from matting.training import Plan, Step, TrainingConfig
from matting.unet import UNet, UNetConfig
from tests.drawing import write_folders

SIZE = 32


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    """Eight photos, twenty pairs and a tiny network."""
    folder = tmp_path_factory.mktemp("work")
    paths = [folder / f"{number}.jpg" for number in range(8)]
    for number, path in enumerate(paths):
        draw(number, (60, 70), path, None)
    write_folders(folder / "raw", 20, 40)
    model = untrained(UNetConfig(width=4))
    checkpoint.save(str(folder / "checkpoint"), model, checkpoint.describe(model, SIZE, {}, {}), {})
    pairs = str(folder / "raw")
    return Workload({"60x70": paths}, pairs, pairs, str(folder / "checkpoint"), folder)


def test_what_runs_without_a_cluster_gives_figures(work: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark.os, "cpu_count", lambda: 1)  # so that half as many processes start
    results = Results()
    options = BenchmarkConfig(seconds=0.2)
    for measurement in (benchmark.network, benchmark.stages, benchmark.scripts):
        measurement(results, work, options)
    assert all(value > 0 for values in results.values.values() for value in values)
    for name in ("network alone, training", "stage, 60x70: decode", "script, predicting, plain loop"):
        assert len(results.values[name]) == 1
    assert len(list((work.scratch / "script").iterdir())) >= 64
    # No more can be done than by products of matrices, whose speed varies with that of the machine.
    assert results.last("network alone, predicting, of matrix products") < 150


def test_a_prediction_without_its_network_does_all_the_rest(work: Workload) -> None:
    photos = copies(work.photos["60x70"], 40, work.scratch / "photos")
    found = benchmark.predicted(work, photos, "--refine=none", without_network=True)
    assert found.photos_a_second > 0
    assert found.first > found.ray > 0
    assert found.megabytes > 50
    assert sum(found.shares.values()) == pytest.approx(100, abs=5)
    mattes = sorted((work.scratch / "mattes").rglob("*.png"))
    assert len(mattes) == 40
    disc = images.decode_alpha(mattes[0].read_bytes())
    assert (disc[35, 30], disc[0, 0]) == (255, 0)


def test_a_training_without_its_steps_takes_all_pairs_and_learns_nothing() -> None:
    batches = [{"key": np.array([f"{number}"] * 8, object)} for number in range(5)]
    model = UNet(UNetConfig(width=4))
    before = copy.deepcopy(model.state_dict())
    config = TrainingConfig(precision="fp32")
    trainer = idle.WithoutSteps(model, config, torch.device("cpu"))
    steps: list[Step] = []
    epoch = trainer.train_epoch(batches, on_step=steps.append)
    assert (epoch.steps, epoch.samples, len(steps), trainer.epochs, trainer.steps) == (5, 40, 5, 1, 5)
    assert trainer.train_epoch(batches, Plan(seconds=0)).steps == 1
    assert len(trainer.validate(batches)) == 40
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_share_of_waiting_is_of_the_epochs_after_the_first() -> None:
    epochs = [
        {"step": 10, "samples_per_second": 80.0, "waiting": 0.9},
        {"step": 20, "samples_per_second": 80.0, "waiting": 0.5},
    ]
    assert benchmark.waiting_shares(epochs, 8) == [0.5]  # ten steps of eight samples: a second
    assert benchmark.waiting_shares(epochs[:1], 8) == [0.9]
    assert benchmark.waiting_shares(epochs, 16) == [0.25]  # with two workers, as fast together: two seconds


def test_the_processes_of_a_command_are_watched_together() -> None:
    busy = "import time; began = time.process_time()\nwhile time.process_time() - began < 1: pass"
    code = f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {busy!r}]); time.sleep(1)"
    watched = watch([sys.executable, "-c", code])
    assert watched.cpu(watched.began, watched.samples[-1][0]) == pytest.approx(1, abs=0.6)
    with pytest.raises(Exception, match="no such thing"):
        watch([sys.executable, "-c", "raise SystemExit('no such thing')"])


def figures(rounds: int) -> Results:
    """As if measured: the machine is twice as fast in the second round."""
    results = Results()
    for number in range(rounds):
        for name, value in {
            "network alone, predicting": 50,
            "network alone, predicting, floats": 30,
            "network alone, training": 20,
            "plain eager fp32": 20,
            "predict, s, none": 45,
            "predict, s, guided": 40,
            "predict, s, guided, cutouts": 30,
            "predict, s, none, 1 worker": 25,
            "predict, s, mirrored": 10,
            "script, predicting, plain loop": 10,
            "script, predicting, DataLoader loop": 15,
        }.items():
            results.add(name, "photos/s", value * (number + 1))
        for name, value in {
            "train, packed": 19,
            "step alone, between trainings": 19,
            "train, raw": 18,
            "train, raw, not kept": 17,
            "train, packed, 2 workers": 20,
            "script, training, DataLoader, packed": 15,
            "script, training, DataLoader, raw": 12,
        }.items():
            results.add(name, "samples/s", value * (number + 1))
        results.add("train, packed, waiting for data", "%", 2 + 30 * number)
        results.add("predict without network, s, none", "CPU-ms", 2)
    for size in (500, 5000):
        results.add(f"predict without network, {size:,} photos", "CPU-ms", 2 if size == 500 else 2.1)
    results.shares = {"predict, s, none": {"network": 85.0, "decode": 5.0}, "predict, s, guided": {"decode": 61.0}}
    return results


def test_tells_medians_ratios_of_each_round_and_what_bounds_a_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    findings.tell(figures(2), datetime.now(UTC), tmp_path)
    told = json.loads((tmp_path / "benchmark.json").read_text())
    assert told["figures"]["predict, s, none"] == {"unit": "photos/s", "median": 67.5, "values": [45, 90]}
    assert told["ratios"]["predict, s, none / network alone, predicting"] == 0.9
    assert told["ratios"]["predict, s, none / network alone, predicting, floats"] == 1.5
    assert told["ratios"]["predict, s, guided / script, predicting, plain loop"] == 4
    assert told["ratios"]["predict, s, mirrored / predict, s, guided"] == 0.25
    assert told["ratios"]["train, raw / script, training, DataLoader, raw"] == 1.5
    assert told["ratios"]["train, packed / network alone, training"] == 0.95
    assert told["ratios"]["train, packed / step alone, between trainings"] == 1
    size = "predict without network, {} photos"
    assert told["ratios"][f"{size.format('5,000')} / {size.format('500')}"] == pytest.approx(1.05)
    assert told["sentences"] == [
        "predict, s, none: network is 85 % of the time; only a faster network, more cores or a GPU help.",
        "predict, s, guided: decode is 61 % of the time; add CPU workers.",
        "train, packed, waiting for data: 17 % of the time; add CPUs for reading, or pack the pairs.",
        "predict without network, s, none: 2.0 CPU-ms, so one core feeds a GPU of 500 a second.",
    ]
    said = capsys.readouterr().out
    assert all(sentence in said for sentence in told["sentences"])
    bars = ElementTree.fromstring((tmp_path / "benchmark.svg").read_text())
    assert "predict, s, guided, cutouts" in ElementTree.tostring(bars, "unicode")


def test_photos_pairs_and_a_network_are_brought_to_the_disk(work: Workload, tmp_path: Path) -> None:
    photos = tmp_path / "photos"  # the name of one of the folders that measurements make
    photos.mkdir()
    for number in range(3):
        draw(number, (20, 30), photos / f"{number}.jpg", None)
    made = prepare(work.raw, str(photos), None, tmp_path / "scratch")
    copied = Path(copies(made.photos["photos"], 6, made.scratch / "photos"))
    originals = [path.read_bytes() for path in sorted(photos.iterdir())]
    assert [path.read_bytes() for path in sorted(copied.rglob("*.jpg"))] == 2 * originals
    packed, raw = (sum(open_pairs(uri, PairOptions()).counts().values()) for uri in (made.packed, work.raw))
    assert packed == raw == 20
    assert checkpoint.load(made.checkpoint).size == 128


def test_collections_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="have to differ"):
        BenchmarkConfig(images="s3://one/photos,s3://other/photos/")


def test_copies_are_as_many_as_wanted_and_cost_no_room(work: Workload) -> None:
    folder = Path(copies(work.photos["60x70"], 1003, work.scratch / "many"))
    found = sorted(path for path in folder.rglob("*.jpg"))
    assert len(found) == 1003
    assert len({path.stat().st_ino for path in found}) == 8


def test_every_measurement_loops_as_long_as_it_is_told() -> None:
    called: list[int] = []
    assert measure.rate([lambda: called.append(1)], 0.1) == pytest.approx((len(called) - 2) / 0.1, rel=0.1)
    assert measure.cpu_ms(lambda _: np.ones(1000).sum(), 3, 0.05) < 5
