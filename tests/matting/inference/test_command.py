"""The command `python -m matting`: one photo to a cutout, without Ray."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.bench.workload import untrained_unet
from matting import __main__ as command
from matting.data import images
from matting.data.synthetic import draw_person
from matting.inference.predictor import Predictor
from matting.nn import checkpoint
from matting.nn.unet import UNetConfig


@pytest.fixture
def untrained(tmp_path: Path) -> str:
    """Checkpoint folder of a small untrained network."""
    model = untrained_unet(UNetConfig(width=4))
    checkpoint.save(str(tmp_path / "best"), model, checkpoint.describe(model, 32, {}, {}), {"val_mad": 1.0})
    return str(tmp_path / "best")


def write_photo(folder: Path) -> str:
    image, _ = draw_person(0, 0, 60, 80)
    (folder / "photo.jpg").write_bytes(images.encode_jpeg(image))
    return str(folder / "photo.jpg")


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["matting", *arguments])
    command.main()


def test_command_writes_a_cutout(untrained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = write_photo(tmp_path)
    run_main(monkeypatch, photo, "-o", str(tmp_path / "cutout.png"), "--checkpoint", untrained)
    cutout = Image.open(tmp_path / "cutout.png")
    assert (cutout.mode, cutout.size) == ("RGBA", (60, 80))
    expected = Predictor.load(untrained, "mirrored")(Image.open(photo))
    np.testing.assert_array_equal(np.array(cutout.getchannel("A")), np.array(expected))


@pytest.mark.slow
def test_command_works_without_ray(untrained: str, tmp_path: Path) -> None:
    code = "import sys, runpy; sys.modules['ray'] = None; runpy.run_module('matting', run_name='__main__')"
    arguments = [write_photo(tmp_path), "-o", str(tmp_path / "cutout.png"), "--checkpoint", untrained]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert images.decode_image((tmp_path / "cutout.png").read_bytes()).shape == (80, 60, 3)


@pytest.mark.parametrize(
    ("photo", "has_checkpoint", "words"),
    [
        ("page.jpg", True, "page.jpg: not an image"),
        ("none.jpg", True, "none.jpg"),
        ("page.jpg", False, "not a whole checkpoint"),
    ],
)
def test_error_is_one_line(
    untrained: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    photo: str,
    has_checkpoint: bool,
    words: str,
) -> None:
    (tmp_path / "page.jpg").write_text("<html></html>")
    folder = untrained if has_checkpoint else str(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        run_main(monkeypatch, str(tmp_path / photo), "-o", str(tmp_path / "out.png"), "--checkpoint", folder)
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not list(tmp_path.glob("out.*"))


def test_output_must_be_a_png(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_main(monkeypatch, "photo.jpg", "-o", "out.jpg", "--checkpoint", "best")
    assert exit_.value.code == 2
    assert "out.jpg would hold a PNG" in capsys.readouterr().err
