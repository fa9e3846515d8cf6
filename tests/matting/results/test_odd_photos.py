"""Photos with profiles, orientations, transparency and damage: job, command and Predictor give the same answers."""

import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.bench.workload import untrained_unet
from matting import __main__ as command
from matting.data import images
from matting.data.images import Pixels
from matting.data.synthetic import draw_person
from matting.inference.predictor import Predictor
from matting.inference.refine import cutout
from matting.nn import checkpoint
from matting.nn.unet import UNetConfig
from matting.results import ledger
from matting.results.pipeline import PhotoPipeline
from tests.matting.data.test_orientation import xmp
from tests.matting.results.test_pipeline import block, settings
from tests.support.profiles import ADOBE, cmyk_profile, rgb_profile

PERSON_HWC = draw_person(3, 0, 60, 80)[0]
OPACITY_HW = np.tile(np.array([0, 90, 255, 255], np.uint8).repeat(15), (80, 1))


def encoded(image: Image.Image | Pixels, format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format, **options)
    return buffer.getvalue()


def opened(path: Path) -> Image.Image:
    return Image.open(BytesIO(path.read_bytes()))


ODD: dict[str, Callable[[], bytes]] = {
    "p3.png": lambda: encoded(PERSON_HWC, "PNG", icc_profile=rgb_profile()),
    "p3.jpg": lambda: encoded(PERSON_HWC, "JPEG", quality=95, icc_profile=rgb_profile()),
    "adobe.tif": lambda: encoded(PERSON_HWC, "TIFF", icc_profile=rgb_profile(ADOBE, 2.2)),
    "cmyk.jpg": lambda: encoded(Image.fromarray(PERSON_HWC).convert("CMYK"), "JPEG", icc_profile=cmyk_profile()),
    "clear.png": lambda: encoded(np.dstack([PERSON_HWC, OPACITY_HW]), "PNG"),
    "clear.webp": lambda: encoded(
        np.dstack([PERSON_HWC, OPACITY_HW]), "WEBP", lossless=True, icc_profile=rgb_profile()
    ),
    "turned.jpg": lambda: encoded(np.rot90(PERSON_HWC).copy(), "JPEG", quality=95, xmp=xmp(6)),
    "cut.jpg": lambda: encoded(PERSON_HWC, "JPEG")[:-2],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Checkpoint folder of a small untrained network."""
    model = untrained_unet(UNetConfig(width=4))
    folder = str(tmp_path_factory.mktemp("trained") / "best")
    checkpoint.save(folder, model, checkpoint.describe(model, 32, {}, {}), {"val_mad": 1.0})
    return folder


def handle(
    predictor: Predictor, folder: Path, photos: dict[str, bytes], max_pixels: int = images.MAX_PIXELS, **changes: Any
) -> dict[str, dict[str, Any]]:
    """Handle photos as one block; return the ledger's rows by key."""
    for key, data in photos.items():
        (folder / "photos").mkdir(parents=True, exist_ok=True)
        (folder / "photos" / key).write_bytes(data)
    wanted = settings(**changes)
    pipeline = PhotoPipeline(str(folder / "out"), wanted, "run", "model", predictor, 2, max_pixels)
    pipeline.handle(block(folder / "photos"), 0)
    return {row["key"]: row for row in ledger.read(str(folder / "out")).to_pylist()}


def test_job_command_and_predictor_agree(trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor.load(trained, "mirrored")
    rows = handle(predictor, tmp_path, {key: make() for key, make in ODD.items()})
    for key in ODD:
        assert rows[key]["status"] == "done", rows[key]
        photo, wanted = tmp_path / "photos" / key, tmp_path / f"{key}.png"
        monkeypatch.setattr(sys, "argv", ["matting", str(photo), "-o", str(wanted), "--checkpoint", trained])
        command.main()
        assert wanted.read_bytes() == (tmp_path / f"out/cutout/{key}.png").read_bytes()
        alpha_HW = images.decode_alpha((tmp_path / f"out/alpha/{key}.png").read_bytes())
        with Image.open(wanted) as image:
            np.testing.assert_array_equal(np.array(image.getchannel("A")), alpha_HW)
        if key != "cut.jpg":  # Pillow does not open it
            np.testing.assert_array_equal(np.array(predictor(opened(photo))), alpha_HW)
    assert {key: row["warning"] for key, row in rows.items() if row["warning"]} == {
        "cut.jpg": "its end is missing; all pixels are there"
    }


@pytest.mark.parametrize("format", ["png", "webp"])
def test_cutouts_keep_numbers_and_profile(trained: str, tmp_path: Path, format: str) -> None:
    predictor = Predictor.load(trained)
    handle(predictor, tmp_path, {key: make() for key, make in ODD.items()}, format=format)
    profiles = dict.fromkeys(("p3.png", "p3.jpg", "clear.webp"), rgb_profile())
    profiles["adobe.tif"] = rgb_profile(ADOBE, 2.2)
    for key in ODD:
        image = opened(tmp_path / f"out/cutout/{key}.{format}")
        assert image.info.get("icc_profile") == profiles.get(key), key
        if format == "png":
            photo = images.decode_photo((tmp_path / "photos" / key).read_bytes())
            (alpha_HW,) = predictor.alphas([photo.image_HWC])
            stored_HWC, _ = images.decode_stored((tmp_path / "photos" / key).read_bytes())
            np.testing.assert_array_equal(np.array(image), cutout(stored_HWC, alpha_HW, photo.opacity_HW))
            assert (stored_HWC != photo.image_HWC).any() == (key in profiles)


class Everybody:
    """Network that takes every pixel for a person."""

    size, aspects = 32, ()

    def small_alphas(self, squashed_BHWC: Pixels) -> Pixels:
        """Return opaque alphas."""
        return np.full(squashed_BHWC.shape[:3], 255, np.uint8)


def test_hidden_colors_stay_hidden_and_shown_ones_stay_as_they_are(tmp_path: Path) -> None:
    hidden_HWC = PERSON_HWC.copy()
    hidden_HWC[:, :15] = (255, 0, 255)
    predictor = Predictor(Everybody(), "none")
    rows = handle(predictor, tmp_path, {"a.png": encoded(np.dstack([hidden_HWC, OPACITY_HW]), "PNG")})
    alpha_HW = images.decode_alpha((tmp_path / "out/alpha/a.png.png").read_bytes())
    cutout_HWC = np.array(opened(tmp_path / "out/cutout/a.png.png"))
    np.testing.assert_array_equal(alpha_HW, OPACITY_HW)
    np.testing.assert_array_equal(cutout_HWC[..., 3], OPACITY_HW)
    np.testing.assert_array_equal(cutout_HWC[:, 15:, :3], PERSON_HWC[:, 15:])
    assert np.abs(cutout_HWC[:, :15, :3].astype(int) - (255, 0, 255)).sum(axis=2).min() > 60
    assert rows["a.png"]["coverage"] == pytest.approx(OPACITY_HW.mean() / 255, abs=1e-6)


def test_large_photos_fail_by_the_limit_of_the_run(trained: str, tmp_path: Path) -> None:
    photos = {"a.jpg": images.encode_jpeg(PERSON_HWC)}
    rows = handle(Predictor.load(trained), tmp_path, photos, max_pixels=60 * 80 - 1)
    assert (rows["a.jpg"]["status"], rows["a.jpg"]["error"]) == ("failed", "60×80 pixels, more than the limit of 4,799")


def test_ledger_of_an_earlier_version_has_no_warnings(tmp_path: Path) -> None:
    row = dict.fromkeys(ledger.LEDGER_SCHEMA.names) | {"key": "a", "run": "r"}
    ledger.write_part(str(tmp_path), "r", 0, [row])
    (part,) = (tmp_path / "_ledger").iterdir()
    pq.write_table(pq.read_table(part).drop_columns(["warning"]), part)
    assert ledger.read(str(tmp_path)).to_pylist() == [row]
