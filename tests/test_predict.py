"""predict: every photo of a collection accounted for, whatever it is, whatever happened before."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import predict
from jobs.cluster import CANNOT_BEGIN, ClusterError, JobError
from jobs.workload import untrained
from matting import checkpoint, images, outputs, storage
from matting.predictor import Predictor
from matting.synthetic import draw_person
from matting.unet import UNetConfig
from tests import jobs

pytestmark = pytest.mark.usefixtures("ray_cluster")

Printed = Callable[[], str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a small network that knows nothing."""
    return new_checkpoint(tmp_path_factory.mktemp("trained"), seed=0)


def new_checkpoint(folder: Path, seed: int) -> str:
    model = untrained(UNetConfig(width=4), seed)
    checkpoint.save(str(folder), model, checkpoint.describe(model, 32, {}, {}), {"val_mad": 1.0})
    return str(folder)


def photo(number: int, width: int = 44, height: int = 54) -> bytes:
    return images.encode_jpeg(images.resize(draw_person(5, number, 64, 64)[0], width, height))


def write_photos(folder: Path, count: int, start: int = 0) -> None:
    """CelebA's layout: img_align_celeba/000001.jpg and so on."""
    (folder / "img_align_celeba").mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        (folder / f"img_align_celeba/{number + 1:06d}.jpg").write_bytes(photo(number % 40))


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    """What was printed since it was last asked, with single spaces."""
    return lambda: " ".join(capsys.readouterr().out.split())


def matte(trained: str, source: object, output: object, *options: str) -> None:
    predict.main([f"--checkpoint={trained}", f"--images={source}", f"--output={output}", *options])


def rows(output: object) -> dict[str, dict]:
    """The ledger as a stranger reads it: {key: row}; there must be one row per key."""
    found = duckdb.sql(f"select * from '{output}/_ledger/*.parquet'")
    listed = [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]
    by_key = {row["key"]: row for row in listed}
    assert len(by_key) == len(listed)
    return by_key


def assert_adds_up(output: Path, keys: set[str]) -> None:
    """One row for each key; each output that a row lists is whole and of the right size; nothing else is there."""
    ledger = rows(output)
    assert ledger.keys() == keys
    listed = set()
    for row in ledger.values():
        assert (row["status"] == "done") == (row["error"] is None) == bool(row["outputs"])
        for path in row["outputs"]:
            picture = Image.open(output / path)
            picture.load()
            assert picture.size == (row["width"], row["height"])
        listed |= set(row["outputs"])
    found = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    parts = {path for path in found if path.startswith("_ledger/")}
    assert found - parts - {"report.html"} == listed
    assert len(parts) == 1


# What is due ----------------------------------------------------------------------------------------------------------


def test_mattes_a_folder_once(trained: str, tmp_path: Path, printed: Printed) -> None:
    write_photos(tmp_path / "photos", 30)
    (tmp_path / "photos/readme.txt").write_text("not a photo")
    output = tmp_path / "out"
    matte(trained, tmp_path / "photos", output, "--write=alpha,cutout")
    said = printed()
    assert "30 photos in" in said
    assert "(1 other files: readme.txt)" in said
    assert "30 done 0 skipped, handled before 0 failed" in said
    assert "s of start-up" in said
    keys = {f"img_align_celeba/{number:06d}.jpg" for number in range(1, 31)}
    assert_adds_up(output, keys)
    predictor = Predictor.load(trained)
    for key in keys:
        expected = predictor(Image.open(tmp_path / "photos" / key))  # one photo at a time
        np.testing.assert_array_equal(np.array(Image.open(output / f"alpha/{key}.png")), np.array(expected))
    page = (output / "report.html").read_text()
    assert "img_align_celeba/000001.jpg" in page

    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    matte(trained, tmp_path / "photos", output, "--write=cutout,alpha")
    said = printed()
    assert "30 done 0 left to do" in said
    assert "Nothing left to do." in said
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before

    (output / "report.html").unlink()  # as if the run had been killed at its end
    matte(trained, tmp_path / "photos", output, "--write=alpha,cutout")
    assert "Nothing left to do." in printed()
    assert "img_align_celeba/000001.jpg" in (output / "report.html").read_text()


