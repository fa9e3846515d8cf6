"""The training job: its run folder, runs that go on after a kill, and what it prints when something is wrong."""

import json
import os
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

from jobs import train
from jobs.common.cli import JobError
from jobs.common.cluster import ClusterError
from jobs.common.config import ConfigError
from matting.data import images
from matting.data.dataset import PairOptions, open_dataset
from matting.data.pairs import PairsError
from matting.data.photo_tables import PhotosError
from matting.nn import checkpoint
from matting.nn.trainer import Batch, Epoch, Score, Trainer, TrainingConfig
from matting.nn.unet import UNet
from matting.storage.errors import StorageError
from tests.support import jobs
from tests.support.drawing import write_folders

slow = pytest.mark.slow

SMALL = ["--width=4", "--size=32", "--synthetic-pairs=60", "--minutes=10"]


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def epochs(run: Path) -> list[dict[str, Any]]:
    return [row for row in history(run) if "val_mad" in row]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(str(folder)).model.state_dict()


def are_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:  # noqa: ARG001
    """Run folder of three epochs without a kill."""
    output = tmp_path_factory.mktemp("undisturbed")
    train.main([*SMALL, "--epochs=3", f"--output={output}", "--name=run"])
    return output / "run"


@slow
def test_a_finished_run_has_its_files(undisturbed: Path) -> None:
    best = checkpoint.load(str(undisturbed / "best"))
    assert best.size == 32
    assert best.config["recipe"]["name"] == "quickstart"
    assert best.aspects is None  # without augmentation, it was trained on squares only
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


@slow
def test_validation_scores_every_row_once(undisturbed: Path) -> None:
    pairs = open_dataset("synthetic", PairOptions(synthetic_pairs=60))
    scored = pq.read_table(undisturbed / "validation.parquet")["key"].to_pylist()
    assert scored == pairs.keys["val"]
    assert [row["val_n"] for row in epochs(undisturbed)] == [len(scored)] * 3


@slow
def test_a_finished_run_changes_nothing(undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file()}
    train.main([*SMALL, "--epochs=3", f"--output={undisturbed.parent}", "--name=run"])
    assert "finished: 3 epochs" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file()} == before


@slow
@pytest.mark.parametrize("half_way", [False, True])
def test_a_kill_after_the_last_epoch_is_repaired(undisturbed: Path, tmp_path: Path, half_way: bool) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    (tmp_path / "run/report.html").unlink()
    best, expected = tmp_path / "run/best", undisturbed / "best"
    if half_way:  # as if the kill came between the files of the best epoch's upload
        other = {name: tensor + 1 for name, tensor in weights(best).items()}
        save_file(other, best / "model.safetensors")
    else:  # as if it came before, when best/ was of an earlier epoch
        mads = [row["val_mad"] for row in epochs(undisturbed)]
        metrics = best / "metrics.json"
        earlier = next(mad for mad in mads if mad > min(mads))
        metrics.write_text(json.dumps({**json.loads(metrics.read_text()), "val_mad": earlier}))
    train.main([*SMALL, "--epochs=3", f"--output={tmp_path}", "--name=run"])
    assert "worst" in (tmp_path / "run/report.html").read_text()
    assert checkpoint.load(str(best)).metrics == checkpoint.load(str(expected)).metrics
    assert are_equal(weights(best), weights(expected))


@slow
@pytest.mark.usefixtures("own_cluster")
def test_a_single_worker_goes_on_after_a_kill(undisturbed: Path, tmp_path: Path) -> None:
    command = [*SMALL, "--epochs=3", f"--output={tmp_path}", "--name=run"]
    with jobs.running("train", *command) as process:
        jobs.wait_for_line(process, "epoch 2:")
        assert not [pid for pid in jobs.descendants(process.pid) if "RayTrainWorker" in jobs.command_line(pid)]
        process.kill()
    train.main(command)
    assert [row["epoch"] for row in epochs(tmp_path / "run")] == [1, 2, 3]
    assert len({row["step"] for row in history(tmp_path / "run")}) == len(history(tmp_path / "run"))
    for folder in ("best", "epoch-00003"):  # the same weights as without a kill, and as on a cluster's worker
        assert are_equal(weights(tmp_path / "run" / folder), weights(undisturbed / folder))


