"""pairs: every layout finds its dataset's pairs, and every file that does not pair has a reason."""

import uuid
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matting.data.images import IMAGE_SUFFIXES
from matting.data.pairs import LAYOUTS, Pair, PairsError, RawPairOptions, find_pairs, split_of
from matting.data.sources.tables import TableError
from matting.storage import store
from matting.storage.errors import StorageError
from matting.storage.uri import join_uri
from tests.support.paths import SHARED

SHARED_PAIRS = SHARED / "data" / "pairs"
ALLOW_ALL = RawPairOptions(max_unpaired_fraction=1)


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "data")


def fill(root: str, *keys: str) -> None:
    for key in keys:
        store.write_bytes(join_uri(root, key), b"")


def names(pairing) -> list[tuple[str, str]]:
    """Return (image, matte) of each pair, as paths below the root."""
    return [(pair.key, pair.matte_uri.removeprefix(pair.image_uri.removesuffix(pair.key))) for pair in pairing.pairs]


def test_aisegment_keeps_a_clip_in_one_split(root):
    clips = [("1803151818", "00000000"), ("1803151818", "00000001"), ("1803201916", "00000000")]
    for person, clip in clips:
        for frame in range(4):
            name = f"{person}-{frame:08}"
            fill(root, f"clip_img/{person}/clip_{clip}/{name}.jpg", f"matting/{person}/matting_{clip}/{name}.png")
    fill(root, "clip_img/1803151818/clip_00000000/._1803151818-00000000.jpg", "clip_img/._1803151818", "README.txt")

    pairing = find_pairs(root)
    assert pairing.layout == "aisegment"
    assert pairing.unpaired == ()
    assert len(pairing.pairs) == 12
    assert pairing.pairs[0] == Pair(
        key="clip_img/1803151818/clip_00000000/1803151818-00000000.jpg",
        image_uri=f"{root}/clip_img/1803151818/clip_00000000/1803151818-00000000.jpg",
        matte_uri=f"{root}/matting/1803151818/matting_00000000/1803151818-00000000.png",
        split=split_of("1803151818/00000000", 0),
    )
    assert {(pair.key.split("/")[1], pair.key.split("/")[2][5:], pair.split) for pair in pairing.pairs} == {
        (person, clip, split_of(f"{person}/{clip}", 0)) for person, clip in clips
    }


def test_aisegment_does_not_pair_across_clips(root):
    fill(
        root,
        "clip_img/1/clip_0/a.jpg",
        "matting/1/matting_0/a.png",
        "clip_img/1/clip_1/b.jpg",
        "matting/1/matting_2/b.png",
    )
    pairing = find_pairs(root, ALLOW_ALL)
    assert [pair.key for pair in pairing.pairs] == ["clip_img/1/clip_0/a.jpg"]
    assert pairing.unpaired == (
        ("clip_img/1/clip_1/b.jpg", "has no matte; looked for matting/1/matting_1/b.png"),
        ("matting/1/matting_2/b.png", "has no image of its name in clip_img/"),
    )


def test_p3m_has_its_own_split(root):
    fill(root, "train/blurred_image/p_1.jpg", "train/mask/p_1.png", "train/fg/p_1.png", "train/bg/p_1.png")
    fill(root, "validation/P3M-500-P/blurred_image/p_2.jpg", "validation/P3M-500-P/mask/p_2.png")
    fill(root, "validation/P3M-500-P/trimap/p_2.png")
    fill(root, "validation/P3M-500-NP/original_image/p_3.jpg", "validation/P3M-500-NP/mask/p_3.png")
    pairing = find_pairs(root)
    assert pairing.layout == "p3m"
    assert [(pair.key, pair.split) for pair in pairing.pairs] == [
        ("train/blurred_image/p_1.jpg", "train"),
        ("validation/P3M-500-NP/original_image/p_3.jpg", "test"),
        ("validation/P3M-500-P/blurred_image/p_2.jpg", "val"),
    ]
    assert pairing.pairs[1].matte_uri == f"{root}/validation/P3M-500-NP/mask/p_3.png"


def test_ppm_pairs_by_name(root):
    fill(root, "image/1.jpg", "matte/1.png", "image/2.jpg", "matte/2.jpg", "benchmark.csv")
    pairing = find_pairs(root)
    assert pairing.layout == "ppm"
    assert names(pairing) == [("image/1.jpg", "matte/1.png"), ("image/2.jpg", "matte/2.jpg")]


