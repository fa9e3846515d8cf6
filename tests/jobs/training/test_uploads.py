"""The uploader: epochs reach the run folder whole and in order, also when the store refuses requests for a while."""

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tenacity import wait_none

from jobs import train
from jobs.training import uploads
from jobs.training.run_folder import RunFolder
from jobs.training.uploads import EpochFiles, EpochUploader
from matting.nn.trainer import Epoch, Trainer
from matting.storage import retry, store
from matting.storage.errors import StorageError, TransientStorageError
from tests.support.faults import Proxy


@pytest.fixture
def refusing(store_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Event that is set while the store refuses every request."""
    refuses = threading.Event()
    monkeypatch.setattr(store_proxy, "plan", iter(lambda: "throttle" if refuses.is_set() else None, "never"))
    yield refuses
    refuses.clear()


@pytest.fixture
def folder(bucket: str, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Run folder on object storage, whose requests are retried without pauses."""
    monkeypatch.setattr(retry, "_WAIT", wait_none())
    monkeypatch.setattr(uploads, "RETRY_SECONDS", 0.05)
    return RunFolder(f"{bucket}/run")


def epoch_files(number: int, best: int) -> EpochFiles:
    """Return the files of an epoch; each one's content is the epoch's number."""
    content = str(number).encode()
    files = {f"epoch-{number:05d}/weights": content, f"events/{number}": content, "metrics.jsonl": content}
    progress = {"epochs_done": number, "last": f"epoch-{number:05d}", "best": f"epoch-{best:05d}"}
    return EpochFiles(files, progress, {"weights": content} if best == number else {})


def contents(folder: RunFolder) -> dict[str, bytes]:
    """Return everything in a run folder but progress.json."""
    files = {file.key: store.read_bytes(f"{folder.uri}/{file.key}") for file in store.list_files(folder.uri)}
    del files["progress.json"]
    return files


def test_progress_is_written_when_upload_returns(folder: RunFolder) -> None:
    said: list[str] = []
    uploader = EpochUploader(folder, said.append)
    for number in (1, 2, 3):
        uploader.upload(epoch_files(number, best=2 if number > 1 else 1))
        assert folder.progress()["epochs_done"] == number
    uploader.close()
    assert contents(folder) == {
        "best/weights": b"2",
        "epoch-00002/weights": b"2",
        "epoch-00003/weights": b"3",
        "events/1": b"1",
        "events/2": b"2",
        "events/3": b"3",
        "metrics.jsonl": b"3",
    }
    assert said == []


def test_refused_epoch_is_kept_and_uploaded_later(folder: RunFolder, refusing: threading.Event) -> None:
    said: list[str] = []
    uploader = EpochUploader(folder, said.append)
    refusing.set()
    uploader.upload(epoch_files(1, best=1))
    assert said[0].startswith("The checkpoint of epoch 1 is kept in /")
    kept = Path(said[0].split(" kept in ")[1].partition(",")[0])
    found = {str(path.relative_to(kept)): path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    assert json.loads(found.pop("progress.json"))["epochs_done"] == 1
    assert found == epoch_files(1, best=1).files
    refusing.clear()
    uploader.close()
    assert folder.progress()["epochs_done"] == 1
    assert contents(folder) == {**found, "best/weights": b"1"}
    assert said[1:] == ["The checkpoint of epoch 1 is uploaded."]
    assert not kept.exists()


def test_newer_epoch_takes_the_place_of_a_refused_one(folder: RunFolder, refusing: threading.Event) -> None:
    said: list[str] = []
    uploader = EpochUploader(folder, said.append)
    uploader.upload(epoch_files(1, best=1))
    refusing.set()
    for number, best in ((2, 2), (3, 3), (4, 3)):
        uploader.upload(epoch_files(number, best))
    refusing.clear()
    uploader.close()
    assert folder.progress()["epochs_done"] == 4
    assert contents(folder) == {
        "best/weights": b"3",
        "epoch-00003/weights": b"3",
        "epoch-00004/weights": b"4",
        **{f"events/{number}": str(number).encode() for number in (1, 2, 3, 4)},
        "metrics.jsonl": b"4",
    }
    assert [line.partition(" is ")[0] for line in said] == ["The checkpoint of epoch 2", "The checkpoint of epoch 4"]


def test_last_epoch_that_stays_refused_is_named(
    folder: RunFolder, refusing: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "LAST_SECONDS", 0.5)
    uploader = EpochUploader(folder, print)
    refusing.set()
    uploader.upload(epoch_files(1, best=1))
    with pytest.raises(TransientStorageError, match=r"last checkpoint of s3:.*kept in (/\S+): copy") as caught:
        uploader.close()
    kept = Path(str(caught.value).split(" kept in ")[1].partition(":")[0])
    assert (kept / "epoch-00001/weights").read_bytes() == b"1"
    monkeypatch.setattr(uploads, "LAST_SECONDS", 60)
    refusing.clear()
    uploader.close()
    assert folder.progress()["epochs_done"] == 1


def test_permanent_error_ends_the_run_at_once() -> None:
    folder = RunFolder("nowhere://bucket/run")
    uploader = EpochUploader(folder, print)
    for call in (lambda: uploader.upload(epoch_files(1, best=1)), uploader.close):
        with pytest.raises(StorageError, match="Protocol not known"):
            call()


@pytest.mark.slow
@pytest.mark.usefixtures("own_cluster")
def test_a_lone_driver_loses_no_epoch_while_the_store_refuses(
    folder: RunFolder, refusing: threading.Event, capsys: pytest.CaptureFixture[str]
) -> None:
    class CutOff(Trainer):
        def train_epoch(self, *arguments: Any) -> Epoch:
            if self.epochs_done == 2:
                refusing.set()
            if self.epochs_done == 4:
                refusing.clear()
            return super().train_epoch(*arguments)

    output, _, name = folder.uri.rpartition("/")
    options = ["--width=4", "--size=32", "--synthetic-pairs=60", "--minutes=10", "--epochs=6"]
    train.main([*options, f"--output={output}", f"--name={name}"], CutOff)
    said = capsys.readouterr().out
    assert "The checkpoint of epoch 3 is kept in /" in said
    assert re.search(r"The checkpoint of epoch [3-6] is uploaded\.", said)
    assert folder.progress()["epochs_done"] == 6
    assert [row["epoch"] for row in folder.history(10**9) if "val_mad" in row] == [1, 2, 3, 4, 5, 6]
