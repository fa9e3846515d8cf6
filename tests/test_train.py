"""The training job: what it leaves, that it goes on after a kill, and what it says when something is wrong."""

import json
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from jobs import train
from jobs.cluster import ClusterError, JobError
from jobs.config import ConfigError
from matting import checkpoint, images
from matting.collection import PairOptions, open_pairs
from matting.pairs import PairsError
from matting.photos import PhotosError
from matting.storage import StorageError
from matting.training import Batch, Score, Trainer, TrainingConfig
from matting.unet import UNet
from tests import jobs
from tests.drawing import write_folders

SMALL = ["--width=4", "--size=32", "--synthetic-pairs=60", "--minutes=10"]


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def epochs(run: Path) -> list[dict[str, Any]]:
    return [row for row in history(run) if "val_mad" in row]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(str(folder)).model.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:  # noqa: ARG001
    """The run folder of three epochs that nothing disturbed."""
    output = tmp_path_factory.mktemp("undisturbed")
    train.main([*SMALL, "--epochs=3", f"--output={output}", "--name=run"])
    return output / "run"


def test_leaves_a_whole_run_folder(undisturbed: Path) -> None:
    best = checkpoint.load(str(undisturbed / "best"))
    assert best.size == 32
    assert best.config["recipe"]["name"] == "quickstart"
    assert best.aspects is None  # its people were of one size: it knows no other shapes
    checkpoint.load_train_state(str(undisturbed / "best"))
    rows = epochs(undisturbed)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert best.metrics["val_mad"] == min(row["val_mad"] for row in rows)
    page = (undisturbed / "report.html").read_text()
    for part in ("validation MAD", "best", "median", "worst", "data:image/"):
        assert part in page
    kept = sorted(path.name for path in undisturbed.glob("epoch-*"))
    best_epoch = 1 + [row["val_mad"] for row in rows].index(best.metrics["val_mad"])
    assert kept == sorted({"epoch-00003", f"epoch-{best_epoch:05d}"})


def test_validation_covers_every_row_of_the_split_once(undisturbed: Path) -> None:
    pairs = open_pairs("synthetic", PairOptions(synthetic_pairs=60))
    scored = pq.read_table(undisturbed / "validation.parquet")["key"].to_pylist()
    assert scored == pairs.keys["val"]
    assert [row["val_n"] for row in epochs(undisturbed)] == [len(scored)] * 3


def test_events_are_readable_by_tensorboard(undisturbed: Path) -> None:
    found = {}
    for file in sorted((undisturbed / "events").iterdir()):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                found[value.tag, event.step] = (
                    value.tensor.float_val[0] if value.HasField("tensor") else value.simple_value
                )
    for row in epochs(undisturbed):
        assert found["val/mad", row["step"]] == pytest.approx(row["val_mad"])


def test_a_finished_run_says_so_and_changes_nothing(undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file()}
    train.main([*SMALL, "--epochs=3", f"--output={undisturbed.parent}", "--name=run"])
    assert "finished: 3 epochs" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("half_way", [False, True])
