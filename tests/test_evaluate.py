"""Evaluation: the same figures as the metrics by hand, nothing left out, on object storage as on a disk."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from jobs import evaluate
from jobs.cluster import JobError
from jobs.config import ConfigError
from matting import checkpoint, images, storage
from matting.checkpoint import CheckpointError
from matting.collection import PairOptions, open_pairs
from matting.metrics import METRICS, image_metrics
from matting.predictor import Network, Predictor, Refine
from matting.unet import UNet, UNetConfig
from tests.drawing import write_folders

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dozen pairs of 40 pixels."""
    root = tmp_path_factory.mktemp("raw") / "people"
    write_folders(root, 24, 40)
    return root


def write_predictions(raw: Path, folder: Path) -> dict[str, dict[str, float]]:
    """The true mattes, darker and of half the size, under both names that are allowed; what they should score."""
    expected = {}
    pairs = open_pairs(str(raw), PairOptions())
    for split, keys in pairs.keys.items():
        for number, key in enumerate(keys):
            alpha = pairs.example(split, key).alpha
            small = images.resize((alpha * 0.8).astype(np.uint8), 20, 20)
            name = f"{key}.png" if number % 2 else f"{key.removesuffix('.png')}.png"
            storage.write_bytes(f"{folder}/{name}", images.encode_png(small))
            expected[key] = image_metrics(images.resize(small, 40, 40), alpha)
    return expected


def test_scores_mattes_of_any_other_system(raw: Path, tmp_path: Path) -> None:
    expected = write_predictions(raw, tmp_path / "predictions")
    arguments = [f"--data={raw}", f"--predictions={tmp_path / 'predictions'}", "--split=all"]
    evaluate.main([*arguments, f"--output={tmp_path / 'scores'}"])
    rows = pq.read_table(tmp_path / "scores/per_image.parquet").to_pylist()
    assert {row["key"]: {name: row[name] for name in METRICS} for row in rows} == expected
    means = json.loads((tmp_path / "scores/metrics.json").read_text())
    assert list(means) == ["n", "mad", "mse", "sad", "grad", "conn", "iou", "aurc"]
    assert means["n"] == 24
    by_confidence = sorted(rows, key=lambda row: -row["confidence"])
    errors = [row["mad"] for row in by_confidence]
    assert means["aurc"] == pytest.approx(sum(sum(errors[:some]) / some for some in range(1, 25)) / 24)
    for name in METRICS:
        assert means[name] == pytest.approx(sum(row[name] for row in expected.values()) / 24)
    assert "worst" in (tmp_path / "scores/report.html").read_text()


def test_two_checkpoints_side_by_side_and_figures_for_each_collection(raw: Path, tmp_path: Path) -> None:
    write_folders(tmp_path / "more", 20, 24)
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        model = UNet(UNetConfig(width=4))
        checkpoint.save(str(tmp_path / name), model, checkpoint.describe(model, 32, {}, {}), {"val_mad": 1.0})
    checkpoints = [f"--checkpoint={tmp_path}/one", f"--beside={tmp_path}/two"]
    evaluate.main([f"--data={raw},{tmp_path}/more", *checkpoints, f"--output={tmp_path}/scores", "--split=train"])
    rows = pq.read_table(tmp_path / "scores/per_image.parquet").to_pylist()
    means = json.loads((tmp_path / "scores/metrics.json").read_text())
    assert set(means["sources"]) == {"people", "more"}
    for source, figures in means["sources"].items():
        own = [row["mad"] for row in rows if row["key"].startswith(f"{source}/")]
        assert figures["n"] == len(own)
        assert figures["mad"] == pytest.approx(np.mean(own))
    page = (tmp_path / "scores/report.html").read_text()
    for source in means["sources"]:
        worst = max((row for row in rows if row["key"].startswith(f"{source}/")), key=lambda row: row["mad"])["key"]
        assert f"<h3>{source}: worst</h3>" in page
        assert f"<code>{worst}</code>" in page
        assert f"<code>{worst}, by {tmp_path}/two</code>" in page


def test_scores_a_checkpoint_as_predict_would_refine_its_alphas(raw: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = UNet(UNetConfig(width=4))
    checkpoint.save(str(tmp_path / "one"), model, checkpoint.describe(model, 32, {}, {}), {"val_mad": 1.0})
    pairs = open_pairs(str(raw), PairOptions())
    loaded = checkpoint.load(str(tmp_path / "one"))
    errors = set()
    for refine in get_args(Refine):
        output = tmp_path / refine
        arguments = [f"--data={raw}", f"--checkpoint={tmp_path}/one", f"--refine={refine}", "--split=val"]
        evaluate.main([*arguments, f"--output={output}"])
        predictor = Predictor(Network(loaded, number_format="fp32"), refine)
        for row in pq.read_table(output / "per_image.parquet").to_pylist():
            example = pairs.example("val", row["key"])
            assert row["mad"] == image_metrics(predictor.alphas([example.image])[0], example.alpha)["mad"]
            errors.add(row["mad"])
        assert f"refine {refine}" in (output / "report.html").read_text()
    assert len(errors) == 3 * len(pairs.keys["val"])


def test_a_missing_or_broken_prediction_is_an_error(raw: Path, tmp_path: Path) -> None:
    write_predictions(raw, tmp_path / "predictions")
    keys = open_pairs(str(raw), PairOptions()).keys["train"]
    (tmp_path / f"predictions/{keys[0].removesuffix('.png')}.png").unlink()
    (tmp_path / f"predictions/{keys[1]}.png").write_bytes(b"not a picture")
    arguments = [f"--data={raw}", f"--predictions={tmp_path / 'predictions'}", "--split=train"]
    with pytest.raises(
        JobError, match=f"2 of {len(keys)} pictures have no usable prediction.*no prediction; looked for"
    ):
        evaluate.main([*arguments, f"--output={tmp_path / 'scores'}"])
    assert not (tmp_path / "scores/metrics.json").exists()


def test_pairs_that_cannot_be_used_are_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "people"
    write_folders(raw, 12, 40)
    write_predictions(raw, tmp_path / "predictions")
    (raw / "images/person-001.png").write_bytes(b"")
    arguments = [f"--data={raw}", f"--predictions={tmp_path / 'predictions'}", "--split=all"]
    with pytest.raises(JobError, match=r"1 of 12 pairs cannot be used.*person-001\.png: image: empty file"):
        evaluate.main([*arguments, f"--output={tmp_path / 'refused'}"])
    evaluate.main([*arguments, f"--output={tmp_path / 'scores'}", "--max-rejected-fraction=0.1"])
    assert json.loads((tmp_path / "scores/metrics.json").read_text())["n"] == 11
    assert "images/person-001.png" in (tmp_path / "scores/report.html").read_text()
    assert "Left out, and named on the page: 1." in capsys.readouterr().out


def test_says_what_it_needs(raw: Path, tmp_path: Path) -> None:
    output = f"--output={tmp_path}"
    with pytest.raises(ConfigError, match="either --checkpoint or --predictions"):
        evaluate.main([f"--data={raw}", output])
    with pytest.raises(ConfigError, match="--refine is for the alphas of a checkpoint"):
        evaluate.main([f"--data={raw}", output, f"--predictions={tmp_path}", "--refine=guided"])
    with pytest.raises(CheckpointError, match=r"config\.json"):
        evaluate.main([f"--data={raw}", output, f"--checkpoint={tmp_path}"])
    with pytest.raises(storage.StorageError, match="does not exist"):
        evaluate.main([f"--data={raw}", output, f"--predictions={tmp_path / 'nothing'}"])