@pytest.mark.parametrize("sink", ["files", "table"])
def test_a_page_names_a_matte_that_is_gone_and_shows_the_others(trained: str, tmp_path: Path, sink: str) -> None:
    write_photos(tmp_path / "photos", 3)
    output, lost = tmp_path / "out", "img_align_celeba/000002.jpg"
    command = [f"--checkpoint={trained}", f"--images={tmp_path}/photos", f"--output={output}", f"--sink={sink}"]
    assert jobs.run("predict", *command)[0] == 0
    (output / "report.html").unlink()  # as if the run had been killed before it
    if sink == "files":
        (output / f"alpha/{lost}.png").write_bytes(b"")
    else:
        outputs.remove(str(output), {lost: rows(output)[lost]["outputs"]})
    predict.main(command)
    page = (output / "report.html").read_text()
    assert page.count("made, and gone since: ") == 1
    assert page.count('alt="alpha of') == 2


def test_handles_what_is_new_changed_or_broken_and_nothing_else(trained: str, tmp_path: Path, printed: Printed) -> None:
    folder, output = tmp_path / "photos", tmp_path / "out"
    write_photos(folder, 30)
    matte(trained, folder, output)
    first = rows(output)
    write_photos(folder, 10, start=30)
    name = "img_align_celeba/{:06d}.jpg".format
    for number in (3, 14, 15):
        (folder / name(number)).write_bytes(photo(number + 1, 60, 40))
    (folder / name(9)).write_bytes(photo(8)[:-200])
    (folder / name(26)).write_bytes(b"")
    printed()
    matte(trained, folder, output, "--plan")
    assert rows(output) == first
    said = printed()
    assert "40 photos in" in said
    assert "10 new 5 changed since they were matted 25 done 15 left to do, about" in said
    matte(trained, folder, output, "--max-failed=0.2")
    said = printed()
    assert "13 done 25 skipped, handled before 2 failed 1 truncated JPEG 1 empty file" in said
    second = rows(output)
    assert {key for key, row in second.items() if row != first.get(key)} == {
        *(name(number) for number in (3, 9, 14, 15, 26)),
        *(name(number) for number in range(31, 41)),
    }
    assert_adds_up(output, {name(number) for number in range(1, 41)})  # the broken ones' old mattes are gone

    matte(trained, folder, output)
    assert "Nothing left to do." in printed()
    matte(trained, folder, output, "--plan", "--retry-failed")
    assert "2 left to do" in printed()

    other = new_checkpoint(tmp_path / "other", seed=1)
    matte(other, folder, output, "--max-failed=0.2")
    assert "40 made with another checkpoint or other settings 40 left to do" in printed()
    assert {row["model"] for row in rows(output).values()} == {checkpoint.load(other).identity}
    matte(other, folder, output, "--refine=none", "--limit=7", "--plan")
    assert "40 left to do, of which 7 in this run" in printed()


def test_too_many_failures_fail_the_job_and_none_of_the_photos(trained: str, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 9)
    (tmp_path / "photos/bad.jpg").write_bytes(b"GIF8")
    with pytest.raises(JobError, match=r"1 of 10 photos failed.*bad\.jpg: not an image"):
        matte(trained, tmp_path / "photos", tmp_path / "out", "--max-failed=0.09")
    assert len(rows(tmp_path / "out")) == 10
    (tmp_path / "photos/bad.jpg").write_bytes(photo(1))
    matte(trained, tmp_path / "photos", tmp_path / "out", "--max-failed=0")
    assert {row["status"] for row in rows(tmp_path / "out").values()} == {"done"}


@pytest.mark.parametrize("sink", ["files", "table"])
def test_a_deleted_photo_stays_until_pruned(trained: str, tmp_path: Path, printed: Printed, sink: str) -> None:
    folder, output = tmp_path / "photos", tmp_path / "out"
    write_photos(folder, 12)
    matte(trained, folder, output, f"--sink={sink}")
    gone = "img_align_celeba/000004.jpg"
    (folder / gone).unlink()
    matte(trained, folder, output, f"--sink={sink}")
    assert "1 deleted from the collection; their outputs stay" in printed()
    assert gone in rows(output)
    matte(trained, folder, output, f"--sink={sink}", "--prune")
    assert "1 deleted from the collection; their outputs are removed" in printed()
    assert rows(output).keys() == {f"img_align_celeba/{n:06d}.jpg" for n in range(1, 13) if n != 4}
    if sink == "files":
        assert not (output / f"alpha/{gone}.png").exists()
        assert_adds_up(output, set(rows(output)))
    else:
        mattes = duckdb.sql(f"select key, alpha from '{output}/mattes/*.parquet'").fetchall()
        assert {key for key, _ in mattes} == rows(output).keys()
        for _, alpha in mattes:
            assert Image.open(io.BytesIO(alpha)).size == (44, 54)


