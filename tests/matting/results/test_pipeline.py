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
from matting.data.images import Pixels
from matting.data.mattes import read_matte
from matting.data.photos import find_photos
from matting.data.synthetic import draw_person
from matting.inference.compose import cover, crop_to_person, on_background
from matting.inference.device_errors import DeviceError
from matting.inference.network import Network
from matting.inference.predictor import Predictor
from matting.inference.refine import cutout
from matting.nn.checkpoint import Checkpoint
from matting.nn.unet import UNetConfig
from matting.results import ledger, outputs
from matting.results.cutouts import BadBackground, find_background
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


def test_person_has_a_box(predictor: Predictor, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw_alpha(width: int, height: int) -> Pixels:
        alpha = np.zeros((height, width), np.uint8)
        if (width, height) == SIZES["a.jpg"]:
            alpha[7:20, 3:11], alpha[30, 33] = 128, 127
        return alpha

    monkeypatch.setattr(predictor, "enlarge", lambda _, __, sizes: [draw_alpha(*size) for size in sizes])
    (photos / "empty.png").write_bytes(b"")
    rows = handle(predictor, settings(write=("alpha",)), photos, tmp_path / "out")
    boxes = {key: tuple(row[side] for side in ("left", "top", "right", "bottom")) for key, row in rows.items()}
    assert boxes == dict.fromkeys([*SIZES, "empty.png"], (None,) * 4) | {"a.jpg": (3, 7, 11, 20)}


@pytest.mark.parametrize("sink", ["files", "table"])
def test_cutouts_are_cropped_and_on_the_background(
    predictor: Predictor, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sink: str
) -> None:
    scene = images.resize(draw_person(8, 0, 64, 64)[0], 90, 20)
    (tmp_path / "scene.png").write_bytes(images.encode_png(scene))
    background = find_background(str(tmp_path / "scene.png"))

    def draw_alpha(width: int, height: int) -> Pixels:
        alpha = np.random.default_rng(width).integers(0, 128, (height, width)).astype(np.uint8)
        alpha[height // 3 : height // 3 + height // 5 + 1, width // 4 : width // 3 + 1] = 255
        return alpha

    monkeypatch.setattr(predictor, "enlarge", lambda _, __, sizes: [draw_alpha(*size) for size in sizes])
    reads: list[str] = []
    read = store.read_bytes
    monkeypatch.setattr(store, "read_bytes", lambda uri, *limit: reads.append(uri) or read(uri, *limit))
    rows = handle(predictor, settings(background=background, crop=0.2, sink=sink), photos, tmp_path / "out")
    assert reads.count(background.source) == 1
    shapes = {}
    for key in SIZES:
        image = images.decode_image((photos / key).read_bytes())
        (alpha,) = predictor.alphas([image])
        layers = crop_to_person(cutout(image, alpha), 0.2)
        expected = on_background(layers, cover(scene, layers.shape[1], layers.shape[0]))
        shapes[key] = layers.shape[:2]
        if sink == "files":
            contents = {kind: (tmp_path / f"out/{kind}/{key}.png").read_bytes() for kind in ("alpha", "cutout")}
        else:
            ((*row,),) = duckdb.sql(
                f"select alpha, cutout from '{tmp_path}/out/mattes/*.parquet' where key = '{key}'"
            ).fetchall()
            contents = dict(zip(("alpha", "cutout"), row, strict=True))
        np.testing.assert_array_equal(images.decode_alpha(contents["alpha"]), alpha)  # whole
        np.testing.assert_array_equal(images.decode_image(contents["cutout"]), expected)
        assert rows[key]["status"] == "done"
    assert shapes == {"a.jpg": (15, 8), "b/a.jpg": (9, 8), "b/c.png": (1, 1), "d.png": (27, 12), "e.jpg": (2, 1)}


@pytest.mark.parametrize(("file_format", "kind"), [("jpg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_composite_has_the_format(
    predictor: Predictor, photos: Path, tmp_path: Path, file_format: str, kind: str
) -> None:
    wanted = settings(write=("cutout",), format=file_format, background=find_background("#ff0080"))
    rows = handle(predictor, wanted, photos, tmp_path)
    for key, (width, height) in SIZES.items():
        assert rows[key]["outputs"] == [f"cutout/{key}.{file_format}"]
        image = images.decode_image((photos / key).read_bytes())
        (alpha,) = predictor.alphas([image])
        expected = on_background(cutout(image, alpha), np.full((height, width, 3), (255, 0, 128), np.uint8))
        with Image.open(tmp_path / f"cutout/{key}.{file_format}") as found:
            assert (found.format, found.mode) == (kind, "RGB")
            assert np.abs(np.array(found).astype(int) - expected).mean() < (0.1 if kind == "PNG" else 8)


def test_background_that_was_replaced_is_refused(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "scene.png").write_bytes((photos / "d.png").read_bytes())
    wanted = settings(background=find_background(str(tmp_path / "scene.png")))
    (tmp_path / "scene.png").write_bytes((photos / "b/c.png").read_bytes())
    with pytest.raises(BadBackground, match=r"scene\.png was replaced while it was in use; run again"):
        handle(predictor, wanted, photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()


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


def test_settings_have_the_identity_of_the_background(photos: Path, tmp_path: Path) -> None:
    def text(background: object, **changes: Any) -> str:
        return str(settings(background=find_background(str(background)), **changes))

    assert '"background": "#ffffff"' in text("white")
    assert text("white") == text("#FFF") == text("rgb(255, 255, 255)") != text("black")
    for copy in ("one.png", "two.png"):
        (tmp_path / copy).write_bytes((photos / "d.png").read_bytes())
    assert text(tmp_path / "one.png") == text(tmp_path / "two.png")
    before = text(tmp_path / "one.png")
    (tmp_path / "one.png").write_bytes((photos / "b/c.png").read_bytes())
    assert text(tmp_path / "one.png") != before
    assert '"crop": 0.0' in str(settings(crop=0.0)) != str(settings(crop=0.1)) != str(settings())


@pytest.mark.parametrize("text", ["whit", "#ggg", "none.png", "photos", "page.png", "#ffffff80"])
def test_background_is_a_colour_or_an_image(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.png").write_text("<html></html>")
    assert photos.is_dir()
    with pytest.raises(BadBackground, match=rf"{text}' is (neither a colour, such as|no opaque colour)") as caught:
        find_background(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_background_is_opaque(tmp_path: Path, mode: str) -> None:
    clear = Image.new("RGBA", (4, 3), (200, 200, 200, 255))
    clear.save(tmp_path / "opaque.png")
    assert find_background(str(tmp_path / "opaque.png")).source == str(tmp_path / "opaque.png")
    clear.putpixel((1, 1), (0, 0, 0, 0))
    clear.convert(mode).save(tmp_path / "clear.png", **({"transparency": 0} if mode == "P" else {}))
    with pytest.raises(BadBackground, match="it is transparent in places"):
        find_background(str(tmp_path / "clear.png"))


def test_settings_are_stable_json() -> None:
    assert str(settings()) == (
        '{"format": "png", "precision": "fp32", "refine": "guided", "sink": "files", "write": ["alpha", "cutout"]}'
    )
