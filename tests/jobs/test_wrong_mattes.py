"""Training data that are well-formed and wrong: pack, train and evaluate stop, or name what is suspicious."""

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import evaluate, pack, train
from jobs.common.config import ConfigError
from matting.data import images
from matting.data.dataset import DataError, PairOptions, check_mattes, open_dataset
from matting.data.images import Pixels
from matting.data.synthetic import draw_person

pytestmark = pytest.mark.usefixtures("own_cluster")
slow = pytest.mark.slow
COUNT, SIDE = 24, 96


def png(values: np.ndarray) -> bytes:
    sink = BytesIO()
    Image.fromarray(values).save(sink, "PNG")
    return sink.getvalue()


def zero_one(alpha: Pixels) -> bytes:
    return png((alpha >= 128).astype(np.uint8))


def sixteen_bits_of_255(alpha: Pixels) -> bytes:
    return png(alpha.astype(np.uint16))


def sixteen_bits_of_255_in_rgb(alpha: Pixels) -> bytes:
    return bytes(cv2.imencode(".png", np.dstack([alpha.astype(np.uint16)] * 3))[1])


def inverted(alpha: Pixels) -> bytes:
    return png(255 - alpha)


def right(alpha: Pixels) -> bytes:
    return png(alpha)


def write(root: Path, encode: Callable[[Pixels], bytes], shift: int = 0, count: int = COUNT) -> Path:
    """Write pairs in the layout `folders`; mattes are those of the photo `shift` places on."""
    (root / "images").mkdir(parents=True)
    (root / "mattes").mkdir()
    people = [draw_person(0, number, SIDE, SIDE) for number in range(count)]
    for number, (image, _) in enumerate(people):
        (root / f"images/{number:02}.png").write_bytes(images.encode_png(image))
        (root / f"mattes/{number:02}.png").write_bytes(encode(people[(number + shift) % count][1]))
    return root


WRONG = [
    (zero_one, 0, "none has a value above 1, where 255 is read as opaque. .* give --matte-range 1", "--matte-range=1"),
    (sixteen_bits_of_255, 0, "none has a value above 255, where 65535 .* give --matte-range 255", "--matte-range=255"),
    (
        sixteen_bits_of_255_in_rgb,
        0,
        "none has a value above 255, where 65535 .* --matte-range 255",
        "--matte-range=255",
    ),
    (inverted, 0, "seem inverted.* give --invert", "--invert"),
    (right, 1, "photos fit the mattes 1 place before in the listing", None),
]


def test_pack_stops_at_wrong_mattes_and_reads_them_when_told(tmp_path: Path) -> None:
    expected = {number: draw_person(0, number, SIDE, SIDE)[1] for number in range(COUNT)}
    for case, (encode, shift, found, option) in enumerate(WRONG):
        raw, packed = write(tmp_path / f"raw{case}", encode, shift), tmp_path / f"packed{case}"
        command = [f"--pairs={raw}", f"--output={packed}"]
        with pytest.raises(DataError, match=f"raw{case}: .*{found}.* give --check-mattes warn"):
            pack.main(command)
        assert not packed.exists() or not list(packed.iterdir())
        if option is None:
            continue
        pack.main([*command, option])
        pairs = open_dataset(str(packed), PairOptions())
        assert check_mattes(pairs, "packed", PairOptions()) == []
        for rows in pairs.splits.values():
            for example in rows.examples(None):
                alpha = expected[int(example.key[7:9])]
                hard = np.where(alpha >= 128, 255, 0)
                np.testing.assert_array_equal(example.alpha, hard if encode is zero_one else alpha)
        assert json.loads((packed / "_pairs.json").read_text())["suspicious"] == []


