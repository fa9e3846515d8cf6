"""webdataset: the files of a sample pair by their fields, and every image file that does not has a reason."""

import pytest

from matting.data.dataset import PairOptions, open_dataset
from matting.data.pairs import PairsError, RawPairOptions, find_pairs
from matting.data.rows import decode_pair
from matting.data.sources.webdataset import pair_samples
from matting.storage import store
from tests.support.archives import tar_bytes
from tests.support.pairs import assert_same_example, encoded_people, examples_by_key, key_of, write_raw

ALLOW_ALL = RawPairOptions(max_unpaired_fraction=1)


@pytest.mark.parametrize(
    ("names", "image", "matte"),
    [
        (["a.jpg", "a.png"], "a.jpg", "a.png"),
        (["a.webp", "a.PNG", "a.json", "a.txt"], "a.webp", "a.PNG"),
        (["a.jpg", "a.matte.png"], "a.jpg", "a.matte.png"),
        (["a.png", "a.matte.png"], "a.png", "a.matte.png"),
        (["a.png", "a.Alpha.png"], "a.png", "a.Alpha.png"),
        (["a.jpg", "a.mask.jpg", "a.trimap.png", "a.fg.png"], "a.jpg", "a.mask.jpg"),
        (["a.image.jpg", "a.matte.jpg"], "a.image.jpg", "a.matte.jpg"),
        (["a.photo.jpg", "a.png"], "a.photo.jpg", "a.png"),
        (["a.image.png", "a.png"], "a.image.png", "a.png"),
        (["x.y/a.jpg", "x.y/a.png", "x.y/b.json"], "x.y/a.jpg", "x.y/a.png"),
        (["\u00e9.jpg", "e\u0301.png"], "\u00e9.jpg", "e\u0301.png"),
        ([".a.jpg", ".a.png"], None, None),
        (["a.jpg"], None, None),
        (["a.png"], None, None),
        (["a.matte.png"], None, None),
        (["a.jpg", "a.webp"], None, None),
        (["a.png", "a.png.png"], None, None),
        (["a.jpg", "a.png", "a.webp"], None, None),
        (["a.jpg", "a.matte.png", "a.alpha.png"], None, None),
        (["a.jpg", "a.png", "a.matte.png"], None, None),
        (["a.v2.jpg", "a.v2.png"], None, None),
        (["a.jpg", "b.png"], None, None),
        (["x/a.jpg", "y/a.png"], None, None),
    ],
)
def test_fields_of_a_sample(names, image, matte):
    pairs, unpaired = pair_samples(names)
    if image is None:
        assert pairs == []
        is_image = [name for name in names if not name.endswith((".json", ".txt"))]
        assert sorted(key for key, _ in unpaired) == sorted(is_image)
    else:
        assert (pairs, unpaired) == ([(image, matte)], [])


def write_shards(root: str) -> dict[str, tuple[bytes, bytes]]:
    """Write two shards of ten pairs; return the pairs by the keys of their images."""
    people = list(encoded_people(20).values())
    for shard in range(2):
        entries = []
        for number, (image, matte) in enumerate(people[shard * 10 : shard * 10 + 10]):
            matte_name = f"{number}.png" if shard else f"{number}.matte.png"
            entries += [(f"{number}.jpg", image), (f"{number}.json", b"{}"), (matte_name, matte)]
        store.write_bytes(f"{root}/train-{shard}.tar", tar_bytes(entries))
    return {f"train-{number // 10}.tar/{number % 10}.jpg": pair for number, pair in enumerate(people)}


def test_shards_are_a_dataset(root):
    files = write_shards(root)
    pairing = find_pairs(root)
    assert (pairing.layout, pairing.unpaired) == ("webdataset", ())
    assert [pair.key for pair in pairing.pairs] == sorted(files)
    dataset = open_dataset(root, PairOptions())
    for key, example in examples_by_key(dataset).items():
        image, alpha, *_ = decode_pair(*files[key])
        assert (example.error, example.image.tobytes(), example.alpha.tobytes()) == (
            "",
            image.tobytes(),
            alpha.tobytes(),
        )
    assert sorted(key for keys in dataset.keys.values() for key in keys) == sorted(files)
    assert dataset.aspects() == [0.75, 0.75]


