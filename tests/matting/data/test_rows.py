"""rows: a bad pair has a reason and affects no other pair, and pairs are fetched a fixed number ahead."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from matting.data import images
from matting.data.dataset import PairOptions, open_dataset
from matting.data.images import BadImage
from matting.data.rows import FETCHES, Example, RawRows, check_same_aspect, decode_pair
from matting.storage import store
from tests.support import pairs
from tests.support.stores import GatedFileSystem


@pytest.mark.parametrize("writer", pairs.PAIR_WRITERS)
def test_bad_pair_has_a_reason_and_affects_no_other(tmp_path: Path, writer: pairs.PairWriter) -> None:
    good = pairs.encoded_people(4)
    image, matte = good["p/00"]
    wide = images.encode_png(np.zeros((10, 90), np.uint8))
    dot = images.encode_png(np.zeros((1, 1), np.uint8))
    bad = {
        "truncated": (image[: len(image) // 2], matte),
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
        "other": "image is 24×32, matte 90×10: their aspect ratios differ",
        "dot": "image: 1×1 pixels",
    }
    found = pairs.examples_by_key(open_dataset(writer(str(tmp_path), {**good, **bad}), PairOptions()), 16)
    assert len(found) == 10
    for name, reason in reasons.items():
        example = found[pairs.key_of(name)]
        assert example.error.startswith(reason)
        assert example.image is example.alpha is None
    for name, files in good.items():
        expected = decode_pair(*files)[:2]
        pairs.assert_same_example(
            found[pairs.key_of(name)], Example(pairs.key_of(name), *(images.resize(part, 16, 16) for part in expected))
        )


def test_unreadable_file_makes_a_bad_pair(tmp_path: Path) -> None:
    root = pairs.write_raw(str(tmp_path), pairs.encoded_people(3))
    opened = open_dataset(root, PairOptions())
    store.delete(f"{root}/mattes/p/01.png")
    found = pairs.examples_by_key(opened)
    assert {key for key, example in found.items() if example.error} == {pairs.key_of("p/01")}
    assert f"Cannot read {root}/mattes/p/01.png" in found[pairs.key_of("p/01")].error


def test_damage_that_left_all_pixels_is_a_warning(tmp_path: Path) -> None:
    image, matte = pairs.encoded_people(1)["p/00"]
    files = {"whole": (image, matte), "image": (image[:-2], matte)}
    found = pairs.examples_by_key(open_dataset(pairs.write_raw(str(tmp_path), files), PairOptions()))
    assert {key: example.warning.partition(":")[0] for key, example in found.items()} == {
        pairs.key_of("whole"): "",
        pairs.key_of("image"): "image",
    }


def test_raw_pairs_are_fetched_a_fixed_number_ahead(gated: type[GatedFileSystem]) -> None:
    count = 4 * FETCHES
    root = pairs.write_raw("gated://pairs", {f"{number:03}": (b"photo", b"matte") for number in range(count)})
    uris = {"image_uri": [f"{root}/{pairs.key_of(f'{number:03}')}" for number in range(count)]}
    uris["matte_uri"] = [f"{root}/mattes/{number:03}.png" for number in range(count)]
    rows = RawRows(pa.table({"key": [f"{number:03}" for number in range(count)], **uris}))
    gated.begun = 0
    gated.gate.set()
    with closing(rows.fetch()) as fetching:
        assert next(fetching) == ("000", (b"photo", b"matte"))
    assert gated.begun <= 2 * (FETCHES + 1)


@pytest.mark.parametrize(
    "matte", [(800, 600), (400, 300), (401, 300), (400, 301), (1600, 1200), (133, 100), (804, 600)]
)
def test_matte_of_the_same_aspect_is_accepted(matte: tuple[int, int]) -> None:
    check_same_aspect(np.zeros((800, 600, 3), np.uint8), np.zeros(matte, np.uint8))


@pytest.mark.parametrize("matte", [(512, 512), (600, 800), (810, 600), (408, 300)])
def test_matte_of_another_aspect_is_refused(matte: tuple[int, int]) -> None:
    with pytest.raises(BadImage, match=f"image is 600×800, matte {matte[1]}×{matte[0]}: their aspect ratios differ"):
        check_same_aspect(np.zeros((800, 600, 3), np.uint8), np.zeros(matte, np.uint8))
