"""Orientation of images, by every way in which software records it.

    EXIF data of any container, ImageMagick's "Raw profile type" texts in PNG, tags of a TIFF -> orientation, 1 to 8
    where none of these says anything: XMP                                                     -> orientation, 1 to 8

Literature: Exchangeable image file format (Exif) 3.0, CIPA 2023, 4.6.4; XMP Specification Part 2, Adobe 2016, 3.2.
"""

import re
from typing import Any

from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

from matting.data.decoding.exif import read_tag
from matting.data.decoding.tiff import Tiff

_TO_UPRIGHT = {  # orientation -> transposition that undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_RAW_PROFILE = "Raw profile type "  # name of ImageMagick's texts, before the name of what they hold
_SOURCES = ("exif", "xmp", "XML:com.adobe.xmp", *(f"{_RAW_PROFILE}{name}" for name in ("exif", "APP1", "xmp")))
_XMP = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*([1-8])\s*["'<]""")


def orientation_of(image: Image.Image) -> int:
    """Return the orientation of an image as it is stored, 1 to 8; 1 (upright) where it is missing or damaged."""
    for exif in _exif_blocks(image):
        value = exif if isinstance(exif, int) else read_tag(exif, ExifTags.Base.Orientation)
        if isinstance(value, int):
            return value if value in _TO_UPRIGHT else 1
    for xmp in _xmp_blocks(image):
        if match := _XMP.search(xmp):
            return int(match[1])
    return 1


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """Return an image upright: a turned copy that records no orientation, or the image itself where it is upright."""
    if orientation not in _TO_UPRIGHT:
        return image
    image = image.transpose(_TO_UPRIGHT[orientation])
    for name in _SOURCES:
        image.info.pop(name, None)  # else the copy would count as lying
    return image


def upright(image: Image.Image) -> Image.Image:
    """Turn an image that Pillow has opened by its orientation, as `images.decode_image` does.

    Returns:
        A turned copy without EXIF data and XMP, or the image itself where it is upright already.
    """
    image.load()  # turns a TIFF that Pillow has opened, and reads the EXIF data that a PNG has after its pixels
    if isinstance(image, TiffImageFile) and not isinstance(image, Tiff):
        return image
    return turned(image, orientation_of(image))


def _exif_blocks(image: Image.Image) -> list[bytes | int]:
    """Return the EXIF data of an image, and the orientation tag of a TIFF; the first that knows decides."""
    blocks: list[bytes | int] = []
    if isinstance(block := image.info.get("exif"), bytes):
        blocks.append(block)
    blocks += [block for name in ("exif", "APP1") if (block := _raw_profile(image, name))]
    if isinstance(tag := getattr(image, "tag_v2", {}).get(ExifTags.Base.Orientation), int):
        blocks.append(tag)
    return blocks


def _xmp_blocks(image: Image.Image) -> list[bytes]:
    blocks: list[Any] = [image.info.get("xmp"), image.info.get("XML:com.adobe.xmp")]
    blocks = [block.encode() if isinstance(block, str) else block for block in blocks]
    blocks += [_raw_profile(image, name) for name in ("xmp", "APP1")]
    return [block for block in blocks if isinstance(block, bytes)]


def _raw_profile(image: Image.Image, name: str) -> bytes | None:
    """Return the bytes that ImageMagick writes into a PNG as text: a name, a length, and digits in rows."""
    text = image.info.get(f"{_RAW_PROFILE}{name}")
    if not isinstance(text, str):
        return None
    try:
        return bytes.fromhex("".join(text.split()[2:]))
    except ValueError:
        return None
