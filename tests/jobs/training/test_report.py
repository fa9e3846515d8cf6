"""The page and the summary of a training run."""

import json
from pathlib import Path

import pytest

from jobs.training.report import write_results
from matting.nn import checkpoint
from tests.jobs.training.conftest import RecordedRun


def test_summary_holds_the_best_epoch(recorded: RecordedRun) -> None:
    write_results(recorded.data, recorded.folder)
    summary = json.loads(Path(recorded.folder.uri, "summary.json").read_text())
    first = next(row for row in recorded.folder.history(2) if "val_mad" in row)
    assert summary["run"] == "run"
    assert summary["checkpoint"] == f"{recorded.folder.uri}/best"
    assert summary["model"] == checkpoint.load(summary["checkpoint"]).identity
    assert (summary["epochs_done"], summary["steps"], summary["best_epoch"]) == (2, 2, 1)
    assert summary["seconds"] > 0
    assert summary["validation"] == {name: first[f"val_{name}"] for name in ("n", "mad", "mse", "iou")}
    assert summary["samples_per_second"] == first["samples_per_second"]
    assert summary["first_batch_seconds"] == first["first_batch_seconds"]
    assert summary["left_out"] == 1
    assert summary["command"].startswith("python ")


def test_page_shows_cases_and_left_out_pairs(recorded: RecordedRun, capsys: pytest.CaptureFixture[str]) -> None:
    write_results(recorded.data, recorded.folder)
    page = Path(recorded.folder.uri, "report.html").read_text()
    for part in ("Training run", "validation MAD", "best", "worst", "data:image/", "a.png", "empty file"):
        assert part in page
    said = capsys.readouterr().out
    assert "Left out, and named on the page: 1." in said
    assert f"Page: {recorded.folder.uri}/report.html" in said
