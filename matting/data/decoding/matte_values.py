"""Stored values of a matte, at the depth of its file: image -> matte_values -> matte_HW, uint8 or uint16.

Pillow decodes channels of 16 bits to their upper 8. So such a file is decoded twice, the second time with the bytes of
each value swapped, and both halves are put together: `swap_bytes` before the second time, `join_bytes` after it.
"""

import sys

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from matting.data.decoding import color
from matting.data.decoding.errors import BadImage

# Largest difference between the channels of a grey matte stored as RGB, after JPEG's rounding. Photos exceed it.
_GREY_TOLERANCE = 16
_IN_COLOR = "an image in colour, not a matte; expected grey, or an alpha channel"
_LUMA = np.array([299, 587, 114], np.uint32)  # of 1000, as Pillow has it
_SWAPPED = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}  # order of bytes in a raw mode
_PLANAR, _PLANES = 284, 2  # tag of a TIFF
_GREY_AND_ALPHA = "LA;16B"  # raw mode that has no swapped one; as RGBA of 8 bits it gives all four bytes


def matte_values(image: Image.Image) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Return the values of a matte that are stored in its alpha channel or in its grey; see `images.decode_matte`.

    Raises:
        BadImage: The image is in colour, or its pixels are of another kind.
    """
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA"):
        alpha_HW = np.array(image.getchannel("A"))
        image = image.convert("RGB")
        if alpha_HW.min() < 255 or not _is_grey(image):
            return alpha_HW
    if image.mode not in ("1", "L", "P", "RGB"):
        raise BadImage(f"pixels of mode {image.mode!r}, not a matte")
    image = color.as_8_bits(image)
    if image.mode == "RGB" and not _is_grey(image):
        raise BadImage(_IN_COLOR)
    return np.array(image.convert("L"))


def raw_mode_of(image: Image.Image) -> str:
    """Return how an image that is not loaded stores its pixels, in Pillow's words, such as RGB;16B; "" if unknown."""
    if not isinstance(image, ImageFile) or not image.tile:
        return ""
    raw_mode = image.tile[0].args if isinstance(image.tile[0].args, str) else (image.tile[0].args or ("",))[0]
    return raw_mode if isinstance(raw_mode, str) else ""


def has_deep_channels(raw_mode: str) -> bool:
    """Return whether pixels have several channels of 16 bits."""
    return raw_mode.startswith(("RGB", "LA;")) and ";16" in raw_mode


def swap_bytes(image: Image.Image) -> None:
    """Make an image that is not loaded give the lower bytes of its channels of 16 bits in place of the upper ones.

    Raises:
        BadImage: Each channel is stored on its own, so that Pillow has no lower bytes.
    """
    assert isinstance(image, ImageFile)
    if isinstance(image, TiffImageFile) and image.tag_v2.get(_PLANAR) == _PLANES:
        raise BadImage("a matte of several channels of 16 bits in planes; store it in grey")
    raw_mode = raw_mode_of(image)
    swapped = "RGBA" if raw_mode == _GREY_AND_ALPHA else raw_mode[:-1] + _SWAPPED[raw_mode[-1]]
    image.tile = [
        tile._replace(args=swapped if isinstance(tile.args, str) else (swapped, *(tile.args or ())[1:]))
        for tile in image.tile
    ]


def join_bytes(upper: Image.Image, lower: Image.Image, raw_mode: str) -> NDArray[np.uint16]:
    """Return the values of a matte of several channels of 16 bits, from both halves of its channels.

    Raises:
        BadImage: The image is in colour.
    """
    lower_HWC = np.asarray(lower)
    if raw_mode == _GREY_AND_ALPHA:
        lower_HWC = lower_HWC[..., [1, 1, 1, 3]]
    values_HWC = np.asarray(upper).astype(np.uint16) << 8 | lower_HWC
    is_grey = _is_grey(upper.convert("RGB"))
    if upper.mode == "RGBA" and (values_HWC[..., 3].min() < 65535 or not is_grey):
        return np.ascontiguousarray(values_HWC[..., 3])
    if not is_grey:
        raise BadImage(_IN_COLOR)
    return np.asarray((values_HWC[..., :3] @ _LUMA + 500) // 1000, np.uint16)


def _is_grey(image: Image.Image) -> bool:
    """Return whether the channels of an RGB image agree."""
    return bool(np.ptp(np.asarray(image), axis=2).max() <= _GREY_TOLERANCE)
