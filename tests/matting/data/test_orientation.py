"""images: every container's EXIF orientation gives the same upright pixels, from bytes and from Pillow images."""

import re
import struct
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from matting.data import images
from matting.data.decoding.orientation import upright
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
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}


def exif(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    """Return EXIF data with two tags: a camera's make and the orientation, as a number of this type."""
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    make = struct.pack(f"{order}HHI4s", ExifTags.Base.Make, 2, 4, b"abc\0")
    number = struct.pack(f"{order}{'BHI'[(1, 3, 4).index(kind)]}", orientation).ljust(4, b"\0")
    tag = struct.pack(f"{order}HHI4sI", ExifTags.Base.Orientation, kind, 1, number, 0)
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
    return images.from_pillow(image).image_HWC


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
    for other in (image, image.copy(), image.convert("RGB"), upright(image)):
        np.testing.assert_array_equal(from_pillow(other), images.decode_image(data))


@pytest.mark.parametrize("orientation", STORED)
def test_big_endian_exif_is_read(orientation: int) -> None:
    np.testing.assert_array_equal(images.decode_image(photo("PNG", orientation, ">")), UPRIGHT_HWC)


def test_upright_image_is_returned_as_it_is() -> None:
    image = Image.fromarray(UPRIGHT_HWC)
    assert upright(image) is image


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
    assert upright(image) is image
    buffer = BytesIO()
    image.save(buffer, "PNG", exif=block)
    np.testing.assert_array_equal(images.decode_image(buffer.getvalue()), UPRIGHT_HWC)
    assert images.image_size(buffer.getvalue()) == (32, 48)


# other ways to record it ----------------------------------------------------------------------------------------------

XMP_FORMS = [
    '<rdf:Description tiff:Orientation="{}"/>',
    "<rdf:Description tiff:Orientation = '{}' />",
    "<tiff:Orientation>{}</tiff:Orientation>",
    "<tiff:Orientation> {} </tiff:Orientation>",
]


def xmp(orientation: int, form: str = XMP_FORMS[0]) -> bytes:
    return f"<x:xmpmeta xmlns:tiff='http://ns.adobe.com/tiff/1.0/'>{form.format(orientation)}</x:xmpmeta>".encode()


def raw_profile(kind: str, content: bytes) -> PngInfo:
    """Return the text that ImageMagick writes: a name, the number of bytes, and hexadecimal digits in rows."""
    rows = re.sub("(.{72})", r"\1\n", content.hex())
    info = PngInfo()
    info.add_text(f"Raw profile type {kind}", f"\n{kind}\n{len(content):8}\n{rows}\n", zip=True)
    return info


def stored(orientation: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(STORED[orientation](UPRIGHT_HWC)))


def saved(orientation: int, container: str, **tags: Any) -> bytes:
    buffer = BytesIO()
    stored(orientation).save(buffer, container, **OPTIONS[container], **tags)
    return buffer.getvalue()


def assert_upright(data: bytes) -> None:
    """Assert that bytes, header and Pillow's image are upright, and that Pillow's own reader agrees."""
    image_HWC = images.decode_image(data)
    np.testing.assert_allclose(image_HWC[8::16, 8::16].astype(int), BLOCKS_HWC, atol=6)
    np.testing.assert_array_equal(from_pillow(Image.open(BytesIO(data))), image_HWC)
    assert images.image_size(data) == (32, 48)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("container", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_xmp_is_read_where_exif_says_nothing(container: str, orientation: int) -> None:
    if container == "PNG":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp(orientation).decode())
        assert_upright(saved(orientation, container, pnginfo=info))
    elif container == "TIFF":
        assert_upright(saved(orientation, container, tiffinfo={700: xmp(orientation)}))
    else:
        assert_upright(saved(orientation, container, xmp=xmp(orientation)))


@pytest.mark.parametrize("form", XMP_FORMS)
def test_xmp_is_read_in_every_spelling(form: str) -> None:
    assert_upright(saved(6, "JPEG", xmp=xmp(6, form)))


def test_exif_has_precedence_over_xmp() -> None:
    assert_upright(saved(6, "JPEG", exif=exif(6), xmp=xmp(3)))
    assert_upright(saved(1, "JPEG", exif=exif(1), xmp=xmp(3)))


@pytest.mark.parametrize("orientation", STORED)
def test_texts_of_imagemagick_are_read(orientation: int) -> None:
    assert_upright(saved(orientation, "PNG", pnginfo=raw_profile("exif", exif(orientation))))
    assert_upright(saved(orientation, "PNG", pnginfo=raw_profile("APP1", exif(orientation))))
    assert_upright(saved(orientation, "PNG", pnginfo=raw_profile("xmp", xmp(orientation))))


@pytest.mark.parametrize("text", ["", "\nexif\n", "\nexif\n 10\nxyz", "\nexif\n 10\n4d4"])
def test_damaged_texts_leave_the_image_as_it_is(text: str) -> None:
    info = PngInfo()
    info.add_text("Raw profile type exif", text)
    assert_upright(saved(1, "PNG", pnginfo=info))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [1, 3, 4])
def test_orientation_may_be_a_number_of_any_type(kind: int, order: str) -> None:
    assert_upright(saved(6, "JPEG", exif=exif(6, order, kind)))


def test_exif_may_begin_twice_or_without_its_name() -> None:
    assert_upright(saved(6, "WEBP", exif=exif(6).removeprefix(b"Exif\0\0")))
    assert_upright(saved(6, "JPEG", exif=b"Exif\0\0" + exif(6)))


@pytest.mark.parametrize("orientation", STORED)
def test_heic_is_upright_by_its_own_properties(orientation: int) -> None:
    pillow_heif.register_heif_opener()
    buffer = BytesIO()
    stored(orientation).save(buffer, "HEIF", quality=-1, chroma=444, exif=exif(orientation))
    data = buffer.getvalue()
    image_HWC = images.decode_image(data)
    np.testing.assert_allclose(image_HWC[8::16, 8::16].astype(int), BLOCKS_HWC, atol=6)
    assert images.image_size(data) == (32, 48)
