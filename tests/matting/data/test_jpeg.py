"""images: kinds of JPEG that are not read are named, and files that lack rows are refused though they have an end."""

import struct

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from matting.data import images
from matting.data.images import BadImage
from tests.matting.data.test_damage import PROGRESSIVE, SCENE_HWC, encoded

END = b"\xff\xd9"
SCANS_MISSING = "its last scans are missing, so it is less sharp than it was"


@pytest.mark.parametrize("side", [None, 60])
@pytest.mark.parametrize("kept", [0.9, 0.6, 0.3])
def test_jpeg_that_ends_before_its_last_rows_is_refused(kept: float, side: int | None) -> None:
    data = encoded("JPEG", quality=90)
    part = data[: int(kept * len(data))]
    for damaged in (part + END, part + END + data, part + b"\xff" * 5000, part + b"\xff" * 100 + bytes(5000)):
        with pytest.raises(BadImage, match="truncated JPEG: its last rows of pixels are missing"):
            images.decode_photo(damaged, side)


def test_jpeg_with_a_height_of_more_rows_than_it_holds_is_refused() -> None:
    data = bytearray(encoded("JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 7] = struct.pack(">H", 400)
    with pytest.raises(BadImage, match="its last rows of pixels are missing"):
        images.decode_photo(bytes(data))


def test_progressive_jpeg_with_an_end_and_without_its_last_scans_is_flagged() -> None:
    data = encoded("JPEG", quality=90, progressive=True)
    whole_HWC = images.decode_image(data).astype(int)
    scans = [start for start in range(len(data)) if data[start : start + 2] == b"\xff\xda"]
    for start in scans[1:]:
        photo = images.decode_photo(data[:start] + END)
        assert photo.warning == SCANS_MISSING
        assert np.abs(photo.image_HWC - whole_HWC).mean() < 8
    assert images.decode_photo(data).warning is None


@pytest.mark.parametrize("options", PROGRESSIVE)
@pytest.mark.parametrize("rows", [1, 40, 200])
def test_photo_whose_last_rows_are_of_one_color_is_whole(options: dict[str, bool], rows: int) -> None:
    image_HWC = SCENE_HWC.copy()
    image_HWC[-rows:] = 255
    for image in (Image.fromarray(image_HWC), Image.fromarray(image_HWC).convert("L")):
        photo = images.decode_photo(encoded("JPEG", image, quality=90, **options))
        assert photo.warning is None
        assert np.abs(photo.image_HWC.astype(int) - np.asarray(image.convert("RGB"))).mean() < 3


def test_jpeg_transferred_as_text_is_refused() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8))
    data = encoded("JPEG", noise, comment=b"lines\r\n" * 100)
    assert images.decode_photo(data).warning is None
    with pytest.raises(BadImage, match="transfer as text put a carriage return before each line feed"):
        images.decode_photo(data.replace(b"\n", b"\r\n"))


GREY_HW = SCENE_HWC[..., 0]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (imagecodecs.jpeg_encode(GREY_HW.astype(np.uint16) * 16, bitspersample=12), "a JPEG of 12 bits"),
        (imagecodecs.ljpeg_encode(GREY_HW.astype(np.uint16) * 257, bitspersample=16), "a JPEG of 16 bits"),
        (imagecodecs.jpegls_encode(GREY_HW), "JPEG-LS"),
        (imagecodecs.jpeg8_encode(np.ascontiguousarray(SCENE_HWC[..., :2])), "a JPEG of 2 channels"),
        (
            encoded("JPEG").replace(b"\xff\xc0\0\x11\x08\0\xc8", b"\xff\xc0\0\x11\x08\0\0"),
            "its height behind its pixels",
        ),
    ],
)
def test_kinds_that_are_not_read_are_named(data: bytes, kind: str) -> None:
    with pytest.raises(BadImage, match=f"{kind}, which is not read here; convert it to a JPEG of 8 bits in RGB"):
        images.decode_photo(data)


def test_lossless_jpeg_is_read() -> None:
    photo = images.decode_photo(imagecodecs.jpeg8_encode(SCENE_HWC, lossless=True))
    np.testing.assert_array_equal(photo.image_HWC, SCENE_HWC)
    assert photo.warning is None


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


@pytest.mark.parametrize(
    "bad", [segment(0xEE, b"Adobe"), segment(0xE2, b"ICC_PROFILE\0"), segment(0xED, b"Photoshop 3.0\0008BIM\x03\xed")]
)
def test_damaged_metadata_are_left_out(bad: bytes) -> None:
    data = encoded("JPEG")
    for place in (2, 20):  # before and behind JFIF's own segment
        photo = images.decode_photo(data[:place] + bad + data[place:])
        np.testing.assert_array_equal(photo.image_HWC, images.decode_image(data))
        assert photo.warning == "some of its metadata are damaged, and were left out"