@slow
@pytest.mark.usefixtures("own_cluster")
def test_a_failed_run_says_how_to_go_on(tmp_path: Path) -> None:
    run = tmp_path / "run"

    class Displacing(Trainer):
        def validate(self, batches: Iterable[Batch]) -> list[Score]:
            if self.epochs_done == 2:
                run.rename(tmp_path / "moved")
                run.write_text("no folder")
            return super().validate(batches)

    with pytest.raises(JobError, match=r"The same command goes on from the last checkpoint\.$") as caught:
        train.main([*SMALL, "--epochs=3", f"--output={tmp_path}", "--name=run"], Displacing)
    assert str(run) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [row["epoch"] for row in epochs(tmp_path / "moved")] == [1]


@slow
def test_an_interrupted_run_prints_one_line(tmp_path: Path) -> None:
    with jobs.running("train", *SMALL, "--epochs=1000", f"--output={tmp_path}", "--name=run") as process:
        jobs.wait_for_line(process, "epoch 1:")
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 1
    assert output.splitlines()[-1].startswith("failed: interrupted.")
    assert "Traceback" not in output


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Forty pairs; six of them cannot be used."""
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


@slow
@pytest.mark.usefixtures("own_cluster")
def test_bad_files_are_named_and_left_out(damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--width=4", "--size=32", "--depth=2", "--epochs=1", f"--data={damaged}", f"--output={tmp_path}"]
    train.main([*options, "--cache=off", "--name=run", "--max-rejected-fraction=0.2"])
    page = (tmp_path / "run/report.html").read_text()
    unused = open_dataset(str(damaged), PairOptions()).keys["test"]
    keys = [f"images/person-{number:03d}.png" for number in range(6)]
    for key in keys:
        assert (key in page) == (key not in unused)
    assert f"Left out, and named on the page: {len(set(keys) - set(unused))}." in capsys.readouterr().out
    assert checkpoint.load(str(tmp_path / "run/best")).aspects == (1.0, 1.0)  # the readable ones, mostly
    with pytest.raises(JobError, match=r"cannot be used.*--max-rejected-fraction"):
        train.main([*options, "--name=none-allowed"])


@slow
@pytest.mark.usefixtures("own_cluster")
def test_vanished_validation_images_are_named(tmp_path: Path) -> None:
    root = tmp_path / "pairs"
    write_folders(root, 40, 32)
    *doomed, last = open_dataset(str(root), PairOptions()).keys["val"]

    class Unlucky(Trainer):
        def validate(self, batches: Iterable[Batch]) -> list[Score]:
            scores = super().validate(batches)
            for key in doomed:
                (root / key).unlink(missing_ok=True)
            return [score._replace(mad=score.mad + 1000 * (self.epochs_done - 1)) for score in scores]

    options = ["--width=4", "--size=32", "--depth=2", "--epochs=2", f"--data={root}", f"--output={tmp_path}"]
    train.main([*options, "--cache=off", "--name=run", "--max-rejected-fraction=1"], Unlucky)
    assert [row["val_n"] for row in epochs(tmp_path / "run")] == [len(doomed) + 1, 1]
    page = (tmp_path / "run/report.html").read_text()
    assert page.count("scored, and gone since") == len(doomed)
    assert all(key in page for key in [*doomed, last])


@slow
@pytest.mark.usefixtures("own_cluster")
def test_a_lost_validation_pair_ends_the_run(tmp_path: Path) -> None:
    class Forgetful(Trainer):
        def validate(self, batches: Iterable[Batch]) -> list[Score]:
            return super().validate(batches)[1:]

    forgotten = open_dataset("synthetic", PairOptions(synthetic_pairs=60)).keys["val"][0]
    with pytest.raises(JobError, match=f"Validation missed 1 of .* not rejected: {forgotten}"):
        train.main([*SMALL, "--epochs=1", f"--output={tmp_path}", "--name=run"], Forgetful)


@slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_third_failure_in_the_same_epoch_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    starts = tmp_path / "starts"
    starts.write_text("")

    class Failing(Trainer):
        def train_epoch(self, *arguments: Any) -> Epoch:
            starts.write_text(f"{starts.read_text()}x")
            if starts.read_text() != "xxx":
                raise ArithmeticError(f"broken in epoch {self.epochs_done + 1} of process {os.getpid()}")
            return super().train_epoch(*arguments)

    ended = r"broken in epoch 2 .* failed so 3 times in the same epoch\. The same command"
    with pytest.raises(JobError, match=ended):
        train.main([*SMALL, "--epochs=2", f"--output={tmp_path}", "--name=run"], Failing)
    said = capsys.readouterr().out
    for epoch in (1, 2):
        assert said.count(f"a worker failed; all begin again from the last checkpoint: broken in epoch {epoch}") == 2
    assert [row["epoch"] for row in epochs(tmp_path / "run")] == [1]
    assert starts.read_text() == 6 * "x"


@slow
@pytest.mark.usefixtures("own_cluster")
def test_background_photos_reach_the_trainer(tmp_path: Path) -> None:
    rooms = tmp_path / "rooms"
    rooms.mkdir()
    colours = np.random.default_rng(0).integers(0, 256, (70, 3), np.uint8)  # more than one task decodes
    for number, colour in enumerate(colours):
        (rooms / f"{number}.png").write_bytes(images.encode_png(np.full((40, 50, 3), colour, np.uint8)))
    (rooms / "broken.jpg").write_text("<html>404</html>")
    seen = tmp_path / "seen.npy"

    class Seeing(Trainer):
        def __init__(
            self,
            model: UNet,
            config: TrainingConfig,
            device: torch.device,
            backgrounds_NHWC: np.ndarray | None = None,
            batch: int | None = None,
        ) -> None:
            super().__init__(model, config, device, backgrounds_NHWC, batch)
            np.save(seen, np.array(backgrounds_NHWC))

    augmented = [*SMALL, "--augment-fraction=1", "--epochs=1", "--max-rejected-fraction=0.02", f"--output={tmp_path}"]
    given = [*augmented, f"--backgrounds={rooms}", "--name=run"]
    train.main(given, Seeing)
    backgrounds = np.load(seen)
    assert backgrounds.shape == (70, 32, 32, 3)
    assert sorted(backgrounds[:, 7, 7].tolist()) == sorted(colours.tolist())
    assert f"{rooms}: 71 photos" in (tmp_path / "run/report.html").read_text()
    assert str(rooms / "broken.jpg") in json.loads((tmp_path / "run/rejected.json").read_text())
    assert checkpoint.load(str(tmp_path / "run/best")).config["data"]["backgrounds"] == str(rooms)
    (rooms / "0.png").unlink()
    with pytest.raises(ConfigError, match="backgrounds_fingerprint was"):  # another run
        train.main(given)
    for photo in rooms.glob("*.png"):
        photo.unlink()
    with pytest.raises(JobError, match="None of the photos of --backgrounds"):
        train.main([*given[:-1], "--name=none"])


def test_a_job_that_cannot_begin_says_why(tmp_path: Path) -> None:
    for name in ("empty", "text", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "text/notes.txt").write_text("no pairs")
    output = f"--output={tmp_path}"
    (tmp_path / "run/run.json").write_text(json.dumps({"identity": {"width": 8}}))
    for error, arguments, words in (
        (StorageError, [f"--data={tmp_path / 'missing'}", output], "missing"),
        (StorageError, [f"--data={tmp_path / 'empty'}", output], "empty"),
        (PairsError, [f"--data={tmp_path / 'text'}", output, "--layout=ppm"], "layout ppm"),
        (ConfigError, ["--bacth=3"], "Did you mean --batch"),
        (PhotosError, [*SMALL, output, "--augment-fraction=1", f"--backgrounds={tmp_path / 'text'}"], "photos"),
        (ConfigError, ["--repeats=1,2", output], "--repeats has 2 numbers and --data 1 URIs"),
        (ConfigError, [*SMALL, output, "--name=Läufe"], "give --name"),
        (ConfigError, [*SMALL, output, "--name=run"], "holds another run: .*width was 8, is now 4"),
        (ClusterError, [*SMALL, output, "--workers=64"], "64 workers need 64 CPUs"),
    ):
        with pytest.raises(error, match=words) as caught:
            train.main(arguments)
        assert "\n" not in str(caught.value).strip()


def test_missing_data_exit_with_code_2(tmp_path: Path) -> None:
    code, output = jobs.run_here("train", f"--data={tmp_path / 'missing'}", f"--output={tmp_path}")
    assert code == 2
    assert output.startswith("error: ")
    assert len(output.splitlines()) <= 3
    assert "Traceback" not in output