def test_goes_on_with_what_a_limit_left(trained: str, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 25)
    for most in (10, 20, 25):
        matte(trained, tmp_path / "photos", tmp_path / "out", "--limit=10")
        assert len(rows(tmp_path / "out")) == most


def test_two_runs_at_once_do_no_harm(trained: str, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 150)
    matte(trained, tmp_path / "photos", tmp_path / "alone")
    command = [f"--checkpoint={trained}", f"--images={tmp_path / 'photos'}", f"--output={tmp_path / 'both'}"]
    with jobs.running("predict", *command) as process:
        while process.poll() is None and not list((tmp_path / "both").rglob("*.png")):
            pass  # until it has begun to write
        matte(trained, tmp_path / "photos", tmp_path / "both")
        said, _ = process.communicate()
    assert process.returncode == 0, said
    assert_adds_up(tmp_path / "both", set(rows(tmp_path / "alone")))
    for path in (tmp_path / "alone/alpha").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "both/alpha" / path.relative_to(tmp_path / "alone/alpha")).read_bytes()


# Names ----------------------------------------------------------------------------------------------------------------

NAMES = [
    "x/1.jpg",
    "y/1.jpg",
    "x/1.png",
    "x/1.jpg.png",
    "x/a b.jpg",
    "100%.jpg",
    "%41.jpg",
    "A.jpg",
    "#1.jpg",
    "what?.jpg",
    "what?x=1#2.jpg",
    "人/Ünïcødé.jpg",
    "e\u0301.jpg",
    "\u00e9.jpg",
    ".hidden.jpg",
    ".dir/1.jpg",
    "1.JPEG",
    "/".join(["d" * 99] * 4 + ["n" * 96 + ".jpg"]),
]


def test_no_name_collides_or_is_lost(trained: str, tmp_path: Path, bucket: str) -> None:
    assert len(NAMES[-1]) == 500
    for number, name in enumerate(NAMES):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(photo(number, 20 + number, 24))
        storage.write_bytes(f"{bucket}/photos/{name}", photo(number, 20 + number, 24))
    storage.write_bytes(f"{bucket}/photos/{'m' * 496}.jpg", photo(99))  # longer than a file's name may be
    matte(trained, tmp_path / "photos", tmp_path / "out")
    assert_adds_up(tmp_path / "out", set(NAMES))
    for number, name in enumerate(NAMES):
        assert images.image_size((tmp_path / f"out/alpha/{name}.png").read_bytes()) == (20 + number, 24)
    matte(trained, f"{bucket}/photos", f"{bucket}/out")
    keys = {*NAMES, f"{'m' * 496}.jpg"}
    assert {file.key for file in storage.list_files(f"{bucket}/out/alpha")} == {f"{key}.png" for key in keys}
    for name in NAMES:
        assert storage.read_bytes(f"{bucket}/out/alpha/{name}.png") == (tmp_path / f"out/alpha/{name}.png").read_bytes()
    matte(trained, f"{bucket}/photos", tmp_path / "from-bucket")
    assert_adds_up(tmp_path / "from-bucket", keys)


def test_a_key_in_a_table_never_leaves_the_output(trained: str, tmp_path: Path) -> None:
    keys = ["../../etc/x", "/etc/x", "a/./b", "a//b", "good.jpg", ".."]
    table = pa.table({"key": keys, "image": pa.array([photo(number) for number in range(len(keys))], pa.binary())})
    pq.write_table(table, tmp_path / "table.parquet")
    (tmp_path / "deep/er").mkdir(parents=True)
    matte(trained, tmp_path / "table.parquet", tmp_path / "deep/er/out", "--max-failed=1")
    found = {str(path.relative_to(tmp_path / "deep/er/out")) for path in (tmp_path / "deep/er/out").rglob("*.png")}
    assert found == {"alpha/good.jpg.png"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "table.parquet"]
    assert {key for key, row in rows(tmp_path / "deep/er/out").items() if row["status"] == "failed"} == {*keys} - {
        "good.jpg"
    }


