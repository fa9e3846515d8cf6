"""images: every container's EXIF orientation gives the same upright pixels, from bytes and from Pillow images."""

import struct
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from matting.data import images
from matting.data.images import Pixels

# 2 wide, 3 high, in blocks that survive JPEG; every rotation and flip changes every block.
BLOCKS_HWC = np.array(
    [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (128, 128, 128)], [(255, 255, 0), (0, 0, 0)]], np.uint8
)
UPRIGHT_HWC = np.kron(BLOCKS_HWC, np.ones((16, 16, 1), np.uint8))

# Pixels that a camera stores for each orientation.
STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
}


def exif(orientation: int, order: str = "<") -> bytes:
    """Return EXIF data with two tags: a camera's make and the orientation."""
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    make = struct.pack(f"{order}HHI4s", ExifTags.Base.Make, 2, 4, b"abc\0")
    tag = struct.pack(f"{order}HHIHHI", ExifTags.Base.Orientation, 3, 1, orientation, 0, 0)
    return b"Exif\0\0" + start + struct.pack(f"{order}H", 2) + make + tag


def photo(container: str, orientation: int, order: str = "<") -> bytes:
    """Encode the upright blocks as a camera stores them in this orientation."""
    is_tiff = container == "TIFF"
    tags = {"tiffinfo": {0x0112: orientation}} if is_tiff else {"exif": exif(orientation, order)}
    buffer = BytesIO()
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](UPRIGHT_HWC)))
    stored.save(buffer, container, **OPTIONS[container], **tags)
    return buffer.getvalue()


def from_pillow(image: Image.Image) -> Pixels:
    return images.to_rgb(images.upright(image))


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("container", OPTIONS)
def test_bytes_and_pillow_images_come_upright(container: str, orientation: int) -> None:
    data = photo(container, orientation)
    image_HWC = images.decode_image(data)
    assert image_HWC.shape == UPRIGHT_HWC.shape
    np.testing.assert_allclose(image_HWC[8::16, 8::16].astype(int), BLOCKS_HWC, atol=6)
    assert images.image_size(data) == (32, 48)
    np.testing.assert_array_equal(from_pillow(Image.open(BytesIO(data))), image_HWC)


@pytest.mark.parametrize("container", OPTIONS)
def test_loaded_and_converted_pillow_images_come_upright(container: str) -> None:
    data = photo(container, 6)
    image = Image.open(BytesIO(data))
    image.load()
    for other in (image, image.copy(), image.convert("RGB"), images.upright(image)):
        np.testing.assert_array_equal(from_pillow(other), images.decode_image(data))


@pytest.mark.parametrize("orientation", STORED)
def test_big_endian_exif_is_read(orientation: int) -> None:
    np.testing.assert_array_equal(images.decode_image(photo("PNG", orientation, ">")), UPRIGHT_HWC)


def test_upright_image_is_returned_as_it_is() -> None:
    image = Image.fromarray(UPRIGHT_HWC)
    assert images.upright(image) is image


def test_exif_after_the_pixels_of_a_png_is_read() -> None:
    chunks = photo("PNG", 6)
    start = chunks.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(chunks[start : start + 4])
    last = chunks.index(b"IEND") - 4
    data = chunks[:start] + chunks[end:last] + chunks[start:end] + chunks[last:]
    np.testing.assert_array_equal(images.decode_image(data), UPRIGHT_HWC)
    np.testing.assert_array_equal(from_pillow(Image.open(BytesIO(data))), UPRIGHT_HWC)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("block", [b"II", b"nonsense", exif(6)[:20], exif(9), b"II*\0\xff\xff\xff\xff", exif(6)[:-12]])
def test_damaged_exif_leaves_the_image_as_it_is(block: bytes) -> None:
    image = Image.fromarray(UPRIGHT_HWC)
    image.info["exif"] = block
    assert images.upright(image) is image
    buffer = BytesIO()
    image.save(buffer, "PNG", exif=block)
    np.testing.assert_array_equal(images.decode_image(buffer.getvalue()), UPRIGHT_HWC)
    assert images.image_size(buffer.getvalue()) == (32, 48)
