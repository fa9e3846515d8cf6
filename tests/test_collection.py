"""collection: raw, packed and drawn pairs answer alike; a bad pair says why and harms no other."""

import hashlib
import json
import pickle
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from matting import images, shards, storage
from matting.collection import FETCHES, SPLITS, DataError, Example, PackedRows, PairOptions, Pairs, RawRows, open_pairs
from matting.pairs import find_pairs, split_of
from matting.synthetic import draw_person
from tests.stores import GatedFileSystem

OPTIONS = PairOptions(synthetic_pairs=50)

Files = Mapping[str, tuple[bytes, bytes]]  # name without suffix -> bytes of the image and of the matte


def drawn(count: int, width: int = 24, height: int = 32) -> dict[str, tuple[bytes, bytes]]:
    pictures = [draw_person(0, number, width, height) for number in range(count)]
    return {
        f"p/{number:02}": (images.encode_jpeg(image), images.encode_png(alpha))
        for number, (image, alpha) in enumerate(pictures)
    }


def key_of(name: str) -> str:
    return f"images/{name}.jpg"


def write_raw(root: str, files: Files) -> str:
    for name, (image, matte) in files.items():
        storage.write_bytes(storage.join(root, key_of(name)), image)
        storage.write_bytes(storage.join(root, f"mattes/{name}.png"), matte)
    return root


def write_packed(root: str, files: Files) -> str:
    """The same pairs in parts of 10 rows, with the bytes and splits that raw ones have."""
    rows = []
    for name, (image, matte) in files.items():
        row = {"key": key_of(name), "split": split_of(key_of(name), 0), "image": image, "matte": matte}
        with suppress(images.BadImage):
            row |= zip(("width", "height"), images.image_size(image), strict=True)
        rows.append(row)
    rows.sort(key=lambda row: (row["split"], row["key"]))
    parts = [rows[start : start + 10] for start in range(0, len(rows), 10)]
    described = []
    for number, part in enumerate(parts):
        data = shards.encode_part(part, shards.PartFooter("", ()))
        storage.write_bytes(storage.join(root, shards.part_name(number)), data)
        described.append(
            {"name": shards.part_name(number), "rows": len(part), "sha256": hashlib.sha256(data).hexdigest()}
        )
    shards.write_description(root, {"parts": described, "unpaired": [], "rejected": []})
    return root


WRITERS = [write_raw, write_packed]
Writer = Callable[[str, Files], str]


def examples(pairs: Pairs, size: int | None = None) -> dict[str, Example]:
    """All of all splits, by key."""
    return {example.key: example for rows in pairs.splits.values() for example in rows.examples(size)}


def assert_equal(found: Example, expected: Example) -> None:
    assert (found.key, found.error) == (expected.key, expected.error)
    np.testing.assert_array_equal(found.image, expected.image)
    np.testing.assert_array_equal(found.alpha, expected.alpha)


def check_raw_and_packed_are_the_same(root: str) -> None:
    files = drawn(30)
    raw, packed = (open_pairs(writer(f"{root}/{writer.__name__}", files), OPTIONS) for writer in WRITERS)
    assert raw.keys == packed.keys
    assert raw.counts() == packed.counts() == {split: len(raw.keys[split]) for split in SPLITS}
    assert all(raw.counts().values())
    assert sum(raw.counts().values()) == 30
    for size in (None, 16):
        found = [examples(pairs, size) for pairs in (raw, packed)]
        assert list(found[0]) == list(found[1]) == [key for split in SPLITS for key in raw.keys[split]]
        for one, other in zip(found[0].values(), found[1].values(), strict=True):
            assert_equal(one, other)


def test_raw_and_packed_are_the_same(tmp_path: Path) -> None:
    check_raw_and_packed_are_the_same(str(tmp_path))


def test_raw_and_packed_are_the_same_in_a_bucket(bucket: str) -> None:
    check_raw_and_packed_are_the_same(bucket)


def test_pixels_are_the_files_own_or_squashed(tmp_path: Path) -> None:
    files = drawn(1)
    pairs = open_pairs(write_raw(str(tmp_path), files), OPTIONS)
    image, alpha = images.decode_pair(*files["p/00"])
    assert_equal(examples(pairs)[key_of("p/00")], Example(key_of("p/00"), image, alpha))
    squashed = Example(key_of("p/00"), images.resize(image, 16, 16), images.resize(alpha, 16, 16))
    assert_equal(examples(pairs, 16)[key_of("p/00")], squashed)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_part_of_the_rows_travels_and_keeps_its_order(tmp_path: Path, writer: Writer) -> None:
    rows = open_pairs(writer(str(tmp_path), drawn(30)), OPTIONS).splits["train"]
    whole = list(rows.examples(8))
    indices = np.array([17, 3, 9, 3])
    sent = pickle.dumps(rows.take(indices))
    assert len(sent) < len(pickle.dumps(rows))
    arrived = pickle.loads(sent)
    assert len(arrived) == 4
    for found, index in zip(arrived.examples(8), indices, strict=True):
        assert_equal(found, whole[index])


