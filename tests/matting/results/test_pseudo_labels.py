"""Pseudo-labels: photos paired with the predicted mattes that are confident enough."""

from pathlib import Path

import pytest

from matting.data.pairs import PairsError
from matting.results import ledger
from matting.results.pseudo_labels import pair_predictions
from tests.support.ledgers import ledger_row


@pytest.fixture
def output(tmp_path: Path) -> str:
    rows = [
        ledger_row("sure.jpg", confidence=0.75),
        ledger_row("doubtful.jpg", confidence=0.25),
        ledger_row("bad.jpg", status="failed", error="empty file", confidence=None, outputs=[]),
    ]
    ledger.write_part(str(tmp_path), "r1", 0, rows)
    return str(tmp_path)


def test_confident_mattes_become_training_pairs(output: str) -> None:
    pairing = pair_predictions(output, "s3://bucket/photos", 0.5)
    (pair,) = pairing.pairs
    assert (pair.key, pair.split) == ("sure.jpg", "train")
    assert pair.image_uri == "s3://bucket/photos/sure.jpg"
    assert pair.matte_uri == f"{output}/alpha/sure.jpg.png"


def test_too_high_a_confidence_is_an_error(output: str) -> None:
    with pytest.raises(PairsError, match=r"Of 2 mattes in .*, none has a confidence of at least 0\.9"):
        pair_predictions(output, "s3://bucket/photos", 0.9)
