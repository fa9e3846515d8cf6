"""The pipeline: outputs, ledger rows and tables of a block of photos, without a cluster."""

import errno
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from jobs.bench.workload import untrained_unet
from matting.data import images
from matting.data.mattes import read_matte
from matting.data.photos import find_photos
from matting.data.synthetic import draw_person
from matting.inference.device_errors import DeviceError
from matting.inference.network import Network
from matting.inference.predictor import Predictor
from matting.inference.refine import cutout
from matting.nn.checkpoint import Checkpoint
from matting.nn.unet import UNetConfig
from matting.results import ledger, outputs
from matting.results.pipeline import PhotoPipeline, PredictionSettings
from matting.storage import store
from matting.storage.local import LocalBackend

SIZES = {"a.jpg": (40, 50), "b/a.jpg": (64, 30), "b/c.png": (1, 1), "d.png": (33, 90), "e.jpg": (8, 8)}


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """Predictor of an untrained network."""
    return Predictor(Network(Checkpoint(untrained_unet(UNetConfig(width=4)), 32, {}, {}, "model")), "guided")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of five photos."""
    folder = tmp_path / "photos"
    for number, (key, (width, height)) in enumerate(SIZES.items()):
        image = images.resize(draw_person(3, number, 64, 64)[0], width, height)
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(images.encode_png(image) if key.endswith("png") else images.encode_jpeg(image))
    return folder


def settings(**changes: Any) -> PredictionSettings:
    options = {"write": ("alpha", "cutout"), "format": "png", "refine": "guided", "sink": "files", "precision": "fp32"}
    return PredictionSettings(**{**options, **changes})


def block(folder: Path, earlier: dict[str, list[str]] | None = None) -> pa.Table:
    table = find_photos(str(folder)).table
    known = [(earlier or {}).get(key) for key in table["key"].to_pylist()]
    return table.append_column("outputs", pa.array(known, pa.list_(pa.string())))


def handle(
    predictor: Predictor,
    wanted: PredictionSettings,
    folder: Path,
    output: Path,
    earlier: dict[str, list[str]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Handle all photos as one block, and return the ledger's rows by key."""
    run = ledger.new_run_name(datetime.now(UTC))
    photo_pipeline = PhotoPipeline(str(output), wanted, run, "model", predictor, micro_batch=2)
    rows, _ = photo_pipeline.handle(block(folder, earlier), 0)
    assert sorted(row["key"] for row in rows) == find_photos(str(folder)).table["key"].to_pylist()
    return {row["key"]: row for row in ledger.read(str(output)).to_pylist()}


def files(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "_ledger" not in str(path)
    }


def test_alpha_is_independent_of_the_block(photos: Path, tmp_path: Path) -> None:
    loaded = Checkpoint(untrained_unet(UNetConfig(width=4)), 32, {"data": {"aspects": [0.75, 1.0]}}, {}, "model")
    predictor = Predictor(Network(loaded), "guided")
    shapes = {predictor.input_shape(*size) for size in SIZES.values()}
    assert shapes == {(32, 32), (38, 19), (19, 38)}
    handle(predictor, settings(write=("alpha",)), photos, tmp_path / "out")
    for key in SIZES:
        alone = predictor(Image.open(photos / key))
        found = images.decode_alpha((tmp_path / "out/alpha" / f"{key}.png").read_bytes())
        np.testing.assert_array_equal(found, np.array(alone))


