"""predict: keys of every kind, odd and broken photos, tables, and every storage scheme."""

import io
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import evaluate, export, pack, predict
from jobs.common import cluster
from jobs.common.cli import run_job
from matting.data import images
from matting.data.sources.tar_index import INDEX_NAME
from matting.data.synthetic import draw_person
from matting.storage import store
from tests.support import predictions
from tests.support.archives import tar_bytes

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.slow]


def run_predict(trained: str, source: object, output: object, *options: str) -> None:
    predict.main([f"--checkpoint={trained}", f"--images={source}", f"--output={output}", *options])


def refused(monkeypatch: pytest.MonkeyPatch, trained: str, source: object, output: object) -> object:
    """Run the job as from the command line, and return its exit code."""
    argv = ["predict.py", f"--checkpoint={trained}", f"--images={source}", f"--output={output}"]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(cluster, "has_started", lambda: False)  # an earlier test of this process may have
    with pytest.raises(SystemExit) as caught:
        run_job(predict.main)
    return caught.value.code


# Keys -----------------------------------------------------------------------------------------------------------------

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


def test_keys_of_every_kind_have_outputs(trained: str, tmp_path: Path, bucket: str) -> None:
    assert len(NAMES[-1]) == 500
    for number, name in enumerate(NAMES):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(predictions.draw_photo(number, 20 + number, 24))
        store.write_bytes(f"{bucket}/photos/{name}", predictions.draw_photo(number, 20 + number, 24))
    store.write_bytes(
        f"{bucket}/photos/{'m' * 496}.jpg", predictions.draw_photo(99)
    )  # longer than a file's name may be
    run_predict(trained, tmp_path / "photos", tmp_path / "out")
    predictions.assert_accounted_for(tmp_path / "out", set(NAMES))
    for number, name in enumerate(NAMES):
        assert images.image_size((tmp_path / f"out/alpha/{name}.png").read_bytes()) == (20 + number, 24)
    run_predict(trained, f"{bucket}/photos", f"{bucket}/out")
    keys = {*NAMES, f"{'m' * 496}.jpg"}
    assert {file.key for file in store.list_files(f"{bucket}/out/alpha")} == {f"{key}.png" for key in keys}
    for name in NAMES:
        assert store.read_bytes(f"{bucket}/out/alpha/{name}.png") == (tmp_path / f"out/alpha/{name}.png").read_bytes()
    run_predict(trained, f"{bucket}/photos", tmp_path / "from-bucket")
    predictions.assert_accounted_for(tmp_path / "from-bucket", keys)