def test_folders_pair_by_path_and_name(root):
    fill(root, "images/b/1.JPG", "images/a/1.jpeg", "images/a/photo.v2.webp", "images/é #1%20?.png")
    fill(root, "mattes/a/1.png", "mattes/b/1.PNG", "mattes/a/photo.v2.png", "mattes/é #1%20?.png")
    fill(root, "images/.DS_Store", "images/a/._1.jpeg", "mattes/.cache/1.png", "LICENSE", "images.txt", "masks/x.png")
    pairing = find_pairs(root)
    assert pairing.layout == "folders"
    assert pairing.unpaired == ()
    assert names(pairing) == [
        ("images/a/1.jpeg", "mattes/a/1.png"),
        ("images/a/photo.v2.webp", "mattes/a/photo.v2.png"),
        ("images/b/1.JPG", "mattes/b/1.PNG"),
        ("images/é #1%20?.png", "mattes/é #1%20?.png"),
    ]


def test_unpaired_files_have_reasons(root):
    fill(root, "images/fine.jpg", "mattes/fine.png")
    fill(root, "images/a/lonely.jpg", "mattes/spare.png", "images/photo.raw", "images/notes")
    fill(
        root,
        "images/twin.jpg",
        "images/twin.png",
        "mattes/twin.png",
        "images/one.jpg",
        "mattes/one.jpg",
        "mattes/one.png",
    )
    pairing = find_pairs(root, ALLOW_ALL)
    assert [pair.key for pair in pairing.pairs] == ["images/fine.jpg"]
    suffix = f"is not an image by its suffix; expected .{', .'.join(IMAGE_SUFFIXES)}"
    one = "is ambiguous: images/one.jpg could go with mattes/one.jpg, mattes/one.png"
    twin = "is ambiguous: images/twin.jpg, images/twin.png could go with mattes/twin.png"
    assert pairing.unpaired == (
        ("images/a/lonely.jpg", "has no matte; looked for mattes/a/lonely.png"),
        ("images/notes", suffix),
        ("images/one.jpg", one),
        ("images/photo.raw", suffix),
        ("images/twin.jpg", twin),
        ("images/twin.png", twin),
        ("mattes/one.jpg", one),
        ("mattes/one.png", one),
        ("mattes/spare.png", "has no image of its name in images/"),
        ("mattes/twin.png", twin),
    )


def test_too_many_unpaired_files_are_an_error(root):
    fill(root, *(f"images/{n}.jpg" for n in range(100)), *(f"mattes/{n}.png" for n in range(99)))
    assert len(find_pairs(root, RawPairOptions(max_unpaired_fraction=0.01)).pairs) == 99
    with pytest.raises(PairsError) as caught:
        find_pairs(root, RawPairOptions(max_unpaired_fraction=0.005))
    assert "99 pairs, and 1 files that do not pair (1.0%, more than the 0.5%" in str(caught.value)
    assert "'images/99.jpg' has no matte; looked for mattes/99.png" in str(caught.value)
    assert "raise --max-unpaired-fraction" in str(caught.value)


def test_no_pairs_are_always_an_error(root):
    fill(root, "images/a.jpg", "mattes/b.png")
    with pytest.raises(PairsError, match=r"holds no pairs of the layout folders; 2 files did not pair: 'images/a.jpg'"):
        find_pairs(root, ALLOW_ALL)


def test_unknown_folders_are_an_error(root):
    fill(root, "photos/a.jpg", "masks/a.png")
    with pytest.raises(PairsError) as caught:
        find_pairs(root)
    assert "Its folders: masks/; photos/." in str(caught.value)
    for expected in (
        "clip_img/ + matting/",
        "train/mask/",
        "image/ + matte/",
        "images/ + mattes/",
        "manifest",
        "--layout",
    ):
        assert expected in str(caught.value)


def test_ambiguous_layout_can_be_forced(root):
    fill(root, "images/a.jpg", "mattes/a.png", "image/b.jpg", "matte/b.png")
    with pytest.raises(PairsError, match="fits more than one layout: ppm, folders"):
        find_pairs(root)
    assert names(find_pairs(root, RawPairOptions(layout="ppm"))) == [("image/b.jpg", "matte/b.png")]
    with pytest.raises(PairsError, match=f"no layout 'coco'; choose one of auto, {', '.join(LAYOUTS)}"):
        find_pairs(root, RawPairOptions(layout="coco"))


def test_missing_dataset_is_a_storage_error(root):
    with pytest.raises(StorageError, match="does not exist"):
        find_pairs(root)


def test_pairs_are_found_in_a_bucket(bucket):
    fill(f"{bucket}/my data", "images/a b/1#.jpg", "mattes/a b/1#.png")
    (pair,) = find_pairs(f"{bucket}/my data/").pairs
    assert pair.key == "images/a b/1#.jpg"
    assert store.exists(pair.image_uri)
    assert store.exists(pair.matte_uri)


# Manifests


