"""The recorder: what a run folder holds after two epochs."""

from pathlib import Path

from matting.nn import checkpoint
from tests.jobs.training.conftest import RecordedRun


def test_progress_names_last_and_best_checkpoint(recorded: RecordedRun) -> None:
    progress = recorded.folder.progress()
    assert progress.keys() == {"epochs_done", "steps", "seconds", "best_mad", "batch", "last", "best"}
    assert (progress["epochs_done"], progress["steps"], progress["best_mad"]) == (2, 2, 1.0)
    assert progress["batch"] == 8
    assert (progress["last"], progress["best"]) == ("epoch-00002", "epoch-00001")
    for name in ("epoch-00001", "epoch-00002", "best"):
        checkpoint.load_train_state(f"{recorded.folder.uri}/{name}")


def test_best_is_the_best_epochs_checkpoint(recorded: RecordedRun) -> None:
    best, first = (checkpoint.load(f"{recorded.folder.uri}/{name}") for name in ("best", "epoch-00001"))
    assert (best.identity, best.metrics) == (first.identity, first.metrics)


def test_first_batch_is_in_the_first_epoch_only(recorded: RecordedRun) -> None:
    rows = [row for row in recorded.folder.history(2) if "val_mad" in row]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert ["first_batch_seconds" in row for row in rows] == [True, False]
    lines = [message for message in recorded.messages if isinstance(message, str)]
    assert lines[0] == f"first batch after {rows[0]['first_batch_seconds']:.1f} s"
    assert [line.partition(":")[0] for line in lines[1:]] == ["epoch 1", "epoch 2"]


def test_stale_checkpoints_are_deleted(recorded: RecordedRun) -> None:
    folder = recorded.folder
    folder.commit_progress({**folder.progress(), "best": "epoch-00002"})
    assert [path.name for path in Path(folder.uri).glob("epoch-*")] == ["epoch-00002"]
