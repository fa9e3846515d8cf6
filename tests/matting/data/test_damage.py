"""images: files that lack an end or have a wrong checksum are read if every row is there, and flagged."""

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from matting.data import images
from matting.data.images import BadImage

ROWS, COLUMNS = np.mgrid[:200, :300]
SCENE_HWC = np.stack([COLUMNS * 255 // 299, ROWS * 255 // 199, (ROWS + COLUMNS) % 256], -1).astype(np.uint8)
END = "its end is missing; all pixels are there"
LAST_ROWS = "its last bytes are missing; blocks in its last rows of pixels are filled in"
PROGRESSIVE = [{"progressive": False}, {"progressive": True}]


def encoded(format: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = BytesIO()
    (image or Image.fromarray(SCENE_HWC)).save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("side", [None, 60])
@pytest.mark.parametrize("options", PROGRESSIVE)
def test_jpeg_without_its_end_is_read(options: dict[str, bool], side: int | None) -> None:
    data = encoded("JPEG", quality=90, **options)
    whole = images.decode_photo(data, side)
    assert whole.warning is None
    for damaged in (data[:-1], data[:-2], data[:-2] + bytes(5000)):  # the last as a download leaves it
        photo = images.decode_photo(damaged, side)
        np.testing.assert_array_equal(photo.image_HWC, whole.image_HWC)
        assert (photo.width, photo.height, photo.warning) == (300, 200, END)


@pytest.mark.parametrize("options", PROGRESSIVE)
def test_jpeg_without_its_last_bytes_differs_in_its_last_rows_only(options: dict[str, bool]) -> None:
    data = encoded("JPEG", quality=90, **options)
    whole_HWC = images.decode_image(data)
    photo = images.decode_photo(data[:-12])
    differing = np.flatnonzero((photo.image_HWC != whole_HWC).any(axis=(1, 2)))
    assert photo.warning == LAST_ROWS
    assert len(differing)
    assert differing[0] >= 192 - 2  # blocks of 16 rows, and two rows of upsampled colour


@pytest.mark.parametrize("options", PROGRESSIVE)
@pytest.mark.parametrize("kept", [0.9, 0.7, 0.5, 0.1])
def test_jpeg_that_lacks_rows_is_refused(options: dict[str, bool], kept: float) -> None:
    data = encoded("JPEG", quality=90, **options)
    for damaged in (data[: int(kept * len(data))], data[: int(kept * len(data))] + bytes(10_000)):
        with pytest.raises(BadImage, match="truncated JPEG"):
            images.decode_photo(damaged)


def test_progressive_jpeg_that_ends_between_scans_is_refused() -> None:
    data = encoded("JPEG", quality=90, progressive=True)
    scans = [start for start in range(len(data)) if data[start : start + 2] == b"\xff\xda"]
    assert len(scans) > 3
    for start in scans[1:]:
        with pytest.raises(BadImage, match="truncated JPEG"):
            images.decode_photo(data[:start])


def test_zeros_behind_a_jpeg_are_ignored() -> None:
    data = encoded("JPEG")
    photo = images.decode_photo(data + bytes(5000))
    np.testing.assert_array_equal(photo.image_HWC, images.decode_image(data))
    assert photo.warning is None


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_png_without_its_end_is_read(mode: str) -> None:
    image = Image.fromarray(SCENE_HWC)
    image = Image.fromarray(SCENE_HWC[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    data = encoded("PNG", image)
    whole = images.decode_photo(data)
    assert whole.warning is None
    for cut in (1, 4, 8, 12, 13, 16, 20):  # 12 are the end, 4 the checksum of the pixels, 4 that of their compression
        photo = images.decode_photo(data[:-cut])
        np.testing.assert_array_equal(photo.image_HWC, whole.image_HWC)
        assert photo.warning == END
    for cut in (len(data) // 10 + 30, len(data) // 2):
        with pytest.raises(BadImage, match="truncated PNG"):
            images.decode_photo(data[:-cut])


def test_interlaced_png_without_its_end_is_read() -> None:
    values_HWC = SCENE_HWC[:11, :13]
    rows = b""
    for x, y, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        rows += b"".join(b"\0" + row.tobytes() for row in values_HWC[y::dy, x::dx])
    header = struct.pack(">IIBBBBB", 13, 11, 8, 2, 0, 0, 1)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    np.testing.assert_array_equal(images.decode_image(data), values_HWC)
    photo = images.decode_photo(data[:-14])
    np.testing.assert_array_equal(photo.image_HWC, values_HWC)
    assert photo.warning == END


def with_wrong_byte(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def test_png_with_a_wrong_checksum_of_a_text_is_read() -> None:
    info = PngInfo()
    info.add_text("Comment", "hello")
    data = encoded("PNG", pnginfo=info)
    photo = images.decode_photo(with_wrong_byte(data, data.index(b"hello")))
    np.testing.assert_array_equal(photo.image_HWC, SCENE_HWC)
    assert photo.warning == "wrong checksum in tEXt, which was left out"
    assert images.image_size(with_wrong_byte(data, data.index(b"hello"))) == (300, 200)


def test_png_with_a_wrong_checksum_of_its_end_is_read() -> None:
    data = encoded("PNG")
    photo = images.decode_photo(with_wrong_byte(data, len(data) - 1))
    np.testing.assert_array_equal(photo.image_HWC, SCENE_HWC)
    assert photo.warning == "wrong checksum in IEND, which was left out"


@pytest.mark.parametrize("name", [b"IHDR", b"IDAT"])
def test_png_with_wrong_pixels_is_refused(name: bytes) -> None:
    data = encoded("PNG", compress_level=0)  # stored: a wrong byte is a wrong pixel, and nothing else
    wrong = with_wrong_byte(data, data.index(name) + (7 if name == b"IHDR" else 1000))
    with pytest.raises(BadImage, match=f"damaged PNG: wrong checksum in {name.decode()}"):
        images.decode_photo(wrong)
    with pytest.raises(BadImage, match="wrong checksum"):
        images.decode_alpha(wrong)


@pytest.mark.parametrize("format", ["WEBP", "BMP", "TIFF", "AVIF"])
def test_other_formats_that_lack_bytes_are_refused(format: str) -> None:
    data = encoded(format)
    for cut in (5, 100, len(data) // 2):
        with pytest.raises(BadImage, match=f"(truncated|damaged) {format}"):
            images.decode_photo(data[:-cut])