@pytest.mark.parametrize(("encode", "shift", "found", "option"), WRONG)
def test_evaluate_stops_at_wrong_mattes(
    tmp_path: Path, encode: Callable[[Pixels], bytes], shift: int, found: str, option: str | None
) -> None:
    raw = write(tmp_path / "raw", encode, shift)
    black = tmp_path / "black"
    black.mkdir()
    for number in range(COUNT):
        (black / f"{number:02}.png").write_bytes(png(np.zeros((SIDE, SIDE), np.uint8)))
    command = [f"--data={raw}", f"--predictions={black}", "--split=all", f"--output={tmp_path}/scores"]
    with pytest.raises(DataError, match=found):
        evaluate.main(command)
    evaluate.main([*command, option or "--check-mattes=warn"])
    summary = json.loads((tmp_path / "scores/summary.json").read_text())
    assert summary["mad"] > 100  # nobody is in the predictions
    assert summary["iou"] < 0.1
    assert summary["suspicious"] == 0 or option is None


@slow
@pytest.mark.parametrize("is_packed", [False, True])
def test_train_stops_at_wrong_mattes_before_it_begins_a_run(tmp_path: Path, is_packed: bool) -> None:
    raw = write(tmp_path / "raw", zero_one)
    data = raw
    if is_packed:  # as by a version that did not look
        data = tmp_path / "packed"
        pack.main([f"--pairs={raw}", f"--output={data}", "--check-mattes=warn"])
    command = [f"--data={data}", f"--output={tmp_path}/runs", "--name=run", "--width=4", "--size=32", "--epochs=1"]
    command += ["--recipe=quickstart"]
    with pytest.raises(DataError, match="--matte-range 1"):
        train.main(command)
    assert not (tmp_path / "runs/run/run.json").exists()
    train.main([*command, "--matte-range=1"])
    assert json.loads((tmp_path / "runs/run/summary.json").read_text())["suspicious"] < 5


def spoil(root: Path) -> dict[str, str]:
    """Spoil some pairs of a dataset of drawn people, each in its own way. Returns what is to be said of each."""
    mattes = {number: root / f"mattes/{number:02}.png" for number in range(COUNT)}
    alphas = {number: images.decode_alpha(path.read_bytes()) for number, path in mattes.items()}
    trimap = np.where((alphas[3] > 0) & (alphas[3] < 255), 128, alphas[3]).astype(np.uint8)
    trimap[40:50] = 128
    mattes[1].write_bytes(zero_one(alphas[1]))
    mattes[2].write_bytes(inverted(alphas[2]))
    mattes[3].write_bytes(png(trimap))
    mattes[4].write_bytes(png(np.zeros_like(alphas[4])))
    return {
        "images/01.png": "no value above 1",
        "images/02.png": "seems inverted",
        "images/03.png": "like a trimap",
        "images/04.png": "empty",
    }


def assert_named(found: dict[str, str], expected: dict[str, str]) -> None:
    for key, words in expected.items():
        assert words in found[key]


def test_pack_counts_and_names_suspicious_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = spoil(write(tmp_path / "raw", right))
    pack.main([f"--pairs={tmp_path}/raw", f"--output={tmp_path}/packed"])
    description = json.loads((tmp_path / "packed/_pairs.json").read_text())
    assert_named(dict(description["suspicious"]), expected)
    assert {key for key, _ in description["suspicious"]} == set(expected)
    assert sum(description["counts"].values()) == COUNT
    said = capsys.readouterr().out
    assert "Suspicious, and packed: 4 of 24 pairs." in said
    first = {path.name: path.read_bytes() for path in (tmp_path / "packed").iterdir()}
    (tmp_path / "packed/_pairs.json").unlink()  # as a killed run leaves it
    pack.main([f"--pairs={tmp_path}/raw", f"--output={tmp_path}/packed"])
    assert {path.name: path.read_bytes() for path in (tmp_path / "packed").iterdir()} == first


def test_evaluate_counts_and_names_suspicious_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write(tmp_path / "raw", right)
    command = [f"--data={raw}", f"--predictions={raw}/mattes", "--split=all", f"--output={tmp_path}/scores"]
    expected = spoil(raw)
    evaluate.main(command)
    assert json.loads((tmp_path / "scores/summary.json").read_text())["suspicious"] == 4
    page = (tmp_path / "scores/report.html").read_text()
    for key, words in expected.items():
        assert f"<td><code>{key}</code></td>" in page
        assert words in page
    assert "Suspicious, scored all the same, and named on the page: 4." in capsys.readouterr().out


