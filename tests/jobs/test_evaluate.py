"""evaluate: metrics as computed by hand, and no image left out without a name."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from jobs import evaluate
from jobs.common.cli import JobError
from jobs.common.config import ConfigError
from matting.data import images
from matting.data.dataset import PairOptions, open_dataset
from matting.inference.network import Network
from matting.inference.predictor import Predictor, Refine
from matting.nn import checkpoint
from matting.nn.checkpoint import CheckpointError
from matting.nn.metrics import METRICS, image_metrics
from matting.nn.unet import UNet, UNetConfig
from matting.storage import store
from matting.storage.errors import StorageError
from tests.support.drawing import write_folders

pytestmark = pytest.mark.usefixtures("ray_cluster")
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of two dozen pairs of 40 × 40 pixels."""
    root = tmp_path_factory.mktemp("raw") / "people"
    write_folders(root, 24, 40)
    return root


def write_predictions(raw: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Write the true mattes, darker and of half the size, under both kinds of names. Returns their true metrics."""
    expected = {}
    pairs = open_dataset(str(raw), PairOptions())
    for split, keys in pairs.keys.items():
        for number, key in enumerate(keys):
            alpha = pairs.example(split, key).alpha
            small = images.resize((alpha * 0.8).astype(np.uint8), 20, 20)
            name = f"{key}.png" if number % 2 else f"{key.removesuffix('.png')}.png"
            store.write_bytes(f"{folder}/{name}", images.encode_png(small))
            expected[key] = image_metrics(images.resize(small, 40, 40), alpha)
    return expected


def test_mattes_of_another_system_are_scored(raw: Path, tmp_path: Path) -> None:
    expected = write_predictions(raw, tmp_path / "predictions")
    arguments = [f"--data={raw}", f"--predictions={tmp_path / 'predictions'}", "--split=all"]
    evaluate.main([*arguments, f"--output={tmp_path / 'scores'}"])
    rows = pq.read_table(tmp_path / "scores/per_image.parquet").to_pylist()
    assert {row["key"]: {name: row[name] for name in METRICS} for row in rows} == expected
    means = json.loads((tmp_path / "scores/summary.json").read_text())
    assert list(means) == [
        *("command", "checkpoint", "predictions", "data", "split", "suspicious"),
        *("n", "mad", "mse", "sad", "grad", "conn", "iou", "aurc"),
    ]
    assert (means["checkpoint"], means["data"], means["split"]) == (None, str(raw), "all")
    assert means["n"] == 24
    by_confidence = sorted(rows, key=lambda row: -row["confidence"])
    errors = [row["mad"] for row in by_confidence]
    assert means["aurc"] == pytest.approx(sum(sum(errors[:count]) / count for count in range(1, 25)) / 24)
    for name in METRICS:
        assert means[name] == pytest.approx(sum(row[name] for row in expected.values()) / 24)
    assert "worst" in (tmp_path / "scores/report.html").read_text()


@slow
def test_each_dataset_has_its_own_figures(raw: Path, tmp_path: Path) -> None:
    write_folders(tmp_path / "more", 20, 24)
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        model = UNet(UNetConfig(width=4))
        checkpoint.save(str(tmp_path / name), model, checkpoint.describe(model, 32, {}, {}), {"val_mad": 1.0})
    checkpoints = [f"--checkpoint={tmp_path}/one", f"--beside={tmp_path}/two"]
    evaluate.main([f"--data={raw},{tmp_path}/more", *checkpoints, f"--output={tmp_path}/scores", "--split=train"])
    rows = pq.read_table(tmp_path / "scores/per_image.parquet").to_pylist()
    means = json.loads((tmp_path / "scores/summary.json").read_text())
    assert means["checkpoint"] == f"{tmp_path}/one"
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


@slow
def test_alphas_are_refined_as_by_predict(raw: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = UNet(UNetConfig(width=4))
    checkpoint.save(str(tmp_path / "one"), model, checkpoint.describe(model, 32, {}, {}), {"val_mad": 1.0})
    pairs = open_dataset(str(raw), PairOptions())
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


@slow
def test_missing_or_broken_prediction_is_an_error(raw: Path, tmp_path: Path) -> None:
    write_predictions(raw, tmp_path / "predictions")
    keys = open_dataset(str(raw), PairOptions()).keys["train"]
    (tmp_path / f"predictions/{keys[0].removesuffix('.png')}.png").unlink()
    (tmp_path / f"predictions/{keys[1]}.png").write_bytes(b"not an image")
    arguments = [f"--data={raw}", f"--predictions={tmp_path / 'predictions'}", "--split=train"]
    with pytest.raises(JobError, match=f"2 of {len(keys)} images have no usable prediction.*no prediction; looked for"):
        evaluate.main([*arguments, f"--output={tmp_path / 'scores'}"])
    assert not (tmp_path / "scores/summary.json").exists()


@slow
def test_unusable_pairs_are_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "people"
    write_folders(raw, 12, 40)
    write_predictions(raw, tmp_path / "predictions")
    (raw / "images/person-001.png").write_bytes(b"")
    arguments = [f"--data={raw}", f"--predictions={tmp_path / 'predictions'}", "--split=all"]
    with pytest.raises(JobError, match=r"1 of 12 pairs cannot be used.*person-001\.png: image: empty file"):
        evaluate.main([*arguments, f"--output={tmp_path / 'refused'}"])
    evaluate.main([*arguments, f"--output={tmp_path / 'scores'}", "--max-rejected-fraction=0.1"])
    assert json.loads((tmp_path / "scores/summary.json").read_text())["n"] == 11
    assert "images/person-001.png" in (tmp_path / "scores/report.html").read_text()
    assert "Left out, and named on the page: 1." in capsys.readouterr().out


def test_wrong_options_are_refused(raw: Path, tmp_path: Path) -> None:
    output = f"--output={tmp_path}"
    with pytest.raises(ConfigError, match="either --checkpoint or --predictions"):
        evaluate.main([f"--data={raw}", output])
    with pytest.raises(ConfigError, match="--refine is for the alphas of a checkpoint"):
        evaluate.main([f"--data={raw}", output, f"--predictions={tmp_path}", "--refine=guided"])
    with pytest.raises(CheckpointError, match=r"config\.json"):
        evaluate.main([f"--data={raw}", output, f"--checkpoint={tmp_path}"])
    with pytest.raises(StorageError, match="does not exist"):
        evaluate.main([f"--data={raw}", output, f"--predictions={tmp_path / 'nothing'}"])
