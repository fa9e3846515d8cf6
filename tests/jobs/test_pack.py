"""pack: the same bytes every time, whatever was there before; every pair is packed or named."""

import json
from hashlib import sha256
from itertools import repeat
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import pack, predict
from jobs.bench.workload import untrained_unet
from jobs.common.cli import JobError
from matting.data import images
from matting.data.dataset import PairOptions, open_dataset
from matting.data.mattes import read_matte
from matting.data.pairs import PairsError
from matting.data.rows import RawRows
from matting.data.synthetic import draw_person
from matting.nn import checkpoint
from matting.nn.unet import UNetConfig
from matting.results import ledger
from matting.storage import store
from matting.storage.errors import StorageError
from tests.support import faults
from tests.support.archives import tar_bytes
from tests.support.drawing import write_folders

pytestmark = pytest.mark.usefixtures("ray_cluster")
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of thirty pairs of 48 × 48 pixels."""
    root = tmp_path_factory.mktemp("raw") / "people"
    write_folders(root, 30, 48)
    return root


def test_shards_are_packed_like_folders(raw: Path, tmp_path: Path, bucket: str) -> None:
    people = sorted((raw / "images").iterdir())
    for shard in range(3):
        entries = []
        for path in people[shard * 10 : shard * 10 + 10]:
            matte = raw / "mattes" / path.name
            entries += [(f"{path.stem}.image.png", path.read_bytes()), (f"{path.stem}.png", matte.read_bytes())]
        store.write_bytes(f"{bucket}/shards/{shard}.tar", tar_bytes(entries))
    pack.main([f"--pairs={bucket}/shards", f"--output={tmp_path}/shards"])
    pack.main([f"--pairs={raw}", f"--output={tmp_path}/folders"])

    def packed(name: str) -> dict[str, tuple[bytes, bytes]]:
        rows = duckdb.sql(f"select key, image, matte from '{tmp_path}/{name}/*.parquet'").fetchall()
        return {Path(key).name.partition(".")[0]: (image, matte) for key, image, matte in rows}

    assert len(packed("shards")) == 30
    assert packed("shards") == packed("folders")
    description = json.loads((tmp_path / "shards/_pairs.json").read_text())
    assert (description["layout"], description["unpaired"]) == ("webdataset", [])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_pair_is_packed_and_described(raw: Path, tmp_path: Path) -> None:
    pack.main([f"--pairs={raw}", f"--output={tmp_path}"])
    description = json.loads((tmp_path / "_pairs.json").read_text())
    assert sum(description["counts"].values()) == 30
    for part in description["parts"]:
        assert sha256((tmp_path / part["name"]).read_bytes()).hexdigest() == part["sha256"]
    found = duckdb.sql(f"select key, split, width, height, source from '{tmp_path}/*.parquet' order by key").fetchall()
    expected = open_dataset(str(raw), PairOptions())
    splits = {key: split for split, keys in expected.keys.items() for key in keys}
    assert found == [
        (f"images/person-{n:03d}.png", splits[f"images/person-{n:03d}.png"], 48, 48, "people") for n in range(30)
    ]


def test_packed_pairs_have_the_raw_pixels(raw: Path, tmp_path: Path) -> None:
    pack.main([f"--pairs={raw}", f"--output={tmp_path}"])
    packed, unpacked = open_dataset(str(tmp_path), PairOptions()), open_dataset(str(raw), PairOptions())
    assert packed.keys == unpacked.keys
    for split, rows in packed.splits.items():
        for one, other in zip(rows.examples(32), unpacked.splits[split].examples(32), strict=True):
            np.testing.assert_array_equal(one.image, other.image)
            np.testing.assert_array_equal(one.alpha, other.alpha)


@slow
def test_masks_are_softened_and_mattes_are_kept(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:80, :80]
    disc = np.clip((28 - np.hypot(rows - 40, columns - 40)) / 12 + 0.5, 0, 1)[..., None]
    image = np.rint(disc * [200, 60, 40] + (1 - disc) * [30, 90, 180]).astype(np.uint8)
    mattes = {"mask": np.where(disc >= 0.5, 255, 0), "matte": np.rint(disc * 255)}
    for name, matte in mattes.items():
        (tmp_path / "raw/images").mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw/mattes").mkdir(exist_ok=True)
        (tmp_path / f"raw/images/{name}.png").write_bytes(images.encode_png(image))
        (tmp_path / f"raw/mattes/{name}.png").write_bytes(images.encode_png(matte[..., 0].astype(np.uint8)))
    for soften in (0, 5):
        pack.main([f"--pairs={tmp_path}/raw", f"--output={tmp_path}/{soften}", "--side=40", f"--soften={soften}"])
    alphas = {}
    for soften in (0, 5):
        pairs = open_dataset(str(tmp_path / str(soften)), PairOptions())
        alphas[soften] = {e.key: e.alpha for rows in pairs.splits.values() for e in rows.examples(None)}
    small = images.resize(mattes["matte"][..., 0].astype(np.uint8), 40, 40).astype(int)
    np.testing.assert_array_equal(alphas[5]["images/matte.png"], alphas[0]["images/matte.png"])
    assert np.abs(alphas[0]["images/mask.png"] - small).max() > 80
    assert np.abs(alphas[5]["images/mask.png"] - small).max() < 25


@slow
@pytest.mark.parametrize("sink", ["files", "table"])
def test_confident_mattes_become_pairs(tmp_path: Path, sink: str) -> None:
    model = untrained_unet(UNetConfig(width=4))
    checkpoint.save(str(tmp_path / "trained"), model, checkpoint.describe(model, 32, {}, {}), {"val_mad": 1.0})
    (tmp_path / "photos/x").mkdir(parents=True)
    for number in range(8):
        (tmp_path / f"photos/x/{number}.jpg").write_bytes(images.encode_jpeg(draw_person(5, number, 40, 50)[0]))
    (tmp_path / "photos/x/empty.jpg").write_bytes(b"")
    uris = [f"--checkpoint={tmp_path}/trained", f"--images={tmp_path}/photos", f"--output={tmp_path}/mattes"]
    predict.main([*uris, "--max-failed=1", f"--sink={sink}"])
    rows = ledger.read(str(tmp_path / "mattes")).to_pylist()
    confidences = sorted(row["confidence"] for row in rows if row["status"] == "done")
    expected = {row["key"] for row in rows if row["status"] == "done" and row["confidence"] >= confidences[3]}
    assert len(expected) < len(confidences)
    arguments = [f"--pairs={tmp_path}/mattes", f"--photos={tmp_path}/photos", f"--output={tmp_path}/packed"]
    pack.main([*arguments, f"--min-confidence={confidences[3]}"])
    packed = open_dataset(str(tmp_path / "packed"), PairOptions())
    assert set(packed.keys["train"]) == expected
    assert packed.counts() == {"train": len(expected), "val": 0, "test": 0}
    alphas = {row["key"]: row["outputs"] for row in rows}
    for example in packed.splits["train"].examples(None):
        matte = read_matte(example.key, str(tmp_path / "mattes" / alphas[example.key][0]), images.MAX_PIXELS)
        np.testing.assert_array_equal(example.alpha, images.decode_alpha(matte))
        photo = images.decode_image((tmp_path / "photos" / example.key).read_bytes())
        np.testing.assert_array_equal(example.image, photo)
    with pytest.raises(PairsError, match=r"Of 8 mattes .* none has a confidence of at least 1"):
        pack.main([*arguments, "--min-confidence=1"])


def test_damaged_table_of_mattes_costs_its_own_pairs(tmp_path: Path) -> None:
    mattes = pa.table({"key": ["a"], "alpha": [b"matte"], "cutout": pa.array([None], pa.binary())})
    pq.write_table(mattes, tmp_path / "good.parquet", compression="none")
    pq.write_table(mattes, tmp_path / "packed.parquet", compression="zstd")
    pq.write_table(mattes.drop_columns("alpha"), tmp_path / "other.parquet", compression="none")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "good.parquet").read_bytes()[:-20])
    assert read_matte("a", f"{tmp_path}/good.parquet", 100) == b"matte"
    for name in ("packed", "other", "cut"):
        with pytest.raises(StorageError, match=f"{name}.parquet"):
            read_matte("a", f"{tmp_path}/{name}.parquet", 100)
    (tmp_path / "a.jpg").write_bytes(b"photo")
    uris = {"key": ["a", "a"], "image_uri": [f"{tmp_path}/a.jpg"] * 2}
    uris["matte_uri"] = [f"{tmp_path}/{name}.parquet" for name in ("cut", "good")]
    (_, failure), (_, pair) = RawRows(pa.table(uris)).fetch()
    assert "cut.parquet cannot be read as a table of mattes" in failure.reason
    assert not failure.is_transient
    assert pair == (b"photo", b"matte")


def test_longer_side_is_shrunk(tmp_path: Path) -> None:
    (tmp_path / "raw/images").mkdir(parents=True)
    (tmp_path / "raw/mattes").mkdir()
    (tmp_path / "raw/images/a.png").write_bytes(images.encode_png(np.full((60, 40, 3), 9, np.uint8)))
    (tmp_path / "raw/mattes/a.png").write_bytes(images.encode_png(np.full((60, 40), 255, np.uint8)))
    pack.main([f"--pairs={tmp_path / 'raw'}", f"--output={tmp_path / 'packed'}", "--side=30"])
    (row,) = duckdb.sql(f"select width, height, image, matte from '{tmp_path}/packed/*.parquet'").fetchall()
    assert row[:2] == (20, 30)
    assert images.decode_image(row[2]).shape == (30, 20, 3)
    assert (images.decode_alpha(row[3]) == 255).all()


@slow
def test_repeated_and_killed_packings_give_the_same_bytes(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "PART_ROWS", 8)
    pack.main([f"--pairs={raw}", f"--output={tmp_path / 'one'}"])
    expected = contents(tmp_path / "one")
    assert len(expected) >= 5
    pack.main([f"--pairs={raw}", f"--output={tmp_path / 'one'}"])
    assert "Nothing left to do" in capsys.readouterr().out

    # As a killed run leaves it: some parts, perhaps one of another run, and no description.
    (tmp_path / "one/_pairs.json").unlink()
    kept = tmp_path / "one/part-00000.parquet"
    before = kept.stat().st_mtime_ns
    (tmp_path / "one/part-00001.parquet").write_bytes(expected["part-00002.parquet"])
    (tmp_path / "one/part-00002.parquet").write_bytes(expected["part-00002.parquet"][:-9])
    (tmp_path / "one/part-00099.parquet").write_bytes(b"of a larger packing")
    pack.main([f"--pairs={raw}", f"--output={tmp_path / 'one'}"])
    assert contents(tmp_path / "one") == expected
    assert kept.stat().st_mtime_ns == before

    pack.main([f"--pairs={raw}", f"--output={tmp_path / 'two'}"])
    assert contents(tmp_path / "two") == expected
    pack.main([f"--pairs={raw}", f"--output={tmp_path / 'two'}", "--side=16"])
    assert contents(tmp_path / "two")["_pairs.json"] != expected["_pairs.json"]


@slow
def test_left_out_pairs_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "raw"
    write_folders(raw, 12, 24)
    (raw / "images/person-001.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (raw / "mattes/person-002.png").unlink()
    with pytest.raises(PairsError, match=r"person-002.*--max-unpaired-fraction"):
        pack.main([f"--pairs={raw}", f"--output={tmp_path / 'packed'}"])
    with pytest.raises(JobError, match=r"person-001.*allow more"):
        pack.main([f"--pairs={raw}", f"--output={tmp_path / 'packed'}", "--max-unpaired-fraction=0.2"])
    assert not (tmp_path / "packed/_pairs.json").exists()
    pack.main(
        [
            f"--pairs={raw}",
            f"--output={tmp_path / 'packed'}",
            "--max-unpaired-fraction=0.2",
            "--max-rejected-fraction=0.2",
        ]
    )
    output = capsys.readouterr().out
    description = json.loads((tmp_path / "packed/_pairs.json").read_text())
    assert [key for key, _ in description["unpaired"]] == ["images/person-002.png"]
    assert [key for key, _ in description["rejected"]] == ["images/person-001.png"]
    assert "left out: images/person-001.png: image: " in output
    assert "left out: images/person-002.png: has no matte" in output


@slow
def test_repaired_pairs_are_packed_by_the_next_run(tmp_path: Path) -> None:
    raw, packed = tmp_path / "raw", tmp_path / "packed"
    write_folders(raw, 12, 24)
    image = raw / "images/person-001.png"
    sound = image.read_bytes()
    image.write_bytes(bytes(len(sound)))  # a listing shows no difference
    with pytest.raises(JobError, match=r"person-001.*Mend or remove"):
        pack.main([f"--pairs={raw}", f"--output={packed}"])
    image.write_bytes(sound)
    pack.main([f"--pairs={raw}", f"--output={packed}"])
    assert sum(open_dataset(str(packed), PairOptions()).counts().values()) == 12


@slow
def test_pairs_that_storage_failed_on_are_packed_later(
    raw: Path, tmp_path: Path, bucket: str, store_proxy: faults.Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("images", "mattes"):
        store.write_bytes(f"{bucket}/{name}/far.png", (raw / name / "person-001.png").read_bytes())
    lines = [
        f"{place}/images/{name}.png,{place}/mattes/{name}.png,{name}"
        for place, name in ((raw, "person-000"), (bucket, "far"))
    ]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,matte,key", *lines]))
    command = [f"--pairs={tmp_path}/pairs.csv", f"--output={tmp_path}/packed", "--max-rejected-fraction=0.5"]
    with monkeypatch.context() as outage:
        outage.setattr(store_proxy, "plan", repeat("throttle"))
        pack.main(command)
    assert sum(open_dataset(f"{tmp_path}/packed", PairOptions()).counts().values()) == 1
    assert json.loads((tmp_path / "packed/_pairs.json").read_text())["transient"] == ["far"]
    pack.main(command)
    assert sum(open_dataset(f"{tmp_path}/packed", PairOptions()).counts().values()) == 2
