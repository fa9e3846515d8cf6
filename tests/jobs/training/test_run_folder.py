"""The run folder: one run only, whole files, and formats that others read."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from jobs.common.config import ConfigError
from jobs.training.run_folder import RunFolder, encode_history, encode_json, encode_rejected, encode_scores
from matting.nn import checkpoint
from matting.nn.trainer import Score
from matting.nn.unet import UNet, UNetConfig
from matting.storage import store
from matting.storage.lease import LeaseLostError, hold


def write_files(folder: RunFolder, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        store.write_bytes(f"{folder.uri}/{path}", data)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(str(tmp_path / "run"))


def test_another_run_is_refused(folder: RunFolder) -> None:
    folder.begin("command", {"width": 4, "seed": 0})
    folder.begin("same options", {"width": 4, "seed": 0})
    with pytest.raises(ConfigError, match="holds another run: width was 4, is now 8"):
        folder.begin("command", {"width": 8, "seed": 0})


def test_an_empty_folder_has_no_progress(folder: RunFolder) -> None:
    assert folder.progress() == {}
    assert folder.epochs_done() == 0
    assert folder.history(100) == []


def test_history_ends_at_the_given_step(folder: RunFolder) -> None:
    rows = [{"step": step, "epoch": 1, "time": 1.0, "train_loss": 0.5} for step in (25, 50, 75)]
    write_files(folder, encode_history(rows, 1))
    assert folder.history(50) == rows[:2]


def test_tensorboard_reads_the_events_of_an_epoch(folder: RunFolder) -> None:
    rows = [{"step": step, "epoch": step, "time": 1.0, "val_mad": step / 2} for step in (1, 2)]
    write_files(folder, encode_history(rows, 2))
    (file,) = Path(folder.uri, "events").iterdir()
    found = [
        (event.step, value.tag, value.tensor.float_val[0])
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    ]
    assert found == [(2, "val/mad", 1.0)]


def test_scores_and_rejections_come_back(folder: RunFolder) -> None:
    scores = [Score("a.png", 1.0, 2.0, 0.5), Score("b.png", 3.0, 4.0, 0.25)]
    write_files(folder, encode_scores(scores))
    write_files(folder, encode_rejected({"c.png": "empty file"}))
    assert folder.scores() == scores
    assert folder.rejected() == {"c.png": "empty file"}


@pytest.mark.parametrize("method", ["write", "begin", "commit_progress", "write_suspicious", "restore_best"])
def test_a_replaced_job_writes_and_deletes_nothing(tmp_path: Path, method: str) -> None:
    uri = str(tmp_path / "run")
    model = UNet(UNetConfig(width=4))
    checkpoint.save(f"{uri}/epoch-00001", model, checkpoint.describe(model, 32, {}, {}), {"val_mad": 1.0}, {"epoch": 1})
    progress = {"epochs_done": 1, "last": "epoch-00001", "best": "epoch-00001"}
    arguments = {
        "write": ("best/metrics.json", b"{}"),
        "begin": ("command", {"seed": 0}),
        "commit_progress": ({**progress, "last": "epoch-00002", "best": "epoch-00002"},),
        "write_suspicious": ({"a.png": "empty"},),
        "restore_best": (),
    }
    with hold(uri, "first") as fence:
        folder = RunFolder(uri, fence)
        folder.write("progress.json", encode_json(progress))
        with hold(uri, "second", take_over=True):
            before = {(file.key, file.etag) for file in store.list_files(uri)}
            with pytest.raises(LeaseLostError, match="was taken over by process"):
                getattr(folder, method)(*arguments[method])
            assert {(file.key, file.etag) for file in store.list_files(uri)} == before