@pytest.mark.parametrize("key", ["../../etc/x", "/etc/x", "a/./b", "a//b", "..", "a\0b"])
def test_keys_never_lead_out_of_the_output(
    trained: str, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = {"key": [key, "good.jpg"], "image": pa.array([predictions.draw_photo(0), predictions.draw_photo(1)])}
    pq.write_table(pa.table(table), tmp_path / "table.parquet")
    assert refused(monkeypatch, trained, tmp_path / "table.parquet", tmp_path / "deep/er/out") == 2
    assert f"error: {tmp_path}/table.parquet has keys that cannot name outputs: {key!r}." in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["table.parquet"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("list.csv", b"image;label\ngone.jpg;1\n", "names 1 photos, and none of them exists"),
        ("list.csv", b"photos/1.jpg,1\nphotos/2.jpg,2\n", "has no header"),
        ("list.csv", b"image\ncaf\xe9.jpg\n", "its line 2 is not UTF-8"),
        ("list.csv", b"", "is empty"),
        ("list.parquet", b"PAR1", "cannot be read as Parquet"),
        ("list.jsonl", b"[1]", "cannot be read as JSON Lines"),
        ("shard.tar", b"<html>", "is damaged after 0 files"),
        ("shard.tar.gz", b"\x1f\x8b", "is a file; expected a folder"),
    ],
)
def test_what_cannot_be_planned_is_refused_before_any_work(
    trained: str,
    tmp_path: Path,
    name: str,
    content: bytes,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / name).write_bytes(content)
    assert refused(monkeypatch, trained, tmp_path / name, tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert reason in message
    assert message.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


# Photos ---------------------------------------------------------------------------------------------------------------


def bad_and_odd_files() -> dict[str, tuple[bytes, tuple[int, int] | str]]:
    """Return files that users call photos: {name: (bytes, size of the matte or start of the error)}."""

    def encoded(image: Image.Image, form: str, **options: object) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        return buffer.getvalue()

    person = Image.fromarray(draw_person(5, 0, 60, 80)[0])
    png = encoded(person, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    grey_16 = Image.fromarray(np.linspace(0, 65535, 48).astype(np.uint16).reshape(6, 8))
    return {
        "truncated.jpg": (predictions.draw_photo(0)[:-300], "truncated JPEG"),
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
def test_odd_files_are_handled_or_named(trained: str, tmp_path: Path, options: list[str]) -> None:
    files = bad_and_odd_files()
    (tmp_path / "photos").mkdir()
    for name, (data, _) in files.items():
        (tmp_path / "photos" / name).write_bytes(data)
    predictions.write_photos(tmp_path / "photos", 20)
    run_predict(trained, tmp_path / "photos", tmp_path / "out", "--max-failed=1", *options)
    ledger = predictions.read_ledger(tmp_path / "out")
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
        predictions.assert_accounted_for(tmp_path / "out", set(predictions.read_ledger(tmp_path / "out")))


def test_tables_give_the_same_mattes(trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions.write_photos(tmp_path / "photos", 20)
    keys = [f"img_align_celeba/{number:06d}.jpg" for number in range(1, 21)]
    data = pa.array([(tmp_path / "photos" / key).read_bytes() for key in keys], pa.binary())
    pq.write_table(pa.table({"key": keys, "image": data}), tmp_path / "bytes.parquet", row_group_size=7)
    (tmp_path / "photos/uris.csv").write_text("\n".join(["path", *keys]))
    run_predict(trained, tmp_path / "photos", tmp_path / "files")
    for name, source in {"bytes": tmp_path / "bytes.parquet", "uris": tmp_path / "photos/uris.csv"}.items():
        for _ in range(2):
            run_predict(trained, source, tmp_path / name)
        assert "Nothing left to do." in capsys.readouterr().out
        predictions.assert_accounted_for(tmp_path / name, set(keys))
        for key in keys:
            expected = (tmp_path / f"files/alpha/{key}.png").read_bytes()
            assert (tmp_path / name / f"alpha/{key}.png").read_bytes() == expected


def test_archives_give_the_same_mattes(
    trained: str, tmp_path: Path, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions.write_photos(tmp_path / "photos", 20)
    names = [f"img_align_celeba/{number:06d}.jpg" for number in range(1, 21)]
    files = {name: (tmp_path / "photos" / name).read_bytes() for name in names}
    for shard in range(2):
        entries = [(f"./{name}", files[name]) for name in names[shard * 10 : shard * 10 + 10]]
        store.write_bytes(f"{bucket}/shards/{shard}.tar", tar_bytes([*entries, ("notes.json", b"{}")]))
    store.write_bytes(f"{bucket}/shards/old.tar.gz", b"")
    run_predict(trained, tmp_path / "photos", tmp_path / "files")
    capsys.readouterr()
    run_predict(trained, f"{bucket}/shards", tmp_path / "out")
    printed = capsys.readouterr().out
    assert "20 photos in" in printed
    assert "(2 other files: 0.tar/notes.json; 1.tar/notes.json)" in printed
    assert "1 left out: old.tar.gz is a compressed tar archive" in printed
    assert "old.tar.gz is a compressed tar archive" in (tmp_path / "out/report.html").read_text()
    assert (tmp_path / "out" / INDEX_NAME).exists()
    keys = {f"{number // 10}.tar/{name}": name for number, name in enumerate(names)}
    predictions.assert_accounted_for(tmp_path / "out", set(keys))
    for key, name in keys.items():
        expected = (tmp_path / f"files/alpha/{name}.png").read_bytes()
        assert (tmp_path / f"out/alpha/{key}.png").read_bytes() == expected
    run_predict(trained, f"{bucket}/shards", tmp_path / "out")
    assert "Nothing left to do." in capsys.readouterr().out
    store.write_bytes(f"{bucket}/shards/1.tar", tar_bytes([(names[10], files[names[11]])]))
    run_predict(trained, f"{bucket}/shards", tmp_path / "out", "--plan")
    assert "1 changed since they were predicted" in capsys.readouterr().out


def test_home_folder_is_expanded_in_every_uri(trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    predictions.write_photos(tmp_path / "photos", 12)
    (tmp_path / "best").symlink_to(trained)
    run_predict("~/best", "~/photos", "~/mattes")
    predictions.assert_accounted_for(tmp_path / "mattes", predictions.photo_keys(12))
    pack.main(["--pairs=~/mattes", "--photos=~/photos", "--output=~/packed"])
    export.main(["--checkpoint=~/best", "--output=~/exported"])
    evaluate.main(["--checkpoint=~/best", "--beside=~/best", "--data=~/packed", "--output=~/scores", "--split=all"])
    assert {path.name for path in tmp_path.iterdir()} == {"best", "exported", "mattes", "packed", "photos", "scores"}


# Storage --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sink", ["files", "table"])
def test_bucket_gives_the_same_as_a_folder(trained: str, tmp_path: Path, bucket: str, sink: str) -> None:
    predictions.write_photos(tmp_path / "photos", 30)
    for path in (tmp_path / "photos").rglob("*.jpg"):
        store.write_bytes(f"{bucket}/photos/{path.relative_to(tmp_path / 'photos')}", path.read_bytes())
    for file in store.list_files(trained):
        store.write_bytes(f"{bucket}/best/{file.key}", store.read_bytes(f"{trained}/{file.key}"))
    options = ["--write=alpha,cutout", "--format=webp", f"--sink={sink}"]
    run_predict(trained, tmp_path / "photos", tmp_path / "out", *options)
    run_predict(f"{bucket}/best", f"{bucket}/photos/", f"{bucket}/out/", *options)
    found = {file.key for file in store.list_files(f"{bucket}/out")}
    if sink == "files":
        written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
        unnamed = {key for key in found ^ written if not key.startswith("_ledger/")}
        assert not unnamed
        for key in found:
            if not key.startswith(("_ledger/", "report", "summary")):
                assert store.read_bytes(f"{bucket}/out/{key}") == (tmp_path / "out" / key).read_bytes()
    else:
        assert {key.partition("/")[0] for key in found} == {"_ledger", "mattes", "report.html", "summary.json"}
    before = {file.key: file.etag for file in store.list_files(f"{bucket}/out")}
    run_predict(f"{bucket}/best", f"{bucket}/photos/", f"{bucket}/out/", *options)
    assert {file.key: file.etag for file in store.list_files(f"{bucket}/out")} == before


def test_fsspec_schemes_work(trained: str, tmp_path: Path) -> None:
    predictions.write_photos(tmp_path / "photos", 5)
    run_predict(trained, f"local://{tmp_path}/photos", f"local://{tmp_path}/out")
    predictions.assert_accounted_for(tmp_path / "out", predictions.photo_keys(5))
