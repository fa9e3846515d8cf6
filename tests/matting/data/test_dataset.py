"""dataset: raw, packed and synthetic pairs open as the same dataset."""

import json
import pickle
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from matting.data import images, shards
from matting.data.dataset import SPLITS, DataError, PairDataset, PairOptions, open_dataset
from matting.data.pairs import find_pairs
from matting.data.rows import Example, PackedRows, decode_pair
from matting.data.synthetic import draw_person
from matting.storage import store
from tests.support.pairs import (
    PAIR_WRITERS,
    PairWriter,
    assert_same_example,
    encoded_people,
    examples_by_key,
    key_of,
    write_packed,
    write_raw,
)

OPTIONS = PairOptions(synthetic_pairs=50)


def check_raw_and_packed_are_equal(root: str) -> None:
    files = encoded_people(30)
    raw, packed = (open_dataset(writer(f"{root}/{writer.__name__}", files), OPTIONS) for writer in PAIR_WRITERS)
    assert raw.keys == packed.keys
    assert raw.counts() == packed.counts() == {split: len(raw.keys[split]) for split in SPLITS}
    assert all(raw.counts().values())
    assert sum(raw.counts().values()) == 30
    for size in (None, 16):
        found = [examples_by_key(pairs, size) for pairs in (raw, packed)]
        assert list(found[0]) == list(found[1]) == [key for split in SPLITS for key in raw.keys[split]]
        for one, other in zip(found[0].values(), found[1].values(), strict=True):
            assert_same_example(one, other)


def test_raw_and_packed_pairs_are_equal(tmp_path: Path) -> None:
    check_raw_and_packed_are_equal(str(tmp_path))


@pytest.mark.slow
def test_raw_and_packed_pairs_are_equal_in_a_bucket(bucket: str) -> None:
    check_raw_and_packed_are_equal(bucket)


def test_pixels_are_whole_or_squashed(tmp_path: Path) -> None:
    files = encoded_people(1)
    pairs = open_dataset(write_raw(str(tmp_path), files), OPTIONS)
    image, alpha, *_ = decode_pair(*files["p/00"])
    assert_same_example(examples_by_key(pairs)[key_of("p/00")], Example(key_of("p/00"), image, alpha))
    squashed = Example(key_of("p/00"), images.resize(image, 16, 16), images.resize(alpha, 16, 16))
    assert_same_example(examples_by_key(pairs, 16)[key_of("p/00")], squashed)


@pytest.mark.parametrize("writer", PAIR_WRITERS)
def test_taken_rows_are_small_and_ordered(tmp_path: Path, writer: PairWriter) -> None:
    rows = open_dataset(writer(str(tmp_path), encoded_people(30)), OPTIONS).splits["train"]
    whole = list(rows.examples(8))
    indices = np.array([17, 3, 9, 3])
    sent = pickle.dumps(rows.take(indices))
    assert len(sent) < len(pickle.dumps(rows))
    arrived = pickle.loads(sent)
    assert len(arrived) == 4
    for found, index in zip(arrived.examples(8), indices, strict=True):
        assert_same_example(found, whole[index])


@pytest.mark.parametrize("writer", [*PAIR_WRITERS, pytest.param(lambda _, __: "synthetic", id="synthetic")])
def test_example_is_found_by_key(tmp_path: Path, writer: PairWriter) -> None:
    pairs = open_dataset(writer(str(tmp_path), encoded_people(20)), PairOptions(synthetic_pairs=12))
    everything = examples_by_key(pairs)
    for split in SPLITS:
        for key in pairs.keys[split]:
            assert_same_example(pairs.example(split, key), everything[key])


def test_manifest_is_a_dataset(tmp_path: Path) -> None:
    root = write_raw(str(tmp_path), encoded_people(3))
    lines = [f"{pair.image_uri},{pair.matte_uri}" for pair in find_pairs(root).pairs]
    store.write_bytes(f"{root}/pairs.csv", "\n".join(["image,matte", *lines]).encode())
    found = examples_by_key(open_dataset(f"{root}/pairs.csv", OPTIONS))
    for key, example in examples_by_key(open_dataset(root, OPTIONS)).items():
        assert_same_example(found[key], example)


# Aspect ratios -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", PAIR_WRITERS)
def test_aspects_leave_out_extremes(tmp_path: Path, writer: PairWriter) -> None:
    files = {}
    for number in range(100):
        width, height = {0: (90, 10), 1: (10, 90)}.get(number, (30, 40) if number % 2 else (45, 30))
        drawn_pair = draw_person(0, number, width, height)
        files[f"p/{number:02d}"] = (images.encode_png(drawn_pair[0]), images.encode_png(drawn_pair[1]))
    assert open_dataset(writer(str(tmp_path), files), OPTIONS).aspects() == [0.75, 1.5]


def test_aspects_of_synthetic_and_unreadable_images(tmp_path: Path) -> None:
    assert open_dataset("synthetic", PairOptions(synthetic_pairs=20)).aspects() == [1.0, 1.0]
    _, matte = encoded_people(1)["p/00"]
    root = write_raw(str(tmp_path), {f"p/{number:02d}": (b"no image", matte) for number in range(20)})
    assert open_dataset(root, OPTIONS).aspects() == []
    slivers = {f"p/{number:02d}": (images.encode_png(np.zeros((5000, 1, 3), np.uint8)), matte) for number in range(20)}
    assert open_dataset(write_raw(str(tmp_path / "slivers"), slivers), OPTIONS).aspects() == [0.0002, 0.0002]


