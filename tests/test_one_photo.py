"""One photo from the command line and from Python, without Ray."""

import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.workload import untrained
from matting import checkpoint, images
from matting.images import BadImage
from matting.predictor import Predictor
from matting.synthetic import draw_person
from matting.unet import UNetConfig


@pytest.fixture
def trained(tmp_path: Path) -> str:
    """The folder of a small network; it knows nothing."""
    model = untrained(UNetConfig(width=4))
    checkpoint.save(str(tmp_path / "best"), model, checkpoint.describe(model, 32, {}, {}), {"val_mad": 1.0})
    return str(tmp_path / "best")


def matting(*arguments: str) -> subprocess.CompletedProcess[str]:
    """python -m matting, in an interpreter that refuses to import Ray."""
    code = "import sys, runpy; sys.modules['ray'] = None; runpy.run_module('matting', run_name='__main__')"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_cuts_out_one_photo(trained: str, tmp_path: Path) -> None:
    image, _ = draw_person(0, 0, 60, 80)
    (tmp_path / "photo.jpg").write_bytes(images.encode_jpeg(image))
    done = matting(str(tmp_path / "photo.jpg"), "-o", str(tmp_path / "cutout.png"), "--checkpoint", trained)
    assert done.returncode == 0, done.stderr
    cutout = Image.open(tmp_path / "cutout.png")
    assert (cutout.mode, cutout.size) == ("RGBA", (60, 80))
    expected = Predictor.load(trained, "mirrored")(Image.open(tmp_path / "photo.jpg"))
    np.testing.assert_array_equal(np.array(cutout.getchannel("A")), np.array(expected))


def test_a_rotated_photo_gets_an_upright_alpha(trained: str) -> None:
    image, _ = draw_person(0, 1, 60, 80)
    lying = Image.fromarray(np.rot90(image))  # as a camera stores it, with a note to turn it
    lying.getexif()[0x0112] = 6
    predictor = Predictor.load(trained)
    np.testing.assert_array_equal(np.array(predictor(lying)), np.array(predictor(Image.fromarray(image))))


def test_a_16_bit_photo_gets_the_alpha_that_its_file_gets(trained: str) -> None:
    image, _ = draw_person(0, 1, 60, 80)
    photo = Image.fromarray(image[..., 1].astype(np.uint16) * 257)
    file = BytesIO()
    photo.save(file, "PNG")
    predictor = Predictor.load(trained)
    expected = predictor.alphas([images.decode_image(file.getvalue())])[0]
    white = predictor.alphas([np.full((80, 60, 3), 255, np.uint8)])[0]  # which Pillow would make of it
    assert not np.array_equal(expected, white)
    np.testing.assert_array_equal(np.array(predictor(photo)), expected)
    with pytest.raises(BadImage, match="mode 'F'"):
        predictor(Image.fromarray(np.zeros((8, 8), np.float32)))


def test_says_in_a_line_what_is_wrong(trained: str, tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("<html></html>")
    for photo, folder, words in (
        ("page.jpg", trained, "page.jpg: not an image"),
        ("none.jpg", trained, "none.jpg"),
        ("page.jpg", str(tmp_path), "not a whole checkpoint"),
    ):
        done = matting(str(tmp_path / photo), "-o", str(tmp_path / "out.png"), "--checkpoint", folder)
        assert done.returncode == 2
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1
    done = matting(str(tmp_path / "page.jpg"), "-o", str(tmp_path / "out.jpg"), "--checkpoint", trained)
    assert done.returncode == 2
    assert "out.jpg would hold a PNG" in done.stderr
    assert not list(tmp_path.glob("out.*"))