def test_a_run_killed_after_its_last_epoch_still_gets_its_best_and_its_page(
    undisturbed: Path, tmp_path: Path, half_way: bool
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    (tmp_path / "run/report.html").unlink()
    best, expected = tmp_path / "run/best", undisturbed / "best"
    if half_way:  # as if the kill came between the files of the best epoch's upload
        other = {name: tensor + 1 for name, tensor in weights(best).items()}
        save_file(other, best / "model.safetensors")
    else:  # as if it came before, and an earlier one were there still
        mads = [row["val_mad"] for row in epochs(undisturbed)]
        metrics = best / "metrics.json"
        earlier = next(mad for mad in mads if mad > min(mads))
        metrics.write_text(json.dumps({**json.loads(metrics.read_text()), "val_mad": earlier}))
    train.main([*SMALL, "--epochs=3", f"--output={tmp_path}", "--name=run"])
    assert "worst" in (tmp_path / "run/report.html").read_text()
    assert checkpoint.load(str(best)).metrics == checkpoint.load(str(expected)).metrics
    assert same(weights(best), weights(expected))


def test_a_lone_worker_of_one_machine_is_the_driver_and_goes_on_after_a_kill(undisturbed: Path, tmp_path: Path) -> None:
    command = [*SMALL, "--epochs=3", f"--output={tmp_path}", "--name=run"]
    with jobs.running("train", *command) as process:
        jobs.wait_for_line(process, "epoch 2:")
        assert not [pid for pid in jobs.descendants(process.pid) if "RayTrainWorker" in jobs.command_line(pid)]
        process.kill()
    code, output = jobs.run("train", *command)
    assert code == 0, output
    assert [row["epoch"] for row in epochs(tmp_path / "run")] == [1, 2, 3]
    assert len({row["step"] for row in history(tmp_path / "run")}) == len(history(tmp_path / "run"))
    for folder in ("best", "epoch-00003"):  # as of workers of their own, which nothing disturbed
        assert same(weights(tmp_path / "run" / folder), weights(undisturbed / folder))


def test_what_fails_in_the_driver_is_one_paragraph_that_says_how_to_go_on(tmp_path: Path) -> None:
    with jobs.running("train", *SMALL, "--epochs=1000", f"--output={tmp_path}", "--name=run") as process:
        jobs.wait_for_line(process, "epoch 1:")
        (tmp_path / "run").rename(tmp_path / "moved")
        (tmp_path / "run").write_text("no folder")
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1, output
    last = output.splitlines()[-1]
    assert last.startswith("failed: ")
    assert str(tmp_path / "run") in last
    assert last.endswith("The same command goes on from the last checkpoint.")
    assert "Traceback" not in output


def test_an_interrupted_run_says_so_in_a_line(tmp_path: Path) -> None:
    with jobs.running("train", *SMALL, "--epochs=1000", f"--output={tmp_path}", "--name=run") as process:
        jobs.wait_for_line(process, "epoch 1:")
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output.splitlines()[-1].startswith("failed: interrupted.")
    assert "Traceback" not in output


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Forty pairs, of which six cannot be used."""
    root = tmp_path / "damaged"
    write_folders(root, 40, 32)
    photos = sorted((root / "images").iterdir())
    photos[0].write_bytes(photos[0].read_bytes()[:200])
    photos[1].write_bytes(b"")
    photos[2].write_text("<html>404</html>")
    photos[3].write_bytes(images.encode_png(np.zeros((1, 1, 3), np.uint8)))
    header = bytearray(photos[4].read_bytes())
    header[16:24] = (30_000).to_bytes(4, "big") * 2
    photos[4].write_bytes(bytes(header))
    photos[5].write_bytes(images.encode_png(np.zeros((32, 64, 3), np.uint8)))
    return root


@pytest.mark.usefixtures("ray_cluster")
def test_bad_files_are_named_and_left_out(damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--width=4", "--size=32", "--depth=2", "--epochs=1", f"--data={damaged}", f"--output={tmp_path}"]
    train.main([*options, "--cache=off", "--name=run", "--max-rejected-fraction=0.2"])
    page = (tmp_path / "run/report.html").read_text()
    unused = open_pairs(str(damaged), PairOptions()).keys["test"]
    keys = [f"images/person-{number:03d}.png" for number in range(6)]
    for key in keys:
        assert (key in page) == (key not in unused)
    assert f"Left out, and named on the page: {len(set(keys) - set(unused))}." in capsys.readouterr().out
    assert checkpoint.load(str(tmp_path / "run/best")).aspects == (1.0, 1.0)  # the readable ones, mostly
    with pytest.raises(JobError, match=r"cannot be used.*max_rejected_fraction"):
        train.main([*options, "--name=none-allowed"])


@pytest.mark.usefixtures("ray_cluster")
def test_validation_photos_that_vanish_after_the_best_epoch_cost_their_place_on_the_page_only(tmp_path: Path) -> None:
    root = tmp_path / "pairs"
    write_folders(root, 40, 32)
    *doomed, last = open_pairs(str(root), PairOptions()).keys["val"]

    class Unlucky(Trainer):
        def validate(self, batches: Iterable[Batch]) -> list[Score]:
            scores = super().validate(batches)
            for key in doomed:
                (root / key).unlink(missing_ok=True)
            return [score._replace(mad=score.mad + 1000 * (self.epochs - 1)) for score in scores]

    options = ["--width=4", "--size=32", "--depth=2", "--epochs=2", f"--data={root}", f"--output={tmp_path}"]
    train.main([*options, "--cache=off", "--name=run", "--max-rejected-fraction=1"], Unlucky)
    assert [row["val_n"] for row in epochs(tmp_path / "run")] == [len(doomed) + 1, 1]
    page = (tmp_path / "run/report.html").read_text()
    assert page.count("scored, and gone since") == len(doomed)
    assert all(key in page for key in [*doomed, last])


@pytest.mark.usefixtures("ray_cluster")
def test_a_pair_that_validation_loses_ends_the_run_by_name(tmp_path: Path) -> None:
    class Forgetful(Trainer):
        def validate(self, batches: Iterable[Batch]) -> list[Score]:
            return super().validate(batches)[1:]

    forgotten = open_pairs("synthetic", PairOptions(synthetic_pairs=60)).keys["val"][0]
    with pytest.raises(JobError, match=f"Validation missed 1 of .* nobody rejected: {forgotten}"):
        train.main([*SMALL, "--epochs=1", f"--output={tmp_path}", "--name=run"], Forgetful)


@pytest.mark.usefixtures("ray_cluster")
def test_photos_without_people_are_taken_as_backgrounds(tmp_path: Path) -> None:
    rooms = tmp_path / "rooms"
    rooms.mkdir()
    colours = np.random.default_rng(0).integers(0, 256, (70, 3), np.uint8)  # more than one task decodes
    for number, colour in enumerate(colours):
        (rooms / f"{number}.png").write_bytes(images.encode_png(np.full((40, 50, 3), colour, np.uint8)))
    (rooms / "broken.jpg").write_text("<html>404</html>")
    seen = tmp_path / "seen.npy"

    class Seeing(Trainer):
        def __init__(
            self, model: UNet, config: TrainingConfig, device: torch.device, backgrounds_NHWC: np.ndarray | None = None
        ) -> None:
            super().__init__(model, config, device, backgrounds_NHWC)
            np.save(seen, np.array(backgrounds_NHWC))

    varied = [*SMALL, "--augment_until=1", "--epochs=1", "--max_rejected_fraction=0.02", f"--output={tmp_path}"]
    given = [*varied, f"--backgrounds={rooms}", "--name=run"]
    train.main(given, Seeing)
    pictures = np.load(seen)
    assert pictures.shape == (70, 32, 32, 3)
    assert sorted(pictures[:, 7, 7].tolist()) == sorted(colours.tolist())
    assert f"{rooms}: 71 photos" in (tmp_path / "run/report.html").read_text()
    assert str(rooms / "broken.jpg") in json.loads((tmp_path / "run/rejected.json").read_text())
    assert checkpoint.load(str(tmp_path / "run/best")).config["data"]["backgrounds"] == str(rooms)
    (rooms / "0.png").unlink()
    with pytest.raises(ConfigError, match="backgrounds_fingerprint was"):  # not the same run any more
        train.main(given)
    for photo in rooms.glob("*.png"):
        photo.unlink()
    with pytest.raises(JobError, match="None of the photos of --backgrounds"):
        train.main([*given[:-1], "--name=none"])


def test_what_cannot_begin_says_why_at_once(tmp_path: Path, undisturbed: Path) -> None:
    (tmp_path / "empty").mkdir()
    output = f"--output={tmp_path / 'runs'}"
    for error, arguments, words in (
        (StorageError, [f"--data={tmp_path / 'missing'}", output], "missing"),
        (StorageError, [f"--data={tmp_path / 'empty'}", output], "empty"),
        (PairsError, [f"--data={undisturbed}", output, "--layout=ppm"], "layout ppm"),
        (ConfigError, ["--bacth=3"], "Did you mean 'batch'"),
        (ConfigError, ["--epochs=0"], "epochs must be at least 1"),
        (ConfigError, ["--varied_size=0"], "varied_size must be at least 1"),
        (ConfigError, ["--augment_until=15"], "augment_until is a share of the run, from 0 to 1; is 15"),
        (ConfigError, [f"--data={undisturbed}", output, "--size=64"], "of 32 pixels have less than two a side"),
        (ConfigError, [*SMALL, output, f"--backgrounds={tmp_path}"], "--backgrounds is for recipes that vary pictures"),
        (PhotosError, [*SMALL, output, "--augment_until=1", f"--backgrounds={undisturbed}"], "photos"),
        (ConfigError, ["--repeats=1,x", output], "repeats takes"),
        (ConfigError, ["--repeats=1,2", output], "--repeats has 2 numbers and --data 1 URIs"),
        (ConfigError, [*SMALL, output, "--name=Läufe"], "give --name"),
        (ClusterError, [*SMALL, "--workers=64", output], "64 workers need 64 CPUs"),
        (ConfigError, [*SMALL, "--epochs=3", "--width=8", f"--output={undisturbed.parent}", "--name=run"], "width was"),
    ):
        with pytest.raises(error, match=words) as caught:
            train.main(arguments)
        assert "\n" not in str(caught.value).strip()


def test_exit_codes_and_one_paragraph(tmp_path: Path) -> None:
    code, output = jobs.run("train", f"--data={tmp_path / 'missing'}", f"--output={tmp_path}")
    assert code == 2
    assert output.startswith("error: ")
    assert len(output.splitlines()) <= 3
    assert "Traceback" not in output