@slow
@pytest.mark.parametrize("cache", ["auto", "off"])
def test_train_counts_and_names_suspicious_pairs(
    tmp_path: Path, cache: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = spoil(write(tmp_path / "raw", right))
    command = [f"--data={tmp_path}/raw", f"--output={tmp_path}/runs", "--name=run", "--width=4", "--size=32"]
    train.main([*command, "--recipe=quickstart", "--epochs=2", f"--cache={cache}"])
    run = tmp_path / "runs/run"
    keys = open_dataset(f"{tmp_path}/raw", PairOptions()).keys
    used = {key: words for key, words in expected.items() if key in [*keys["train"], *keys["val"]]}
    assert len(used) > 2
    assert_named(json.loads((run / "suspicious.json").read_text()), used)
    page = (run / "report.html").read_text()
    assert "Suspicious pairs, used all the same, and named on the page:" in capsys.readouterr().out
    for key, words in used.items():
        assert f"<td><code>{key}</code></td>" in page
        assert words in page
    assert "training pairs to check first" in page
    suspects = pq.read_table(run / "suspects.parquet")
    assert sorted(suspects["key"].to_pylist()) == keys["train"]
    assert json.loads((run / "summary.json").read_text())["suspicious"] >= len(used)


def test_impossible_range_is_refused(tmp_path: Path) -> None:
    for value in ("0", "-1", "65536", "all"):
        with pytest.raises(ConfigError, match="--matte-range"):
            pack.main([f"--pairs={tmp_path}", f"--output={tmp_path}/out", f"--matte-range={value}"])
        with pytest.raises(ConfigError, match="--matte-range"):
            train.main([f"--data={tmp_path}", f"--matte-range={value}"])


def test_samples_are_neighbours_in_the_listing(tmp_path: Path) -> None:
    write(tmp_path / "raw", right)
    pairs = open_dataset(str(tmp_path / "raw"), PairOptions())
    listing = sorted(key for keys in pairs.keys.values() for key in keys)
    for runs, count in ((4, 3), (2, 5), (1, 7)):
        found = pairs.neighbours("", runs, count)
        assert len(found) == runs
        for run in found:
            keys = [key for key, _, _ in run]
            start = listing.index(keys[0])
            assert keys == listing[start : start + count]
            assert all(pairs.keys[split][index] == key for key, split, index in run)
    assert [[key for key, _, _ in run] for run in pairs.neighbours("", 4, 8)] == [listing]


def test_joined_datasets_are_judged_each(tmp_path: Path) -> None:
    data = f"{write(tmp_path / 'good', right)},{write(tmp_path / 'bad', inverted)}"
    with pytest.raises(DataError, match=r"^bad: of 24 mattes"):
        check_mattes(open_dataset(data, PairOptions()), data, PairOptions())
    (warning,) = check_mattes(open_dataset(data, PairOptions()), data, PairOptions(check_mattes="warn"))
    assert warning.startswith("bad: of 24 mattes")


def test_predictions_in_a_flat_folder_are_found(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", right, count=12)
    command = [f"--data={raw}", "--split=all", f"--output={tmp_path}/scores"]
    for naming in ("{stem}.png", "{stem}.png.png", "images/{stem}.png", "images/{stem}.png.png", "sub/{stem}.png"):
        folder = tmp_path / naming.replace("/", "_").replace("{stem}", "x")
        for matte in (raw / "mattes").iterdir():
            path = folder / naming.format(stem=matte.stem)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(matte.read_bytes())
        if naming.startswith("sub"):
            with pytest.raises(evaluate.JobError, match=r"looked for images/00\.png\.png, images/00\.png"):
                evaluate.main([*command, f"--predictions={folder}"])
            continue
        evaluate.main([*command, f"--predictions={folder}"])
        assert json.loads((tmp_path / "scores/summary.json").read_text())["mad"] == 0