@pytest.mark.parametrize("writer", [*WRITERS, pytest.param(lambda _, __: "synthetic", id="synthetic")])
def test_one_example_by_its_key(tmp_path: Path, writer: Writer) -> None:
    pairs = open_pairs(writer(str(tmp_path), drawn(20)), PairOptions(synthetic_pairs=20))
    everything = examples(pairs)
    for split in SPLITS:
        for key in pairs.keys[split]:
            assert_equal(pairs.example(split, key), everything[key])


def test_a_manifest_is_a_collection_too(tmp_path: Path) -> None:
    root = write_raw(str(tmp_path), drawn(3))
    lines = [f"{pair.image_uri},{pair.matte_uri}" for pair in find_pairs(root).pairs]
    storage.write_bytes(f"{root}/pairs.csv", "\n".join(["image,matte", *lines]).encode())
    found = examples(open_pairs(f"{root}/pairs.csv", OPTIONS))
    for key, example in examples(open_pairs(root, OPTIONS)).items():
        assert_equal(found[key], example)


# The shapes of its photos ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", WRITERS)
def test_the_shapes_of_training_photos_but_for_the_oddest(tmp_path: Path, writer: Writer) -> None:
    files = {}
    for number in range(100):
        width, height = {0: (90, 10), 1: (10, 90)}.get(number, (30, 40) if number % 2 else (45, 30))
        drawn_pair = draw_person(0, number, width, height)
        files[f"p/{number:02d}"] = (images.encode_png(drawn_pair[0]), images.encode_png(drawn_pair[1]))
    assert open_pairs(writer(str(tmp_path), files), OPTIONS).aspects() == [0.75, 1.5]


def test_the_shapes_of_drawn_people_and_of_photos_that_cannot_be_read(tmp_path: Path) -> None:
    assert open_pairs("synthetic", PairOptions(synthetic_pairs=20)).aspects() == [1.0, 1.0]
    _, matte = drawn(1)["p/00"]
    root = write_raw(str(tmp_path), {f"p/{number:02d}": (b"no picture", matte) for number in range(20)})
    assert open_pairs(root, OPTIONS).aspects() == []
    slivers = {f"p/{number:02d}": (images.encode_png(np.zeros((5000, 1, 3), np.uint8)), matte) for number in range(20)}
    assert open_pairs(write_raw(str(tmp_path / "slivers"), slivers), OPTIONS).aspects() == [0.0002, 0.0002]


def test_shapes_that_a_part_does_not_tell_are_left_out() -> None:
    table = pa.table({"width": pa.array([3, None, -3, 0, 4]), "height": pa.array([4, 4, 4, 0, 0])})
    assert PackedRows(table).aspects() == [0.75, 0, -0.75, 0, 0]
    assert Pairs({"train": PackedRows(table)}, {}, (), "").aspects() == [0.75, 0.75]


# Several collections --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", WRITERS)
def test_of_several_collections_the_keys_say_which(tmp_path: Path, writer: Writer) -> None:
    files = drawn(20)
    first, second = writer(f"{tmp_path}/first", files), writer(f"{tmp_path}/second", drawn(12))
    alone = open_pairs(first, OPTIONS)
    together = open_pairs(f"{second}/, {first}", OPTIONS)
    for split in SPLITS:
        assert together.keys[split] == sorted(together.keys[split])
        of_first = [key for key in together.keys[split] if key.startswith("first/")]
        assert of_first == [f"first/{key}" for key in alone.keys[split]]
    assert sum(together.counts().values()) == 32
    found = examples(together)
    for key, example in examples(alone).items():
        assert_equal(found[f"first/{key}"], Example(f"first/{key}", example.image, example.alpha))


def test_what_does_not_pair_says_which_collection_it_is_of(tmp_path: Path) -> None:
    uris = [write_raw(f"{tmp_path}/{name}", drawn(2)) for name in ("first", "second")]
    storage.write_bytes(f"{uris[1]}/images/lonely.jpg", b"")
    pairs = open_pairs(",".join(uris), PairOptions(max_unpaired_fraction=0.5))
    assert pairs.unpaired == (("second/images/lonely.jpg", "has no matte; looked for mattes/lonely.png"),)


def test_collections_of_the_same_name_are_refused(tmp_path: Path) -> None:
    uris = [write_raw(f"{tmp_path}/{folder}/faces", drawn(2)) for folder in "ab"]
    with pytest.raises(DataError, match="the same last part"):
        open_pairs(",".join(uris), OPTIONS)


def test_raw_and_packed_together_are_refused(tmp_path: Path) -> None:
    uris = [writer(f"{tmp_path}/{writer.__name__}", drawn(2)) for writer in WRITERS]
    with pytest.raises(DataError, match="mixes raw and packed"):
        open_pairs(",".join(uris), OPTIONS)


@pytest.mark.parametrize("data", ["", " , "])
def test_no_collection_at_all(data: str) -> None:
    with pytest.raises(DataError, match="--data is empty"):
        open_pairs(data, OPTIONS)