def manifest(root: str, columns: dict[str, list], name: str = "pairs.csv") -> str:
    """Write a manifest and return its URI."""
    sink = pa.BufferOutputStream()
    write = pa.csv.write_csv if name.lower().endswith(".csv") else pa.parquet.write_table
    write(pa.table(columns), sink)
    uri = join_uri(root, name)
    store.write_bytes(uri, sink.getvalue().to_pybytes())
    return uri


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.parquet", "lists/Pairs.CSV"])
def test_manifest_uris_are_relative_or_absolute(root, name):
    columns = {
        "image": ["photos/a.jpg", "s3://bucket/b c.jpg", "/elsewhere/d.jpg"],
        "matte": ["masks/a.png", "s3://bucket/b c.png", "masks/d.png"],
    }
    uri = manifest(root, columns, name)
    folder = uri.rpartition("/")[0]
    pairing = find_pairs(uri)
    assert pairing.layout == "manifest"
    assert [(pair.key, pair.image_uri, pair.matte_uri) for pair in pairing.pairs] == [
        ("bucket/b c.jpg", "s3://bucket/b c.jpg", "s3://bucket/b c.png"),
        ("elsewhere/d.jpg", "/elsewhere/d.jpg", f"{folder}/masks/d.png"),
        ("photos/a.jpg", f"{folder}/photos/a.jpg", f"{folder}/masks/a.png"),
    ]


def test_manifest_sets_key_split_and_group(root):
    columns = {
        "image": ["a.jpg", "b.jpg", "c.jpg", "d.jpg"],
        "matte": ["m.png", "m.png", "m.png", "m.png"],
        "key": ["007", "", "x/y", "z"],
        "split": ["test", "", "", "train"],
        "group": ["", "anna", "anna", "anna"],
    }
    for name in ("pairs.csv", "pairs.parquet"):
        pairing = find_pairs(manifest(root, columns, name), RawPairOptions(split_seed=3))
        assert [(pair.key, pair.split) for pair in pairing.pairs] == [
            ("007", "test"),
            ("b.jpg", split_of("anna", 3)),
            ("x/y", split_of("anna", 3)),
            ("z", "train"),
        ]


def test_incomplete_manifest_rows_are_unpaired(root):
    uri = manifest(root, {"image": ["a.jpg", "b.jpg", ""], "matte": ["a.png", "", "c.png"]})
    pairing = find_pairs(uri, ALLOW_ALL)
    assert [pair.key for pair in pairing.pairs] == ["a.jpg"]
    assert pairing.unpaired == (("b.jpg", "has no matte in the manifest"), ("row 3", "has no image"))


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"image": ["a"], "mask": ["b"]}, "lacks the columns matte; expected image, matte"),
        ({"image": ["a", "a"], "matte": ["b", "c"]}, "more than one row for a;"),
        ({"image": ["a"], "matte": ["b"], "split": ["valid"]}, "the split 'valid'; expected one of train, val, test"),
        ({"image": ["x/../a"], "matte": ["b"]}, "the key 'x/../a'; give it a relative one"),
        ({"image": ["a"], "matte": ["b"], "key": ["/a"]}, "the key '/a'; give it a relative one"),
        ({"image": [], "matte": []}, "holds no pairs"),
    ],
)
def test_malformed_manifest_is_refused(root, columns, complaint):
    with pytest.raises((PairsError, TableError), match=complaint):
        find_pairs(manifest(root, columns))


def test_manifest_that_is_no_table_is_refused(root):
    for name, reason in {"pairs.parquet": "cannot be read as Parquet", "pairs.csv": "is empty"}.items():
        store.write_bytes(f"{root}/{name}", b"")
        with pytest.raises(TableError, match=reason):
            find_pairs(f"{root}/{name}")
    fill(root, "images/a.jpg", "mattes/a.png")
    with pytest.raises(TableError, match=r"is no table; expected a file, or a folder of parts, \.parquet, "):
        find_pairs(root, RawPairOptions(layout="manifest"))


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())], ids=str)
def test_manifest_may_have_other_columns_and_types(root, kind):
    columns = {"image": pa.array(["a.jpg"]).cast(kind), "matte": pa.array(["a.png"]).cast(kind)}
    others = {"thumbnail": [b"\xff"], "box": [[1, 2]], "split": pa.array(["val"]).cast(kind)}
    assert find_pairs(manifest(root, columns | others, "pairs.parquet")).pairs == (
        Pair("a.jpg", f"{root}/a.jpg", f"{root}/a.png", "val"),
    )
    with pytest.raises(TableError, match="has bytes in its column image; expected URIs"):
        find_pairs(manifest(root, columns | {"image": [b"\xff"]}, "pairs.parquet"))


