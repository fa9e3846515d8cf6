"""Variants of TIFF: those that Pillow decodes right, and the reasons to refuse the others.

TIFF is a container for any layout of samples. Pillow opens some layouts and gives wrong pixels, without an error. Tests
compare every variant that is accepted here with `tifffile`.
"""

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from matting.data.decoding.errors import BadImage

_SUBFILE_TYPE = 254
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_SAMPLES, _PLANAR, _EXTRA, _SAMPLE_FORMAT, _SUBSAMPLING = 277, 284, 338, 339, 530
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_COLORS = {
    _WHITE_IS_ZERO: "grey, white is zero",
    _BLACK_IS_ZERO: "grey",
    _RGB: "RGB",
    _PALETTE: "palette",
    4: "a mask",
    _CMYK: "CMYK",
    _YCBCR: "YCbCr",
    8: "CIELAB",
    9: "ICCLAB",
    10: "ITULAB",
    32803: "raw sensor data",
    34892: "linear raw data",
}
_NUMBERS = {1: "unsigned", 2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
_TYPE_SIZES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}  # in bytes; others 1
_NEEDED = {_BITS, 273, 279, 320, 324, 325, _EXTRA, _SAMPLE_FORMAT, 700, 34675}  # strips, tiles, palette, XMP, profile
_UNCOMPRESSED = 1
_WEBP = 50001  # left out of Pillow's libtiff
_COLOR_MAP, _WIDE = 320, 256  # values of a palette have 16 bits, and are at least this in all but a black one
_PLANES = 2  # each channel is stored on its own


class Tiff(TiffImageFile):
    """TIFF plugin that refuses what it would decode wrong, and leaves an image as it is stored, not upright."""

    def _setup(self) -> None:
        check_variant(self.tag_v2)
        try:
            super()._setup()
        except (SyntaxError, KeyError, IndexError) as error:
            raise BadImage(_refusal(self.tag_v2)) from error
        self._size = self.tag_v2[_WIDTH], self.tag_v2[_HEIGHT]  # Pillow gives the size of the upright image

    def load_end(self) -> None:
        """Leave the image as it is. Pillow would turn it here, and parse all EXIF data, which may be damaged."""


def check_directory(data: bytes) -> None:
    """Check that a TIFF holds its first directory, and the values of all tags that pixels and colours depend on.

    Pillow overlooks what is missing, and would lose an orientation or a profile.

    Raises:
        BadImage: Some of it lies behind the end of the file, or Pillow does not read its byte order.
    """
    if data.startswith(b"MM\0+"):
        raise BadImage("a TIFF of a kind that is not read here: a big-endian BigTIFF; convert it to RGB of 8 bits")
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    is_big = data[2:4] in (b"+\0", b"\0+")
    word, length, entry_size, value_size = ("Q", "Q", 20, 8) if is_big else ("I", "H", 12, 4)
    try:
        (directory,) = struct.unpack_from(order + word, data, 8 if is_big else 4)
        (count,) = struct.unpack_from(order + length, data, directory)
        first = directory + struct.calcsize(f"={length}")
        for start in range(first, first + count * entry_size, entry_size):
            tag, kind, number, offset = struct.unpack_from(f"{order}HH{word}{word}", data, start)
            size = number * _TYPE_SIZES.get(kind, 1)
            if tag in _NEEDED and size > value_size and offset + size > len(data):
                raise BadImage(f"truncated TIFF: tag {tag} lies behind its end")
    except struct.error as error:
        raise BadImage("truncated TIFF: its directory lies behind its end") from error


def check_variant(tags: Mapping[int, Any]) -> None:
    """Check that Pillow decodes this variant of TIFF right.

    Args:
        tags: Values of the first image's tags.

    Raises:
        BadImage: It does not, or the first image is a preview. The message describes the variant.
    """
    if tags.get(_SUBFILE_TYPE, 0) & 1:
        raise BadImage("a TIFF whose first image is only a preview, as in raw photos (DNG, NEF); convert it to JPEG")
    color, bits = tags.get(_PHOTOMETRIC, 0), _tuple(tags.get(_BITS, 1))
    extra = _tuple(tags.get(_EXTRA, ()))
    is_uncompressed = tags.get(_COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED
    planes = tags.get(_SAMPLES, 1) if tags.get(_PLANAR, 1) == _PLANES else 1
    if (
        color not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR)
        or tags.get(_COMPRESSION) == _WEBP
        or not {1, 2, 4, 8, 16}.issuperset(bits)
        or not {1, 4}.issuperset(_tuple(tags.get(_SAMPLE_FORMAT, 1)))  # 4 is undefined: unsigned for all readers
        # Pillow takes the second plane of grey images from the first, and planes of 16 bits for planes of 8.
        or (planes > 1 and any(extra) and (color in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _PALETTE) or len(extra) > 1))
        or (planes > 1 and extra and color == _YCBCR)
        or (planes > 1 and is_uncompressed and (extra or color == _YCBCR or max(bits) > 8))
        or (color == _YCBCR and is_uncompressed and _tuple(tags.get(_SUBSAMPLING, (2, 2))) != (1, 1))
    ):
        raise BadImage(_refusal(tags))


def corrected(image: Image.Image) -> Image.Image:
    """Return the image as its file means it, where that is a TIFF that Pillow decodes to other values.

    Pillow leaves 16 bits whose white is zero as they are. Some software writes palettes of 8 bits.
    """
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16") and tags.get(_PHOTOMETRIC, 0) == _WHITE_IS_ZERO and tags:
        inverted = Image.fromarray(65535 - np.asarray(image).astype(np.uint16))
        inverted.info = image.info
        return inverted
    if image.mode == "P" and max(tags.get(_COLOR_MAP, (_WIDE,))) < _WIDE:
        image.putpalette(bytes(tags[_COLOR_MAP]), "RGB;L")
    return image


def _refusal(tags: Mapping[int, Any]) -> str:
    color, bits = tags.get(_PHOTOMETRIC, 0), _tuple(tags.get(_BITS, 1))
    samples = tags.get(_SAMPLES, 1)
    numbers = _NUMBERS.get(max(_tuple(tags.get(_SAMPLE_FORMAT, 1)), default=1), "unknown")
    planes = " in planes" if samples != 1 and tags.get(_PLANAR, 1) == _PLANES else ""
    return (
        f"a TIFF of a kind that is not read here: {_COLORS.get(color, f'photometric interpretation {color}')}, "
        f"{samples} channel{'' if samples == 1 else 's'}{planes} of {max(bits, default=0)} bits, {numbers}, "
        f"compression {tags.get(_COMPRESSION, _UNCOMPRESSED)}; convert it to RGB of 8 bits"
    )


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