def test_single_shard_is_a_dataset(tmp_path):
    write_shards(str(tmp_path))
    for uri in (f"{tmp_path}/train-1.tar", f"{tmp_path}/train-1.tar/"):
        pairs = find_pairs(uri).pairs
        assert [pair.key for pair in pairs] == [f"{number}.jpg" for number in range(10)]
    joined = open_dataset(f"{tmp_path}/train-0.tar,{tmp_path}/train-1.tar", PairOptions())
    assert joined.prefixes == ("train-0.tar/", "train-1.tar/")
    assert sum(joined.counts().values()) == 20


def test_archive_may_have_the_folders_of_any_layout(tmp_path):
    files = encoded_people(4)
    plain = open_dataset(write_raw(f"{tmp_path}/plain", files), PairOptions())
    entries = [
        entry
        for name, (image, matte) in files.items()
        for entry in ((f"./{key_of(name)}", image), (f"./mattes/{name}.png", matte))
    ]
    store.write_bytes(f"{tmp_path}/all.tar", tar_bytes(entries))
    packed = open_dataset(f"{tmp_path}/all.tar", PairOptions())
    assert packed.keys == plain.keys
    found = examples_by_key(packed)
    for key, example in examples_by_key(plain).items():
        assert_same_example(found[key], example)


def test_fingerprint_changes_with_the_shards(tmp_path):
    write_shards(str(tmp_path))
    before = find_pairs(str(tmp_path)).fingerprint
    assert find_pairs(str(tmp_path)).fingerprint == before
    image, matte = next(iter(encoded_people(1).values()))
    store.write_bytes(f"{tmp_path}/train-1.tar", tar_bytes([("9.jpg", image + b"!"), ("9.png", matte)]))
    assert find_pairs(str(tmp_path)).fingerprint != before


def test_unpaired_files_and_damage_have_reasons(tmp_path):
    image, matte = next(iter(encoded_people(1).values()))
    whole = tar_bytes([("a.jpg", image), ("a.png", matte), ("lonely.jpg", image), ("b.jpg", image), ("b.png", matte)])
    store.write_bytes(f"{tmp_path}/0.tar", whole[: whole.index(b"b.png") + 600])
    store.write_bytes(f"{tmp_path}/1.tar", tar_bytes([("c.jpg", image)], "w:gz"))
    pairing = find_pairs(str(tmp_path), ALLOW_ALL)
    assert [pair.key for pair in pairing.pairs] == ["0.tar/a.jpg"]
    reasons = dict(pairing.unpaired)
    assert "has no matte; looked for 0.tar/lonely.png" in reasons["0.tar/lonely.jpg"]
    assert "compressed" in reasons["1.tar"]
    assert {"0.tar", "0.tar/b.jpg"} <= reasons.keys()
    with pytest.raises(PairsError, match="files that do not pair"):
        find_pairs(str(tmp_path))


def test_archive_beside_a_layout_is_ignored(tmp_path):
    write_raw(str(tmp_path), encoded_people(2))
    store.write_bytes(f"{tmp_path}/backup.tar", tar_bytes([("images/x.jpg", b"")]))
    store.write_bytes(f"{tmp_path}/broken.tar", b"broken")
    pairing = find_pairs(str(tmp_path))
    assert (pairing.layout, len(pairing.pairs), pairing.unpaired) == ("folders", 2, ())


def test_folder_of_samples_is_read_if_asked_for(tmp_path):
    for name in ("a.jpg", "a.png", "b.jpg", "b.mask.png", ".hidden.jpg"):
        store.write_bytes(f"{tmp_path}/{name}", b"")
    with pytest.raises(PairsError, match="fits no layout"):
        find_pairs(str(tmp_path))
    pairs = find_pairs(str(tmp_path), RawPairOptions(layout="webdataset")).pairs
    assert [(pair.key, pair.matte_uri) for pair in pairs] == [
        ("a.jpg", f"{tmp_path}/a.png"),
        ("b.jpg", f"{tmp_path}/b.mask.png"),
    ]