# Photos ---------------------------------------------------------------------------------------------------------------


def bad_and_odd_files() -> dict[str, tuple[bytes, tuple[int, int] | str]]:
    """What strangers call photos: {name: (bytes, the size of the matte, or how the reason begins)}."""

    def encoded(picture: Image.Image, form: str, **options: object) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, form, **options)
        return buffer.getvalue()

    person = Image.fromarray(draw_person(5, 0, 60, 80)[0])
    png = encoded(person, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    grey_16 = Image.fromarray(np.linspace(0, 65535, 48).astype(np.uint16).reshape(6, 8))
    return {
        "truncated.jpg": (photo(0)[:-300], "truncated JPEG"),
        "truncated.png": (png[: len(png) // 2], "truncated PNG"),
        "zero.jpg": (b"", "empty file"),
        "page.jpg": (b"<!doctype html><title>404</title>", "not an image (HTML"),
        "bomb.png": (encoded(Image.new("1", (30_000, 30_000)), "PNG"), "30000×30000 pixels, more than"),
        "cmyk.jpg": (encoded(person.convert("CMYK"), "JPEG"), (60, 80)),
        "16-bit.png": (encoded(grey_16, "PNG"), (8, 6)),
        "animated.gif": (encoded(person, "GIF", save_all=True, append_images=[person.rotate(90)]), (60, 80)),
        "palette.png": (encoded(person.convert("P"), "PNG", transparency=3), (60, 80)),
        "one.png": (encoded(person.resize((1, 1)), "PNG"), (1, 1)),
        "wide.png": (encoded(person.resize((20_000, 10)), "PNG"), (20_000, 10)),
        "lying.jpg": (encoded(person, "JPEG", exif=exif), (80, 60)),
        "photo.webp": (encoded(person, "WEBP"), (60, 80)),
        "photo.tif": (encoded(person, "TIFF"), (60, 80)),
    }


@pytest.mark.parametrize("options", [[], ["--sink=table", "--write=cutout,alpha", "--format=webp"]])
def test_each_odd_file_is_handled_or_named(trained: str, tmp_path: Path, options: list[str]) -> None:
    files = bad_and_odd_files()
    (tmp_path / "photos").mkdir()
    for name, (data, _) in files.items():
        (tmp_path / "photos" / name).write_bytes(data)
    write_photos(tmp_path / "photos", 20)
    matte(trained, tmp_path / "photos", tmp_path / "out", "--max-failed=1", *options)
    ledger = rows(tmp_path / "out")
    assert len(ledger) == len(files) + 20
    for name, (_, expected) in files.items():
        if name == "wide.png" and "--format=webp" in options:
            expected = "20000×10 pixels, more than the 16,383 a side that WebP holds"
        row = ledger.pop(name)
        if isinstance(expected, str):
            assert row["status"] == "failed"
            assert row["error"].startswith(expected), row
        else:
            assert (row["status"], row["width"], row["height"]) == ("done", *expected), row
    assert {row["status"] for row in ledger.values()} == {"done"}
    if not options:
        assert_adds_up(tmp_path / "out", set(rows(tmp_path / "out")))


def test_a_table_of_uris_and_one_of_bytes_give_the_same_mattes(trained: str, tmp_path: Path, printed: Printed) -> None:
    write_photos(tmp_path / "photos", 20)
    keys = [f"img_align_celeba/{number:06d}.jpg" for number in range(1, 21)]
    data = pa.array([(tmp_path / "photos" / key).read_bytes() for key in keys], pa.binary())
    pq.write_table(pa.table({"key": keys, "image": data}), tmp_path / "bytes.parquet", row_group_size=7)
    (tmp_path / "photos/uris.csv").write_text("\n".join(["path", *keys]))
    matte(trained, tmp_path / "photos", tmp_path / "files")
    for name, source in {"bytes": tmp_path / "bytes.parquet", "uris": tmp_path / "photos/uris.csv"}.items():
        for _ in range(2):
            matte(trained, source, tmp_path / name)
        assert "20 done 0 left to do Nothing left to do." in printed()
        assert_adds_up(tmp_path / name, set(keys))
        for key in keys:
            expected = (tmp_path / f"files/alpha/{key}.png").read_bytes()
            assert (tmp_path / name / f"alpha/{key}.png").read_bytes() == expected


# Where it runs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sink", ["files", "table"])
def test_a_bucket_gives_what_a_folder_gives(trained: str, tmp_path: Path, bucket: str, sink: str) -> None:
    write_photos(tmp_path / "photos", 30)
    for path in (tmp_path / "photos").rglob("*.jpg"):
        storage.write_bytes(f"{bucket}/photos/{path.relative_to(tmp_path / 'photos')}", path.read_bytes())
    for file in storage.list_files(trained):
        storage.write_bytes(f"{bucket}/best/{file.key}", storage.read_bytes(f"{trained}/{file.key}"))
    options = ["--write=alpha,cutout", "--format=webp", f"--sink={sink}"]
    matte(trained, tmp_path / "photos", tmp_path / "out", *options)
    matte(f"{bucket}/best", f"{bucket}/photos/", f"{bucket}/out/", *options)
    found = {file.key for file in storage.list_files(f"{bucket}/out")}
    if sink == "files":
        written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
        unnamed = {key for key in found ^ written if not key.startswith("_ledger/")}
        assert not unnamed
        for key in found:
            if not key.startswith(("_ledger/", "report")):
                assert storage.read_bytes(f"{bucket}/out/{key}") == (tmp_path / "out" / key).read_bytes()
    else:
        assert {key.partition("/")[0] for key in found} == {"_ledger", "mattes", "report.html"}
    before = {file.key: file.etag for file in storage.list_files(f"{bucket}/out")}
    matte(f"{bucket}/best", f"{bucket}/photos/", f"{bucket}/out/", *options)
    assert {file.key: file.etag for file in storage.list_files(f"{bucket}/out")} == before


def test_speaks_the_schemes_of_fsspec(trained: str, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 5)
    matte(trained, f"local://{tmp_path}/photos", f"local://{tmp_path}/out")
    assert_adds_up(tmp_path / "out", {f"img_align_celeba/{number:06d}.jpg" for number in range(1, 6)})


def test_too_small_a_cluster_is_an_error_before_any_work(trained: str, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 3)
    with pytest.raises(ClusterError, match="need 64 CPUs"):
        matte(trained, tmp_path / "photos", tmp_path / "out", "--workers=64")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.*"))


def test_says_what_is_wrong_before_it_begins(trained: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ([f"--checkpoint={tmp_path}", f"--images={tmp_path}", f"--output={tmp_path}/out"], "not a whole checkpoint"),
        ([f"--checkpoint={trained}", f"--images={tmp_path}/empty", f"--output={tmp_path}/out"], "holds no files"),
        ([f"--checkpoint={trained}", f"--images={trained}", f"--output={tmp_path}/out"], "no photo"),
        (["--write=mask", f"--checkpoint={trained}", "--images=x", "--output=y"], "--write takes alpha"),
    ):
        with pytest.raises(CANNOT_BEGIN, match=words) as caught:
            predict.main(arguments)
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["empty"]  # noqa: PTH208 - names
    code, output = jobs.run("predict", *arguments)
    assert code == 2
    assert words in output
    assert len(output.splitlines()) == 1


def test_a_store_that_fails_in_the_end_is_a_failure_and_costs_nothing_done(trained: str, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 3)
    (tmp_path / "out/report.html").mkdir(parents=True)  # a folder where the page should go
    code, output = jobs.run(
        "predict", f"--checkpoint={trained}", f"--images={tmp_path}/photos", f"--output={tmp_path}/out"
    )
    assert code == 1
    assert "failed: Cannot write" in output
    assert {row["status"] for row in rows(tmp_path / "out").values()} == {"done"}


def test_a_ledger_that_cannot_be_written_stops_the_run_in_a_line(trained: str, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 3)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/_ledger").symlink_to(tmp_path / "nowhere/ledger")  # reads as empty, and is no place to write to
    uris = [f"--checkpoint={trained}", f"--images={tmp_path}/photos", f"--output={tmp_path}/out"]
    with pytest.raises(JobError, match=r"stopped after 0 of 3 photos.*Cannot write .*_ledger") as raised:
        predict.main(uris)
    assert "\n" not in str(raised.value)
    (tmp_path / "out/_ledger").unlink()
    predict.main(uris)
    assert {row["status"] for row in rows(tmp_path / "out").values()} == {"done"}
