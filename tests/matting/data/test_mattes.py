"""mattes: a matte is read from its own file or from a table of jobs/predict.py, and from no other table."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile

from matting.data import images
from matting.data.images import BadImage
from matting.data.mattes import MatteReading, read_matte
from matting.storage.errors import NotFoundError, StorageError
from tests.matting.data.test_images import png

TABLE = pa.table(
    {
        "key": ["a.jpg", "b.jpg"],
        "etag": ["1", "2"],
        "alpha": pa.array([b"alpha", None], pa.binary()),
        "cutout": pa.array([None, b"cutout"], pa.binary()),
    }
)


def test_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "a.jpg.png").write_bytes(b"matte")
    assert read_matte("a.jpg", f"{tmp_path}/a.jpg.png", 5) == b"matte"
    with pytest.raises(StorageError):
        read_matte("a.jpg", f"{tmp_path}/a.jpg.png", 4)


def test_table_gives_the_matte_or_the_cutout(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "part.parquet", compression="none")
    assert read_matte("a.jpg", f"{tmp_path}/part.parquet", 1) == b"alpha"
    assert read_matte("b.jpg", f"{tmp_path}/part.parquet", 1) == b"cutout"
    with pytest.raises(NotFoundError, match=r"has no matte of 'c\.jpg'"):
        read_matte("c.jpg", f"{tmp_path}/part.parquet", 1)


def test_other_tables_are_refused(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "packed.parquet", compression="zstd")
    pq.write_table(TABLE.drop_columns("cutout"), tmp_path / "columns.parquet", compression="none")
    (tmp_path / "text.parquet").write_bytes(b"hello")
    for name, message in (("packed", "is no table"), ("columns", "cannot be read"), ("text", "cannot be read")):
        with pytest.raises(StorageError, match=message):
            read_matte("a.jpg", f"{tmp_path}/{name}.parquet", 1)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("matte_range", [None, 1, 3, 100, 255, 4095, 65535])
@pytest.mark.parametrize("invert", [False, True])
def test_stored_values_become_alphas(kind: type, matte_range: int | None, invert: bool) -> None:
    stored = np.arange(0, np.iinfo(kind).max + 1, 1 if kind is np.uint8 else 97, dtype=kind)[None]
    reading = MatteReading(matte_range, invert)
    opaque = matte_range or np.iinfo(kind).max
    assert reading.opaque(stored) == opaque
    expected = [min(int(value), opaque) / opaque * 255 for value in stored[0]]
    expected = [255 - value for value in expected] if invert else expected
    found = reading.alpha(stored)
    assert found.dtype == np.uint8
    assert np.abs(found[0] - np.array(expected)).max() <= 0.5


def test_plain_mattes_are_not_copied() -> None:
    matte = np.arange(256, dtype=np.uint8)[None]
    assert MatteReading().alpha(matte) is matte


# values of 16 bits in several channels, which Pillow cuts to their upper bytes ----------------------------------------

DEEP_HW = np.random.default_rng(0).integers(0, 65536, (24, 40), np.uint16)
OPAQUE_HW, BLACK_HW = np.full_like(DEEP_HW, 65535), np.zeros_like(DEEP_HW)
CHANNELS = {
    "RGB": (2, [DEEP_HW, DEEP_HW, DEEP_HW]),
    "opaque RGBA": (6, [DEEP_HW, DEEP_HW, DEEP_HW, OPAQUE_HW]),
    "RGBA": (6, [BLACK_HW, BLACK_HW, BLACK_HW, DEEP_HW]),
    "opaque LA": (4, [DEEP_HW, OPAQUE_HW]),
    "LA": (4, [BLACK_HW, DEEP_HW]),
}


def deep_tiff(*channels: np.ndarray, **options: object) -> bytes:
    values_HWC = np.dstack(channels)
    stored = np.moveaxis(values_HWC, 2, 0) if "planarconfig" in options else values_HWC
    extra = ["unassalpha"] if len(channels) == 4 else None
    buffer = BytesIO()
    tifffile.imwrite(buffer, stored, photometric="rgb", extrasamples=extra, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("name", CHANNELS)
def test_matte_of_several_channels_keeps_16_bits(name: str) -> None:
    color_type, channels = CHANNELS[name]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in np.dstack(channels))
    matte_HW = images.decode_matte(png(40, 24, 16, color_type, rows)).matte_HW
    assert matte_HW.dtype == np.uint16
    np.testing.assert_array_equal(matte_HW, DEEP_HW)
    if "RGB" not in name:
        return
    for order in "<>":
        for options in ({}, {"compression": "zlib"}, {"compression": "lzw", "predictor": True}, {"tile": (16, 16)}):
            data = deep_tiff(*channels, byteorder=order, **options)
            np.testing.assert_array_equal(images.decode_matte(data).matte_HW, DEEP_HW)


def test_matte_in_deep_planes_is_refused_by_name() -> None:
    data = deep_tiff(DEEP_HW, DEEP_HW, DEEP_HW, planarconfig="separate", compression="zlib")
    with pytest.raises(BadImage, match="several channels of 16 bits in planes; store it in grey"):
        images.decode_matte(data)


def test_deep_image_in_color_is_no_matte() -> None:
    with pytest.raises(BadImage, match="an image in colour, not a matte"):
        images.decode_matte(deep_tiff(DEEP_HW, BLACK_HW, DEEP_HW))
