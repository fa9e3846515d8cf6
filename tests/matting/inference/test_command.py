"""The command `python -m matting`: photos and folders to cutouts and masks, without Ray."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.bench.workload import untrained_unet
from matting import __main__ as command
from matting.data import images
from matting.data.images import Pixels
from matting.data.synthetic import draw_person
from matting.inference.compose import cover, crop_to_person, on_background
from matting.inference.predictor import Predictor
from matting.inference.refine import cutout
from matting.nn import checkpoint
from matting.nn.unet import UNetConfig
from matting.storage import store
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Checkpoint folder of a small untrained network."""
    folder = tmp_path_factory.mktemp("untrained") / "best"
    model = untrained_unet(UNetConfig(width=4))
    checkpoint.save(str(folder), model, checkpoint.describe(model, 32, {}, {}), {"val_mad": 1.0})
    return str(folder)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_photo(path: Path, number: int = 0) -> bytes:
    """Write a drawn person as a JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = images.encode_jpeg(draw_person(0, number, 60 + number, 80)[0])
    path.write_bytes(data)
    return data


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command in this process, and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["matting", *arguments])
    try:
        command.main()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def alpha_of(untrained: str, data: bytes) -> Pixels:
    (alpha_HW,) = Predictor.load(untrained, "mirrored").alphas([images.decode_image(data)])
    return alpha_HW


def cutout_of(untrained: str, data: bytes) -> Pixels:
    return cutout(images.decode_image(data), alpha_of(untrained, data))


def pixels(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# One photo ------------------------------------------------------------------------------------------------------------


def test_command_writes_a_cutout(untrained: str, here: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    data = write_photo(here / "photo.jpg")
    assert run_main(monkeypatch, "photo.jpg", "-o", "cutout.png", "--checkpoint", untrained) == 0
    np.testing.assert_array_equal(pixels(here / "cutout.png"), cutout_of(untrained, data))
    assert capfd.readouterr() == ("", "")


def test_mask_is_the_alpha(untrained: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_photo(here / "photo.jpg")
    assert run_main(monkeypatch, "photo.jpg", "-o", "new/mask.png", "--only-mask", "--checkpoint", untrained) == 0
    np.testing.assert_array_equal(pixels(here / "new/mask.png"), alpha_of(untrained, data))


def test_cutout_on_a_colour(untrained: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_photo(here / "photo.jpg")
    arguments = ["photo.jpg", "-o", "out.png", "--checkpoint", untrained, "--background", "#12Ab00"]
    assert run_main(monkeypatch, *arguments) == 0
    colour = np.full((80, 60, 3), (0x12, 0xAB, 0), np.uint8)
    np.testing.assert_array_equal(pixels(here / "out.png"), on_background(cutout_of(untrained, data), colour))


def test_crop_comes_before_the_background(untrained: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_photo(here / "photo.jpg")
    scene = np.random.default_rng(0).integers(0, 256, (30, 90, 3)).astype(np.uint8)
    (here / "scene.png").write_bytes(images.encode_png(scene))
    # A network that has not learned finds nobody, so the alpha is drawn.
    alpha = np.zeros((80, 60), np.uint8)
    alpha[30:50, 20:30] = 255
    monkeypatch.setattr(Predictor, "alphas", lambda *_: [alpha])
    arguments = ["photo.jpg", "--checkpoint", untrained, "--crop=0.1"]
    assert run_main(monkeypatch, *arguments, "-o", "crop.png") == 0
    cropped = crop_to_person(cutout(images.decode_image(data), alpha), 0.1)
    assert cropped.shape == (24, 14, 4)
    np.testing.assert_array_equal(pixels(here / "crop.png"), cropped)
    assert run_main(monkeypatch, *arguments, "-o", "out.png", "--background", "scene.png") == 0
    np.testing.assert_array_equal(pixels(here / "out.png"), on_background(cropped, cover(scene, 14, 24)))


@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [
        ("a.webp", [], "WEBP"),
        ("a.WEBP", [], "WEBP"),
        ("a.jpg", ["--background=white"], "JPEG"),
        ("a.jpeg", ["--background=white", "--format=jpg"], "JPEG"),
        ("a.png", ["--background=white"], "PNG"),
    ],
)
def test_suffix_decides_the_format(
    untrained: str, here: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: list[str], kind: str
) -> None:
    write_photo(here / "photo.jpg")
    assert run_main(monkeypatch, "photo.jpg", "-o", name, "--checkpoint", untrained, *options) == 0
    with Image.open(here / name) as found:
        assert (found.format, found.size) == (kind, (60, 80))


def test_file_goes_into_a_folder_that_is_there(untrained: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photo(here / "photo.jpg")
    (here / "out").mkdir()
    for output in ("out", "later/"):
        assert run_main(monkeypatch, "photo.jpg", "-o", output, "--checkpoint", untrained) == 0
    assert files(here) == {"photo.jpg", "out/photo.jpg.png", "later/photo.jpg.png"}


@pytest.mark.slow
def test_command_works_without_ray(untrained: str, here: Path) -> None:
    write_photo(here / "photos/photo.jpg")
    code = "import sys, runpy; sys.modules['ray'] = None; runpy.run_module('matting', run_name='__main__')"
    arguments = ["photos", "-o", "out", "--checkpoint", untrained, "--background=white", "--crop=0.1", "--format=webp"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "1 done, 0 failed\n")
    assert images.image_size((here / "out/photo.jpg.webp").read_bytes())


@pytest.mark.slow
def test_commands_of_the_guide_run(untrained: str, here: Path) -> None:
    for name in ("photo.jpg", "photos/x/1.jpg", "photos/y/1.jpg"):
        write_photo(here / name)
    (block,) = re.findall(r"```bash\n(.*?)```", (ROOT / "matting/README.md").read_text(), re.DOTALL)
    for line in block.replace("matting ", f"{sys.executable} -m matting ").splitlines():
        done = subprocess.run(line.replace("runs/first/best", untrained), shell=True, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    outputs = {"cutout.png", "cutouts/x/1.jpg.jpg", "cutouts/y/1.jpg.jpg", "mask.png"}
    assert files(here) == outputs | {"photo.jpg", "photos/x/1.jpg", "photos/y/1.jpg"}
    assert pixels(here / "mask.png").shape == (80, 60)


# Streams --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_streams_carry_nothing_but_the_image(untrained: str, here: Path) -> None:
    data = write_photo(here / "photo.jpg")
    base = [sys.executable, "-m", "matting", "--checkpoint", untrained]
    piped = subprocess.run([*base, "-", "-o", "-", "--only-mask"], input=data, capture_output=True, check=False)
    assert (piped.returncode, piped.stderr) == (0, b"")
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(piped.stdout))), alpha_of(untrained, data))
    assert files(here) == {"photo.jpg"}

    bad = subprocess.run([*base, "-", "-o", "-"], input=b"<html>", capture_output=True, check=False)
    assert (bad.returncode, bad.stdout) == (1, b"")
    assert bad.stderr.decode() == "error: stdin: not an image (HTML or XML?)\n"

    closed = f"{' '.join(base)} photo.jpg -o - 2>messages | true; echo ${{PIPESTATUS[0]}}"
    code = subprocess.run(["bash", "-c", closed], capture_output=True, text=True, check=False).stdout
    assert code == "1\n"
    assert (here / "messages").read_text() == "error: photo.jpg: BrokenPipeError: [Errno 32] Broken pipe\n"


def test_stdout_that_is_full_is_an_error(
    untrained: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photo(here / "photo.jpg")
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        monkeypatch.setattr(sys, "stdout", full)
        assert run_main(monkeypatch, "photo.jpg", "-o", "-", "--checkpoint", untrained) == 1
    assert capsys.readouterr().err == "error: photo.jpg: OSError: [Errno 28] No space left on device\n"


def test_damage_that_left_all_pixels_is_a_warning(
    untrained: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_photo(here / "photo.jpg")
    (here / "photo.jpg").write_bytes(data[:-2])
    assert run_main(monkeypatch, "photo.jpg", "-o", "cutout.png", "--checkpoint", untrained) == 0
    assert capsys.readouterr().err.startswith("warning: photo.jpg: ")
    np.testing.assert_array_equal(pixels(here / "cutout.png"), cutout_of(untrained, data))


# Several photos -------------------------------------------------------------------------------------------------------


def test_folder_keeps_paths_and_goes_on_after_bad_photos(
    untrained: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = {name: write_photo(here / "photos" / name, number) for number, name in enumerate(("x/1.jpg", "y/1.jpg"))}
    (here / "photos/empty.jpg").write_bytes(b"")
    (here / "photos/y/cut.jpg").write_bytes(contents["x/1.jpg"][:400])
    (here / "photos/notes.txt").write_text("mine")
    assert run_main(monkeypatch, "photos", "-o", "photos/out", "--checkpoint", untrained) == 1
    assert files(here / "photos/out") == {"x/1.jpg.png", "y/1.jpg.png"}
    for name, data in contents.items():
        np.testing.assert_array_equal(pixels(here / f"photos/out/{name}.png"), cutout_of(untrained, data))
        assert (here / "photos" / name).read_bytes() == data
    printed = capsys.readouterr()
    assert printed.out == ""
    first, second, counts = printed.err.splitlines()
    assert first == "error: photos/empty.jpg: empty file"
    assert second.startswith("error: photos/y/cut.jpg: truncated JPEG")
    assert counts == "2 done, 2 failed; 1 other files left out: photos/notes.txt"
    assert run_main(monkeypatch, "photos", "-o", "photos/out", "--checkpoint", untrained) == 1
    assert files(here / "photos/out") == {"x/1.jpg.png", "y/1.jpg.png"}, "outputs are no photos"


def test_what_is_left_out_of_a_folder_is_counted_and_named(
    untrained: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_photo(here / "photos/a.jpg", 0)
    (here / "photos" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(data)
    (here / "photos/more.tgz").write_bytes(b"\x1f\x8b")
    assert run_main(monkeypatch, "photos", "-o", "out", "--checkpoint", untrained) == 0
    (counts,) = capsys.readouterr().err.splitlines()
    assert counts.startswith("1 done, 0 failed; 2 other files left out: ")
    assert r"photos/caf\xe9.jpg has a name that is not UTF-8" in counts
    assert "photos/more.tgz is a compressed tar archive" in counts


def test_photos_of_one_name_keep_their_folders(untrained: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("x/1.jpg", "y/1.jpg", "y/z/1.jpg")):
        write_photo(here / name, number)
    options = ["--only-mask", "--checkpoint", untrained]
    for output, given in {
        "files": ["x/1.jpg", "y/1.jpg", str(here / "y/z/1.jpg")],
        "folders": ["x", "y"],
        "both": ["y", "x/1.jpg", "./x/../x/1.jpg"],
    }.items():
        assert run_main(monkeypatch, *given, "-o", output, *options) == 0
        assert files(here / output) == {"x/1.jpg.png", "y/1.jpg.png", "y/z/1.jpg.png"}
        sizes = {name: pixels(here / output / name).shape[1] for name in files(here / output)}
        assert sizes == {"x/1.jpg.png": 60, "y/1.jpg.png": 61, "y/z/1.jpg.png": 62}
    assert run_main(monkeypatch, "y/1.jpg", "-o", "flat/", *options) == 0
    assert run_main(monkeypatch, "y", "-o", "flat", *options) == 0
    assert files(here / "flat") == {"1.jpg.png", "z/1.jpg.png"}


def test_photos_of_two_stores_have_different_keys() -> None:
    folders = {"s3://a/x/1.jpg": "s3://a/x", "s3://b/x/1.jpg": "s3://b/x", "gs://a/x/1.jpg": "gs://a/x"}
    assert command.keys_below_shared_folder(folders) == {uri: uri.replace("://", "/") for uri in folders}
    del folders["gs://a/x/1.jpg"], folders["s3://b/x/1.jpg"]
    assert command.keys_below_shared_folder(folders) == {"s3://a/x/1.jpg": "1.jpg"}


def test_photos_come_from_and_go_to_any_store(
    untrained: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_photo(here / "photo.jpg")
    store.write_bytes("memory://command/photos/a/1.jpg", data)
    store.write_bytes("memory://command/photos/a/2.txt", data)
    arguments = ["memory://command/photos", "-o", "memory://command/out", "--checkpoint", untrained, "--only-mask"]
    assert run_main(monkeypatch, *arguments) == 0
    (file,) = store.list_files("memory://command/out")
    assert file.key == "a/1.jpg.png"
    assert "1 done, 0 failed; 1 other files left out: memory://command/photos/a/2.txt" in capsys.readouterr().err


def test_one_photo_does_not_take_the_others_down(
    untrained: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        write_photo(here / f"{number}.jpg", number)
    whole = Predictor.alphas

    def fail_on_one(self: Predictor, found: list[Pixels]) -> list[Pixels]:
        if found[0].shape[1] == 61:
            raise RuntimeError("unforeseen,\non two lines")
        return whole(self, found)

    monkeypatch.setattr(Predictor, "alphas", fail_on_one)
    (here / "out/2.jpg.png").mkdir(parents=True)  # a folder where an output should go
    arguments = ["0.jpg", "none.jpg", "1.jpg", "2.jpg", "-o", "out", "--checkpoint", untrained]
    assert run_main(monkeypatch, *arguments) == 1
    missing, unforeseen, unwritable, counts = capsys.readouterr().err.splitlines()
    assert missing.startswith("error: none.jpg: ")
    assert unforeseen == "error: 1.jpg: RuntimeError: unforeseen, on two lines"
    assert unwritable.startswith("error: 2.jpg: Cannot write out/2.jpg.png: ")
    assert counts == "1 done, 3 failed"
    assert files(here / "out") == {"0.jpg.png"}


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("photo", "has_checkpoint", "code", "words"),
    [
        ("page.jpg", True, 1, "page.jpg: not an image"),
        ("none.jpg", True, 1, "none.jpg: "),
        ("empty", True, 1, "empty: "),
        ("", True, 1, "'': the name is empty"),
        ("a\udce9.jpg", True, 1, "'a\\udce9.jpg': the name is not UTF-8"),
        ("page.jpg", False, 2, "not a whole checkpoint"),
    ],
)
def test_error_is_one_line(
    untrained: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    photo: str,
    has_checkpoint: bool,
    code: int,
    words: str,
) -> None:
    (here / "page.jpg").write_text("<html></html>")
    (here / "empty").mkdir()
    folder = untrained if has_checkpoint else str(here)
    assert run_main(monkeypatch, photo, "-o", "out.png", "--checkpoint", folder) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not list(here.glob("out*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["photo.jpg", "-o", ""], "-o is empty"),
        (["photo.jpg", "-o", "out.gif"], "out.gif would hold a PNG; name it so"),
        (["photo.jpg", "-o", "out"], "put a '/' behind the name of a folder"),
        (["photo.jpg", "-o", "out.jpg"], "JPEG holds no transparency: give a --background"),
        (["folder", "-o", "out", "--format=jpg"], "JPEG holds no transparency: give a --background"),
        (["photo.jpg", "-o", "out.png", "--format=webp"], "--format webp contradicts the name of out.png"),
        (["photo.jpg", "-o", "out.webp", "--only-mask"], "masks are PNG, not webp"),
        (["folder", "-o", "out", "--only-mask", "--format=webp"], "masks are PNG, not webp"),
        (["photo.jpg", "-o", "out.png", "--only-mask", "--crop=0"], "--background and --crop are for cutouts"),
        (["photo.jpg", "-o", "out.png", "--only-mask", "--background=red"], "--background and --crop are for cutouts"),
        (["photo.jpg", "-o", "out.png", "--crop=20"], "from 0 to 1, is 20"),
        (["photo.jpg", "-o", "out.png", "--crop=-0.1"], "from 0 to 1, is -0.1"),
        (["photo.jpg", "-o", "out.png", "--crop=nan"], "from 0 to 1, is nan"),
        (["photo.jpg", "-o", "out.png", "--background=whit"], "'whit' is neither a colour, such as white or #ffffff"),
        (["photo.jpg", "-o", "out.png", "--background=page.jpg"], "page.jpg' is neither a colour"),
        (["photo.jpg", "-o", "out.png", "--background=#fff8"], "no opaque colour"),
        (["photo.jpg", "-o", "out.png", "--background=s3://me:secret@b/x"], "has a password in it"),
        (["photo.jpg", "folder", "-o", "out.png"], "out.png is the name of one image"),
        (["folder", "-o", "out.png"], "out.png is the name of one image"),
        (["folder", "-o", "-"], "-o - is for one photo"),
        (["photo.jpg", "-", "-o", "out"], "- reads one photo from stdin"),
        (["photo.jpg", "-o", "photo.jpg", "--background=red"], "would overwrite photo.jpg"),
        (["photo.jpg", "-o", "link.jpg", "--background=red"], "would overwrite photo.jpg"),
        (["photo.jpg", "photo.jpg.png", "-o", "."], "the output of photo.jpg would overwrite photo.jpg.png"),
        (["photo.jpg", "-o", "photo.jpg.png", "--background=photo.jpg.png"], "would overwrite"),
    ],
)
def test_contradictions_are_refused_before_anything_is_written(
    untrained: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    for name in ("photo.jpg", "photo.jpg.png", "folder/1.jpg"):
        write_photo(here / name)
    (here / "page.jpg").write_text("<html></html>")
    (here / "link.jpg").symlink_to("photo.jpg")
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert run_main(monkeypatch, *arguments, "--checkpoint", untrained) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert "secret" not in line
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_interruption_is_one_line(
    untrained: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    write_photo(here / "photo.jpg")
    monkeypatch.setattr(Predictor, "alphas", interrupt)
    assert run_main(monkeypatch, "photo.jpg", "-o", "out.png", "--checkpoint", untrained) == 1
    assert capsys.readouterr().err == "failed: interrupted; the outputs so far are whole\n"
