"""Summary of a prediction: counts of bounded size, whatever the size of the collection."""

import pytest

from jobs.prediction.report import SHOWN, PredictionSummary, failure_kind, format_duration

STAGES = ("fetch", "decode", "network", "refine", "encode", "write", "ledger")


def row(key: str, confidence: float = 0.5, error: str | None = None, block: dict | None = None) -> dict:
    status = "done" if error is None else "failed"
    return {"key": key, "status": status, "error": error, "warning": None, "confidence": confidence, "block": block}


def test_summary_adds_blocks_up() -> None:
    summary = PredictionSummary(ray_seconds=2.0)
    for number in range(2):
        seconds = dict.fromkeys(STAGES, 1.0) | {"network": 4.0}
        block = {"node": "n", "device": "CPU", "began": 100.0 + number, "ended": 104.0 + number, **seconds}
        summary.add([row(f"{number}/a", block=block), row(f"{number}/b"), row(f"{number}/c", error="empty file")])
    figures = summary.figures()
    assert (figures["done"], figures["failed"], figures["failures"]) == (4, 2, {"empty file": 2})
    assert (figures["seconds"], figures["photos_per_second"], figures["ray_start_seconds"]) == (5.0, 1.2, 2.0)
    assert figures["stage_seconds"] == {stage: 8.0 if stage == "network" else 2.0 for stage in STAGES}
    assert summary.shares().startswith("network 40 %, ")
    assert summary.in_words().startswith("4 done, 2 failed, 1.2 photos/s for 5 s")


def test_summary_counts_warnings_by_kind() -> None:
    summary = PredictionSummary()
    warnings = ["wrong checksum in tEXt, which was left out", None, "its end is missing; all pixels are there", None]
    warnings.append(warnings[0])
    summary.add([{**row(str(number)), "warning": warning} for number, warning in enumerate(warnings)])
    assert summary.figures()["warnings"] == {warnings[0]: 2, warnings[2]: 1}
    assert (summary.done, summary.unsuccessful) == (5, 0)


def test_causes_name_node_and_device() -> None:
    summary = PredictionSummary()
    for node, failures in (("n1", 3), ("n2", 1)):
        block = {"node": node, "device": "CPU", "began": 1.0, "ended": 2.0, **dict.fromkeys(STAGES, 1.0)}
        keys = [f"{node}/{number}" for number in range(failures)]
        first, *others = [
            {
                **row(key, error=f"ValueError: of {key}"),
                "status": "transient",
                "block": block if key == keys[0] else None,
            }
            for key in keys
        ]
        summary.add([first, *others])
    assert summary.causes() == [
        "3 on CPU of node n1: ValueError: of n1/0",
        "1 on CPU of node n2: ValueError: of n2/0",
    ]
    assert (summary.total, summary.unsuccessful, summary.reasons.total()) == (4, 4, 0)
    assert summary.figures()["transient_failures"] == {"ValueError": 4}


def test_summary_keeps_few_photos() -> None:
    summary = PredictionSummary()
    summary.add([row(str(number), confidence=1 - number / 1000) for number in range(500)])
    summary.add([row(str(number), error=f"{number} pixels: x") for number in range(500, 600)])
    assert summary.total == 600
    assert [key for _, key in summary.least_confident] == [str(number) for number in range(499, 499 - SHOWN, -1)]
    assert len(summary.sample) == len(summary.failed) == SHOWN
    assert summary.reasons == {"N pixels": 100}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("empty file", "empty file"),
        ("30000×30000 pixels, more than 80,000,000", "N×N pixels, more than N"),
        ("cannot be read: s3://bucket/a.jpg", "cannot be read"),
    ],
)
def test_failure_kind_has_no_names(error: str, kind: str) -> None:
    assert failure_kind(error) == kind


def test_durations_are_in_words() -> None:
    assert [format_duration(seconds) for seconds in (7, 89, 300, 12_000)] == ["7 s", "89 s", "5 min", "3 h 20 min"]
