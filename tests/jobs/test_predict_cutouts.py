"""predict: cutouts on a background, cropped; and the options that cannot go together."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import predict
from jobs.common.cli import CANNOT_BEGIN
from matting.data import images
from matting.data.synthetic import draw_person
from matting.inference.compose import cover, crop_to_person, on_background, person_box
from matting.inference.predictor import Predictor
from matting.inference.refine import cutout
from tests.support.pages import embedded_images
from tests.support.predictions import photo_keys, read_ledger, write_photos

pytestmark = pytest.mark.usefixtures("ray_cluster")

Printed = Callable[[], str]


def write_background(path: Path, number: int) -> None:
    path.write_bytes(images.encode_png(images.resize(draw_person(9, number, 64, 64)[0], 80, 30)))


def assert_composites(trained: str, photos: Path, output: Path, background: Path, margin: float) -> None:
    """Check every JPEG against a composite of the photo's alpha, and its ledger row against the box of its alpha."""
    predictor = Predictor.load(trained)
    scene = images.decode_image(background.read_bytes())
    ledger = read_ledger(output)
    assert ledger.keys() == photo_keys(3)
    for key, row in ledger.items():
        image = images.decode_image((photos / key).read_bytes())
        (alpha,) = predictor.alphas([image])
        person = crop_to_person(cutout(image, alpha), margin)
        expected = images.encode_jpeg(on_background(person, cover(scene, person.shape[1], person.shape[0])))
        assert (output / f"cutout/{key}.jpg").read_bytes() == expected
        box = person_box(alpha) or (None,) * 4
        assert tuple(row[side] for side in ("left", "top", "right", "bottom")) == tuple(box)
        assert row["outputs"] == [f"cutout/{key}.jpg"]


@pytest.mark.slow
def test_changed_background_makes_photos_due(trained: str, tmp_path: Path, printed: Printed) -> None:
    photos, output, background = tmp_path / "photos", tmp_path / "out", tmp_path / "scene.png"
    write_photos(photos, 3)
    write_background(background, 0)
    uris = [f"--checkpoint={trained}", f"--images={photos}", f"--output={output}"]
    command = [*uris, "--write=cutout", "--format=jpg", f"--background={background}", "--crop=0.05"]
    predict.main(command)
    assert_composites(trained, photos, output, background, 0.05)
    settings = json.loads((output / "summary.json").read_text())["settings"]
    assert (settings["crop"], len(settings["background"])) == (0.05, 64)
    assert {row["settings"] for row in read_ledger(output).values()} == {json.dumps(settings, sort_keys=True)}

    page = (output / "report.html").read_text()
    assert page.count('alt="composite of') == 3
    assert "gone since" not in page
    sizes = {image.size for image in embedded_images(page)}
    assert sizes == {(44, 54)} | {
        images.image_size((output / f"cutout/{key}.jpg").read_bytes()) for key in photo_keys(3)
    }

    copy = tmp_path / "copy.png"
    copy.write_bytes(background.read_bytes())
    printed()
    predict.main([*command, "--plan", f"--background={copy}"])
    assert "3 done 0 left to do" in printed()
    write_background(background, 1)
    for changed in (command, [*command, "--background=white"], [*command, "--crop=0.1", f"--background={copy}"]):
        predict.main([*changed, "--plan"])
        assert "3 made with another checkpoint or other settings 3 left to do" in printed()
    predict.main(command)
    assert_composites(trained, photos, output, background, 0.05)

    predict.main([*uris, "--write=cutout", "--crop=0"])
    page = (output / "report.html").read_text()
    assert page.count("on a checkerboard") == 3
    assert not list(output.rglob("*.jpg")), "the composites were superseded"
    for key in photo_keys(3):
        image = images.decode_image((photos / key).read_bytes())
        expected = crop_to_person(cutout(image, Predictor.load(trained).alphas([image])[0]), 0)
        np.testing.assert_array_equal(np.array(Image.open(output / f"cutout/{key}.png")), expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--write=cutout", "--format=jpg"], "JPEG holds no transparency: give a --background with --format jpg"),
        (["--background=white"], "--background and --crop are for cutouts: add --write cutout"),
        (["--crop=0.1"], "--background and --crop are for cutouts: add --write cutout"),
        (["--write=alpha", "--format=jpg", "--background=white"], "are for cutouts: add --write cutout"),
        (["--write=cutout", "--crop=-0.1"], "--crop is a fraction of the longer side .* from 0 to 1, is -0.1"),
        (["--write=cutout", "--crop=20"], "from 0 to 1, is 20"),
        (["--write=cutout", "--crop=.nan"], "from 0 to 1, is nan"),
        (["--write=cutout", "--background=whit"], "'whit' is neither a colour, such as white or #ffffff"),
        (["--write=cutout", "--background=#fff8"], "no opaque colour"),
        (["--write=cutout", "--background=s3://me:secret@b/x"], "has a password in it"),
    ],
)
def test_contradictions_are_refused(trained: str, tmp_path: Path, options: list[str], words: str) -> None:
    write_photos(tmp_path / "photos", 1)
    uris = [f"--checkpoint={trained}", f"--images={tmp_path}/photos", f"--output={tmp_path}/out"]
    with pytest.raises(CANNOT_BEGIN, match=words) as caught:
        predict.main([*uris, *options])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_colour_needs_quotes_in_yaml(trained: str, tmp_path: Path) -> None:
    (tmp_path / "options.yaml").write_text("write: cutout\nbackground: #fff\n")
    with pytest.raises(CANNOT_BEGIN, match="--background is null; give it a value, in YAML with quotes if it begins"):
        predict.main([f"--config={tmp_path}/options.yaml", f"--checkpoint={trained}", "--images=x", "--output=y"])