# Bad pairs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", WRITERS)
def test_a_bad_pair_says_why_and_harms_no_other(tmp_path: Path, writer: Writer) -> None:
    good = drawn(4)
    image, matte = good["p/00"]
    wide = images.encode_png(np.zeros((10, 90), np.uint8))
    dot = images.encode_png(np.zeros((1, 1), np.uint8))
    bad = {
        "truncated": (image[:-100], matte),
        "truncated-matte": (image, matte[:-30]),
        "empty": (b"", matte),
        "text": (b"hello", matte),
        "other": (image, wide),
        "dot": (dot, dot),
    }
    reasons = {
        "truncated": "image: truncated JPEG",
        "truncated-matte": "matte: truncated PNG",
        "empty": "image: empty file",
        "text": "image: not an image",
        "other": "image is 24×32, matte 90×10: not the same picture",
        "dot": "image: 1×1 pixels",
    }
    found = examples(open_pairs(writer(str(tmp_path), {**good, **bad}), OPTIONS), 16)
    assert len(found) == 10
    for name, reason in reasons.items():
        example = found[key_of(name)]
        assert example.error.startswith(reason)
        assert example.image is example.alpha is None
    for name, files in good.items():
        expected = images.decode_pair(*files)
        assert_equal(found[key_of(name)], Example(key_of(name), *(images.resize(part, 16, 16) for part in expected)))


def test_a_file_that_cannot_be_read_is_a_bad_pair(tmp_path: Path) -> None:
    root = write_raw(str(tmp_path), drawn(3))
    pairs = open_pairs(root, OPTIONS)
    storage.delete(f"{root}/mattes/p/01.png")
    found = examples(pairs)
    assert {key for key, example in found.items() if example.error} == {key_of("p/01")}
    assert f"Cannot read {root}/mattes/p/01.png" in found[key_of("p/01")].error


# The fingerprint ------------------------------------------------------------------------------------------------------


def test_the_fingerprint_follows_names_and_sizes(tmp_path: Path) -> None:
    files = drawn(3)
    image, matte = files["p/00"]
    renamed = {"p/0" if name == "p/00" else name: pair for name, pair in files.items()}
    collections = [files, {**files, "p/00": (image + b"!", matte)}, {**files, "p/00": (image, matte + b"!")}, renamed]
    uris = [write_raw(f"{tmp_path}/{number}", changed) for number, changed in enumerate(collections)]
    fingerprints = [open_pairs(uri, OPTIONS).fingerprint for uri in uris]
    assert all(one != other for one, other in combinations(fingerprints, 2))
    assert open_pairs(write_raw(f"{tmp_path}/again", files), OPTIONS).fingerprint == fingerprints[0]
    assert open_pairs(f"{uris[0]},{uris[1]}", OPTIONS).fingerprint not in fingerprints


def test_the_fingerprint_of_a_packed_collection_follows_its_parts(tmp_path: Path) -> None:
    root = write_packed(str(tmp_path), drawn(3))
    before = open_pairs(root, OPTIONS).fingerprint
    description = json.loads((tmp_path / shards.DESCRIPTION).read_text())
    description["parts"][0]["sha256"] = "another"
    (tmp_path / shards.DESCRIPTION).write_text(json.dumps(description))
    assert open_pairs(root, OPTIONS).fingerprint != before


# Drawn people ---------------------------------------------------------------------------------------------------------


def test_drawn_people_are_the_same_every_time() -> None:
    first, again = (open_pairs("synthetic", OPTIONS) for _ in range(2))
    assert first.keys == again.keys
    assert first.fingerprint == again.fingerprint
    everything = examples(first, 32)
    assert len(everything) == sum(first.counts().values()) == 50
    assert all(first.counts().values())
    for key, example in examples(again, 32).items():
        assert_equal(example, everything[key])
    other = open_pairs("synthetic", PairOptions(synthetic_pairs=50, split_seed=1))
    assert other.keys != first.keys
    assert other.fingerprint != first.fingerprint


def test_more_drawn_people_leave_the_others_where_they_are() -> None:
    few, many = (open_pairs("synthetic", PairOptions(synthetic_pairs=count)) for count in (20, 60))
    for split in SPLITS:
        assert set(few.keys[split]) <= set(many.keys[split])
    assert few.fingerprint != many.fingerprint


def test_raw_pairs_are_fetched_no_further_ahead_than_memory_is_meant_for(gated: type[GatedFileSystem]) -> None:
    count = 4 * FETCHES
    root = write_raw("gated://pairs", {f"{number:03}": (b"photo", b"matte") for number in range(count)})
    uris = {"image_uri": [f"{root}/{key_of(f'{number:03}')}" for number in range(count)]}
    uris["matte_uri"] = [f"{root}/mattes/{number:03}.png" for number in range(count)]
    rows = RawRows(pa.table({"key": [f"{number:03}" for number in range(count)], **uris}))
    gated.begun = 0
    gated.gate.set()
    with closing(rows.fetch()) as fetching:
        assert next(fetching) == ("000", b"photo", b"matte", "")
    assert gated.begun <= 2 * (FETCHES + 1)
