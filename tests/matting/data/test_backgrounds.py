"""backgrounds: which photos are chosen, and which squares of them are decoded."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from matting.data import backgrounds, images
from matting.data.photo_tables import PhotosError


def write_photo(place: Path, width: int, height: int) -> np.ndarray:
    """Write a PNG of noise and return its pixels."""
    image_HWC = np.random.default_rng(width + height).integers(0, 256, (height, width, 3), np.uint8)
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(images.encode_png(image_HWC))
    return image_HWC


def test_centered_square_of_each_photo_is_decoded(tmp_path: Path) -> None:
    wide = write_photo(tmp_path / "rooms/wide.png", 50, 20)
    tall = write_photo(tmp_path / "streets/tall.png", 20, 31)
    taken, reasons = backgrounds.decode(backgrounds.choose(str(tmp_path), seed=0), 20)
    assert reasons == {}
    np.testing.assert_array_equal(taken, np.stack([wide[:, 15:35], tall[5:25]]))


def test_unusable_photos_are_listed_by_uri_and_row(tmp_path: Path) -> None:
    whole = write_photo(tmp_path / "photos/whole.png", 8, 8)
    (tmp_path / "photos/cut.png").write_bytes((tmp_path / "photos/whole.png").read_bytes()[:60])
    rows = backgrounds.choose(str(tmp_path / "photos"), seed=0)
    taken, reasons = backgrounds.decode(rows, 8)
    np.testing.assert_array_equal(taken, whole[None])
    assert list(reasons) == [str(tmp_path / "photos/cut.png")]
    table = pa.table({"key": ["a", "b"], "image": [(tmp_path / "photos/whole.png").read_bytes(), b"no photo"]})
    pq.write_table(table, tmp_path / "photos.parquet")
    taken, reasons = backgrounds.decode(backgrounds.choose(str(tmp_path / "photos.parquet"), seed=0), 8)
    np.testing.assert_array_equal(taken, whole[None])
    assert list(reasons) == [f"{tmp_path}/photos.parquet, row 1"]


def test_no_usable_photo_gives_an_empty_array(tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(b"")
    taken, reasons = backgrounds.decode(backgrounds.choose(str(tmp_path), seed=0), 8)
    assert taken.shape == (0, 8, 8, 3)
    assert len(reasons) == 1


def test_seed_chooses_among_many_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backgrounds, "MAX_BACKGROUNDS", 10)
    for number in range(40):
        (tmp_path / f"{number:02d}.jpg").touch()
    first, again, other = (backgrounds.choose(str(tmp_path), seed)["key"].to_pylist() for seed in (0, 0, 1))
    assert first == again == sorted(set(first))
    assert len(first) == 10
    assert first != other


def test_folder_without_photos_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(PhotosError, match="photo"):
        backgrounds.choose(str(tmp_path), seed=0)