def test_each_photo_gets_outputs_and_a_row(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    rows = handle(predictor, settings(), photos, output)
    assert files(output) == {f"{kind}/{key}.png" for kind in ("alpha", "cutout") for key in SIZES}
    for key, (width, height) in SIZES.items():
        image = images.decode_image((photos / key).read_bytes())
        (expected,) = predictor.alphas([image])  # one photo at a time
        alpha = np.array(Image.open(output / f"alpha/{key}.png"))
        found = np.array(Image.open(output / f"cutout/{key}.png"))
        assert alpha.shape == (height, width)
        np.testing.assert_array_equal(alpha, expected)
        np.testing.assert_array_equal(found, cutout(image, expected))
        row = rows[key]
        assert (row["status"], row["error"], row["width"], row["height"]) == ("done", None, width, height)
        assert row["coverage"] == pytest.approx(expected.mean() / 255, abs=1e-6)
        assert row["confidence"] == pytest.approx(np.abs(2 * (expected / 255) - 1).mean(), abs=1e-6)
        assert row["outputs"] == [f"alpha/{key}.png", f"cutout/{key}.png"]
        assert (row["model"], row["settings"]) == ("model", str(settings()))
        assert row["size"] == (photos / key).stat().st_size


def test_webp_cutout_keeps_its_alpha(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    handle(predictor, settings(write=("cutout",), format="webp"), photos, tmp_path)
    for key in SIZES:
        image = images.decode_image((photos / key).read_bytes())
        (expected,) = predictor.alphas([image])
        found = Image.open(tmp_path / f"cutout/{key}.webp")
        assert found.format == "WEBP"
        np.testing.assert_array_equal(np.array(found.convert("RGBA").getchannel("A")), expected)


def test_alpha_is_independent_of_what_is_written(tmp_path: Path) -> None:
    loaded = Checkpoint(untrained_unet(UNetConfig(width=4)), 32, {}, {}, "model")
    predictor = Predictor(Network(loaded, number_format="fp32"), "guided")  # other formats round small differences away
    image = draw_person(3, 0, 600, 520)[0]  # decoded at an eighth, for a network of 32 pixels a side
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(images.encode_jpeg(image))
    whole = images.decode_image((tmp_path / "photos/a.jpg").read_bytes())
    handle(predictor, settings(write=("alpha",)), tmp_path / "photos", tmp_path / "alone")
    handle(predictor, settings(), tmp_path / "photos", tmp_path / "both")
    alone, both = (np.array(Image.open(tmp_path / f"{name}/alpha/a.jpg.png")) for name in ("alone", "both"))
    np.testing.assert_array_equal(alone, both)
    (expected,) = predictor.alphas([whole])
    assert np.abs(alone.astype(int) - expected).mean() < 2
    found = np.array(Image.open(tmp_path / "both/cutout/a.jpg.png"))
    np.testing.assert_array_equal(found, cutout(whole, alone))


def test_table_holds_the_same_bytes_as_files(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    handle(predictor, settings(), photos, tmp_path / "files")
    rows = handle(predictor, settings(sink="table"), photos, tmp_path / "table")
    found = duckdb.sql(f"select * from '{tmp_path}/table/mattes/*.parquet' order by key").fetchall()
    etags = dict(zip(*(find_photos(str(photos)).table[name].to_pylist() for name in ("key", "etag")), strict=True))
    assert found == [
        (key, etags[key], *((tmp_path / "files" / kind / f"{key}.png").read_bytes() for kind in ("alpha", "cutout")))
        for key in sorted(SIZES)
    ]
    (part,) = (tmp_path / "table/mattes").iterdir()
    for key, row in rows.items():
        assert row["outputs"] == [f"mattes/{part.name}"]
        assert read_matte(key, str(part), 1) == (tmp_path / f"files/alpha/{key}.png").read_bytes()


@pytest.mark.parametrize("sink", ["files", "table"])
def test_bad_photo_is_a_row_with_its_reason(predictor: Predictor, photos: Path, tmp_path: Path, sink: str) -> None:
    whole = (photos / "a.jpg").read_bytes()
    (photos / "a.jpg").write_bytes(whole[:-300])
    (photos / "empty.png").write_bytes(b"")
    (photos / "page.jpg").write_text("<html></html>")
    (photos / "link.jpg").symlink_to(photos / "nowhere")
    rows = handle(predictor, settings(sink=sink), photos, tmp_path / "out")
    reasons = {key: row["error"] for key, row in rows.items() if row["status"] == "failed"}
    assert reasons.keys() == {"a.jpg", "empty.png", "page.jpg", "link.jpg"}
    assert reasons["a.jpg"].startswith("truncated JPEG")
    assert reasons["empty.png"] == "empty file"
    assert reasons["page.jpg"].startswith("not an image")
    assert reasons["link.jpg"].startswith("cannot be read: ")
    for key in reasons:
        assert rows[key]["outputs"] == []
        assert rows[key]["coverage"] is None
        assert rows[key]["confidence"] is None
    assert {key for key, row in rows.items() if row["status"] == "done"} == SIZES.keys() - {"a.jpg"}


def test_photo_is_due_again_unless_it_is_the_cause(
    predictor: Predictor, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = {
        "a.jpg": PermissionError(errno.EACCES, "denied"),
        "b/a.jpg": FileNotFoundError(errno.ENOENT, "gone"),
        "d.png": OSError(errno.EIO, "broken disk"),
    }
    open_file = LocalBackend.open_file

    def refuse(backend: LocalBackend, path: str) -> Any:
        if error := errors.get(path.removeprefix(f"{photos}/")):
            raise error
        return open_file(backend, path)

    monkeypatch.setattr(LocalBackend, "open_file", refuse)
    refined = predictor.enlarge

    def fail_on_one(small: Any, images_HWC: Any, sizes: Any) -> Any:
        if (1, 1) in sizes:
            raise ValueError("unforeseen")
        return refined(small, images_HWC, sizes)

    monkeypatch.setattr(predictor, "enlarge", fail_on_one)
    rows = handle(predictor, settings(), photos, tmp_path / "out")
    statuses = {key: row["status"] for key, row in rows.items()}
    assert statuses == {
        "a.jpg": "transient",
        "b/a.jpg": "failed",
        "b/c.png": "transient",
        "d.png": "transient",
        "e.jpg": "done",
    }
    assert rows["b/c.png"]["error"] == "ValueError: unforeseen"
    assert rows["a.jpg"]["outputs"] == []


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        torch.OutOfMemoryError("out of memory"),
    ],
)
def test_broken_device_ends_the_block_without_rows(
    predictor: Predictor, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(predictor, "predict_small", fail)
    with pytest.raises(DeviceError, match=str(error)):
        handle(predictor, settings(), photos, tmp_path / "out")
    assert len(ledger.read(str(tmp_path / "out"))) == 0


@pytest.mark.parametrize("kind", ["alpha", "cutout"])
def test_unwritable_output_is_due_again(predictor: Predictor, photos: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / f"out/{kind}/b/c.png.png").mkdir(parents=True)  # a folder where an output should go
    rows = handle(predictor, settings(), photos, tmp_path / "out")
    assert {key: row["status"] for key, row in rows.items() if row["status"] != "done"} == {"b/c.png": "transient"}
    assert rows["b/c.png"]["error"].startswith("cannot be written: ")
    assert files(tmp_path / "out") == {path for row in rows.values() for path in row["outputs"]}


def test_superseded_outputs_are_deleted(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    rows = handle(predictor, settings(), photos, output)
    (photos / "a.jpg").write_bytes(b"")
    earlier = {key: row["outputs"] for key, row in rows.items()}
    rows = handle(predictor, settings(format="webp"), photos, output, earlier)
    good = SIZES.keys() - {"a.jpg"}
    assert files(output) == {f"alpha/{key}.png" for key in good} | {f"cutout/{key}.webp" for key in good}
    assert {path for row in rows.values() for path in row["outputs"]} == files(output)


@pytest.mark.parametrize("sink", ["files", "table"])
def test_remove_deletes_listed_outputs_only(predictor: Predictor, photos: Path, tmp_path: Path, sink: str) -> None:
    rows = handle(predictor, settings(sink=sink), photos, tmp_path)
    gone = {key: rows[key]["outputs"] for key in ("a.jpg", "d.png")}
    for _ in range(2):  # the second time nothing is there
        outputs.remove(str(tmp_path), gone)
    kept = SIZES.keys() - gone.keys()
    if sink == "files":
        left = {file.key for file in store.list_files(str(tmp_path)) if file.key.startswith(("alpha", "cutout"))}
        assert left == {f"{kind}/{key}.png" for kind in ("alpha", "cutout") for key in kept}
    else:
        (part,) = (tmp_path / "mattes").iterdir()
        assert set(pq.read_table(part)["key"].to_pylist()) == kept


def test_settings_are_stable_json() -> None:
    assert str(settings()) == (
        '{"format": "png", "precision": "fp32", "refine": "guided", "sink": "files", "write": ["alpha", "cutout"]}'
    )
