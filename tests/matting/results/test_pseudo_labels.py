"""Pseudo-labels: photos paired with the predicted mattes that are confident enough."""

import json
from pathlib import Path

import pytest

from matting.data.pairs import PairsError
from matting.results import ledger
from matting.results.pseudo_labels import pair_predictions
from matting.storage import store
from tests.support.archives import tar_bytes
from tests.support.ledgers import ledger_row
from tests.support.photos import write_keys, write_table


@pytest.fixture
def root(tmp_path: Path) -> str:
    return f"{tmp_path}/data"


@pytest.fixture
def output(tmp_path: Path) -> str:
    rows = [
        ledger_row("sure.jpg", confidence=0.75),
        ledger_row("doubtful.jpg", confidence=0.25),
        ledger_row("bad.jpg", status="failed", error="empty file", confidence=None, outputs=[]),
    ]
    ledger.write_part(f"{tmp_path}/out", "r1", 0, rows)
    return f"{tmp_path}/out"


def test_confident_mattes_become_training_pairs(output: str, root: str) -> None:
    write_keys(root, "sure.jpg", "doubtful.jpg")
    pairing = pair_predictions(output, root, 0.5)
    (pair,) = pairing.pairs
    assert (pair.key, pair.split, pairing.unpaired) == ("sure.jpg", "train", ())
    assert pair.image_uri == f"{root}/sure.jpg"
    assert pair.matte_uri == f"{output}/alpha/sure.jpg.png"
    assert len(pair_predictions(output, root, 0.2).pairs) == 2


def test_photos_may_be_in_archives_and_tables(output: str, root: str) -> None:
    store.write_bytes(f"{root}/photos.tar", tar_bytes([("x.jpg", b"x"), ("sure.jpg", b"sure")]))
    (pair,) = pair_predictions(output, f"{root}/photos.tar", 0.5).pairs
    assert store.read_bytes(pair.image_uri) == b"sure"
    write_keys(root, "photos/1.jpg")
    table = write_table(f"{root}/list.csv", {"key": ["sure.jpg"], "image": ["photos/1.jpg"]})
    (pair,) = pair_predictions(output, table, 0.5).pairs
    assert pair.image_uri == f"{root}/photos/1.jpg"


def test_photos_that_are_gone_are_unpaired(output: str, root: str) -> None:
    write_keys(root, "sure.jpg")
    assert pair_predictions(output, root, 0.2).unpaired == (
        ("doubtful.jpg", f"has a matte, and is not among the photos of {root} that have a URI"),
    )
    table = write_table(f"{root}/bytes.parquet", {"key": ["sure.jpg", "doubtful.jpg"], "image": [b"a", b"b"]})
    with pytest.raises(
        PairsError, match=r"None of 2 mattes in .* has its photo in .*/bytes\.parquet: doubtful\.jpg is"
    ):
        pair_predictions(output, table, 0.2)


@pytest.mark.parametrize("option", [{"background": "#ffffff"}, {"crop": 0.1}])
@pytest.mark.parametrize("path", ["cutout/whole.jpg.png", "mattes/r1-000000.parquet"])
def test_finished_cutouts_are_no_mattes(tmp_path: Path, option: dict[str, object], path: str) -> None:
    output, photos = f"{tmp_path}/out", f"{tmp_path}/photos"
    write_keys(photos, "whole.jpg", "both.jpg", "finished.jpg")
    whole = json.dumps({"write": ["cutout"]})
    ledger.write_part(output, "r1", 0, [ledger_row("whole.jpg", settings=whole, outputs=[path])])
    (pair,) = pair_predictions(output, photos, 0).pairs
    assert pair.matte_uri == f"{output}/{path}"

    both = json.dumps({"write": ["alpha", "cutout"]} | option)
    ledger.write_part(output, "r1", 1, [ledger_row("both.jpg", settings=both, outputs=[path])])
    assert len(pair_predictions(output, photos, 0).pairs) == 2

    finished = json.dumps({"write": ["cutout"]} | option)
    ledger.write_part(output, "r1", 2, [ledger_row("finished.jpg", settings=finished, outputs=[path])])
    with pytest.raises(PairsError, match=r"no mattes, of 1 photos: finished\.jpg\. Predict them again with --write"):
        pair_predictions(output, photos, 0)


def test_too_high_a_confidence_is_an_error(output: str) -> None:
    with pytest.raises(PairsError, match=r"Of 2 mattes in .*, none has a confidence of at least 0\.9"):
        pair_predictions(output, "s3://bucket/photos", 0.9)