def test_unknown_aspects_are_left_out() -> None:
    table = pa.table({"width": pa.array([3, None, -3, 0, 4]), "height": pa.array([4, 4, 4, 0, 0])})
    assert PackedRows(table).aspects() == [0.75, 0, -0.75, 0, 0]
    assert PairDataset({"train": PackedRows(table)}, {}, (), "").aspects() == [0.75, 0.75]


# Several datasets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", PAIR_WRITERS)
def test_keys_of_joined_datasets_have_prefixes(tmp_path: Path, writer: PairWriter) -> None:
    files = encoded_people(20)
    first, second = writer(f"{tmp_path}/first", files), writer(f"{tmp_path}/second", encoded_people(12))
    alone = open_dataset(first, OPTIONS)
    together = open_dataset(f"{second}/, {first}", OPTIONS)
    for split in SPLITS:
        assert together.keys[split] == sorted(together.keys[split])
        of_first = [key for key in together.keys[split] if key.startswith("first/")]
        assert of_first == [f"first/{key}" for key in alone.keys[split]]
    assert sum(together.counts().values()) == 32
    found = examples_by_key(together)
    for key, example in examples_by_key(alone).items():
        assert_same_example(found[f"first/{key}"], Example(f"first/{key}", example.image, example.alpha))


def test_unpaired_files_of_joined_datasets_have_prefixes(tmp_path: Path) -> None:
    uris = [write_raw(f"{tmp_path}/{name}", encoded_people(2)) for name in ("first", "second")]
    store.write_bytes(f"{uris[1]}/images/lonely.jpg", b"")
    pairs = open_dataset(",".join(uris), PairOptions(max_unpaired_fraction=0.5))
    assert pairs.unpaired == (("second/images/lonely.jpg", "has no matte; looked for mattes/lonely.png"),)


def test_datasets_of_the_same_name_are_refused(tmp_path: Path) -> None:
    uris = [write_raw(f"{tmp_path}/{folder}/faces", encoded_people(2)) for folder in "ab"]
    with pytest.raises(DataError, match="the same last part"):
        open_dataset(",".join(uris), OPTIONS)


def test_mixing_raw_and_packed_is_refused(tmp_path: Path) -> None:
    uris = [writer(f"{tmp_path}/{writer.__name__}", encoded_people(2)) for writer in PAIR_WRITERS]
    with pytest.raises(DataError, match="mixes raw and packed"):
        open_dataset(",".join(uris), OPTIONS)


@pytest.mark.parametrize("data", ["", " , "])
def test_empty_data_option_is_refused(data: str) -> None:
    with pytest.raises(DataError, match="--data is empty"):
        open_dataset(data, OPTIONS)


# The fingerprint ------------------------------------------------------------------------------------------------------


def test_fingerprint_changes_with_names_and_sizes(tmp_path: Path) -> None:
    files = encoded_people(3)
    image, matte = files["p/00"]
    renamed = {"p/0" if name == "p/00" else name: pair for name, pair in files.items()}
    variants = [files, {**files, "p/00": (image + b"!", matte)}, {**files, "p/00": (image, matte + b"!")}, renamed]
    uris = [write_raw(f"{tmp_path}/{number}", changed) for number, changed in enumerate(variants)]
    fingerprints = [open_dataset(uri, OPTIONS).fingerprint for uri in uris]
    assert all(one != other for one, other in combinations(fingerprints, 2))
    assert open_dataset(write_raw(f"{tmp_path}/again", files), OPTIONS).fingerprint == fingerprints[0]
    assert open_dataset(f"{uris[0]},{uris[1]}", OPTIONS).fingerprint not in fingerprints


def test_packed_fingerprint_changes_with_parts(tmp_path: Path) -> None:
    root = write_packed(str(tmp_path), encoded_people(3))
    before = open_dataset(root, OPTIONS).fingerprint
    description = json.loads((tmp_path / shards.DESCRIPTION).read_text())
    description["parts"][0]["sha256"] = "another"
    (tmp_path / shards.DESCRIPTION).write_text(json.dumps(description))
    assert open_dataset(root, OPTIONS).fingerprint != before


# Synthetic people -----------------------------------------------------------------------------------------------------


def test_synthetic_people_are_reproducible() -> None:
    first, again = (open_dataset("synthetic", OPTIONS) for _ in range(2))
    assert first.keys == again.keys
    assert first.fingerprint == again.fingerprint
    everything = examples_by_key(first, 32)
    assert len(everything) == sum(first.counts().values()) == 50
    assert all(first.counts().values())
    for key, example in examples_by_key(again, 32).items():
        assert_same_example(example, everything[key])
    other = open_dataset("synthetic", PairOptions(synthetic_pairs=50, split_seed=1))
    assert other.keys != first.keys
    assert other.fingerprint != first.fingerprint


def test_more_synthetic_people_keep_their_splits() -> None:
    few, many = (open_dataset("synthetic", PairOptions(synthetic_pairs=count)) for count in (20, 60))
    for split in SPLITS:
        assert set(few.keys[split]) <= set(many.keys[split])
    assert few.fingerprint != many.fingerprint