def test_manifest_may_be_a_folder_of_parts(root):
    manifest(root, {"image": ["a.jpg"], "matte": ["a.png"], "split": ["val"]}, "pairs.parquet/part-0.parquet")
    manifest(root, {"image": ["b.jpg"], "matte": ["b.png"], "more": [1]}, "pairs.parquet/part-1.parquet")
    fill(root, "pairs.parquet/_SUCCESS")
    for uri in (f"{root}/pairs.parquet", f"{root}/pairs.parquet/"):
        pairs = find_pairs(uri).pairs
        assert [(pair.key, pair.image_uri) for pair in pairs] == [
            ("a.jpg", f"{root}/a.jpg"),
            ("b.jpg", f"{root}/b.jpg"),
        ]
        assert [pair.split for pair in pairs] == ["val", split_of("b.jpg", 0)]
    manifest(root, {"image": ["c.jpg"]}, "pairs.parquet/part-2.parquet")
    with pytest.raises(TableError, match=r"part-2\.parquet lacks the columns matte"):
        find_pairs(f"{root}/pairs.parquet")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pairs.csv", "image;matte\r\nx/a.jpg;../m/a, 1.png\r\n"),
        ("pairs.tsv", "matte\timage\tnote\n ../m/a, 1.png\tx/a.jpg\t\n"),
        ("pairs.txt", "image|matte\nx/a.jpg|../m/a, 1.png\n"),
        ("pairs.jsonl", '{"image": "x/a.jpg", "matte": "../m/a, 1.png", "box": [1]}\n'),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_manifest_may_be_in_any_dialect(root, name, text, encoding):
    store.write_bytes(f"{root}/lists/{name}", text.encode(encoding))
    assert find_pairs(f"{root}/lists/{name}").pairs == (
        Pair("x/a.jpg", f"{root}/lists/x/a.jpg", f"{root}/m/a, 1.png", split_of("x/a.jpg", 0)),
    )


def test_manifest_without_header_is_refused(root):
    store.write_bytes(f"{root}/pairs.csv", b"x/a.jpg,m/a.png\nx/b.jpg,m/b.png\n")
    with pytest.raises(
        TableError, match=r"has no header: its first row is x/a\.jpg, m/a\.png\. Expected .*image,matte"
    ):
        find_pairs(f"{root}/pairs.csv")


# Splits


def test_split_is_the_sha256_of_seed_and_group():
    # `printf 0/a.jpg | sha256sum`: the first 16 hexadecimal digits are a number whose last decimal digit is 2.
    last_digit = {
        "a.jpg": 2,
        "b.jpg": 8,
        "c.jpg": 8,
        "d.jpg": 5,
        "g.jpg": 7,
        "1803151818/00000000": 4,
        "é": 0,
        "11.jpg": 9,
    }
    for group, digit in last_digit.items():
        assert split_of(group, 0) == {8: "val", 9: "test"}.get(digit, "train")


def test_split_is_80_10_10_and_varies_with_the_seed():
    groups = [f"images/{number:06}.jpg" for number in range(20_000)]
    counts = Counter(split_of(group, 0) for group in groups)
    # The standard deviation of a count is 57 at 80 % and 42 at 10 %.
    assert abs(counts["train"] - 16_000) < 230
    assert abs(counts["val"] - 2_000) < 170
    assert abs(counts["test"] - 2_000) < 170
    moved = sum(split_of(group, 0) != split_of(group, 1) for group in groups[:2000])
    assert 500 < moved < 860  # of two independent splits 34 % differ


@given(st.sets(st.sampled_from([f"{n}" for n in range(30)]), min_size=1), st.integers(0, 5))
def test_split_does_not_depend_on_other_pairs(others, seed):
    root = f"memory://{uuid.uuid4().hex}"
    fill(root, *(f"images/{name}.jpg" for name in others), *(f"mattes/{name}.png" for name in others))
    for pair in find_pairs(root, RawPairOptions(split_seed=seed)).pairs:
        assert pair.split == split_of(pair.key, seed)


@pytest.mark.skipif(not SHARED_PAIRS.exists(), reason="needs ../shared")
@pytest.mark.parametrize(
    ("name", "layout", "count"),
    [
        ("aisegment", "aisegment", 50),
        ("portraits", "folders", 510),
        ("celebamask", "folders", 830),
        ("street", "folders", 350),
    ],
)
def test_real_datasets_pair_completely(name, layout, count):
    pairing = find_pairs(str(SHARED_PAIRS / name))
    assert (pairing.layout, len(pairing.pairs), pairing.unpaired) == (layout, count, ())
    assert all(Path(pair.image_uri).stem == Path(pair.matte_uri).stem for pair in pairing.pairs)
