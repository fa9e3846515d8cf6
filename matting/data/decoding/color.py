"""Colours of an image in sRGB, by its colour profile; and an image's own transparency.

    RGB, grey or CMYK as stored, profile -> to_srgb   -> RGB in sRGB
    RGB as stored, profile               -> profile to keep beside the stored numbers, or None for sRGB
    RGBA, LA, palette or a transparent colour -> opacity -> opacity_HW (0 … 255), or None where all is opaque

Images without a profile count as sRGB, unless `named_colors` finds another; a CMYK image without one is converted by
the plain formula. A profile that is
damaged, or made for other channels than the image's, counts as none.
"""

from functools import lru_cache
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from matting.data.decoding.errors import BadImage

_SPACES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}  # colour space in a profile's header -> Pillow's mode
_SAME = 2  # levels of 255 by which profiles of sRGB differ from each other, by rounding

UNREADABLE_PROFILE = "its colour profile cannot be used; its colours are taken as sRGB"


class _Conversion(NamedTuple):
    """A conversion to sRGB, or None where colours stay as they are; and whether the profile could be used."""

    transform: ImageCms.ImageCmsTransform | None
    is_usable: bool


def as_8_bits(image: Image.Image) -> Image.Image:
    """Return the colours of an image, without transparency, in mode RGB, L or CMYK: 8 bits a channel, as stored.

    Raises:
        BadImage: The pixels are floating-point or 32-bit, or in a space that is not read here.
    """
    if image.mode.startswith("I;16"):
        grey = Image.fromarray(to_8_bits(np.asarray(image)))
        grey.info = image.info
        return grey
    if image.mode in ("RGB", "L", "CMYK"):
        return image
    if image.mode in ("I", "F", "LAB", "HSV"):
        raise BadImage(f"pixels of mode {image.mode!r}; expected 8 or 16 bits a channel")
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if "transparency" in image.info:  # Pillow would convert this colour, and warn where it cannot
        image = image.copy()
        del image.info["transparency"]
    return image.convert("L" if image.mode in ("1", "LA") else "RGB")


def to_8_bits(values: NDArray[np.unsignedinteger]) -> NDArray[np.uint8]:
    """Scale values of 16 bits to 8, rounded."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 / 255 = 257


def to_srgb(colors: Image.Image) -> Image.Image:
    """Convert an image of mode RGB, L or CMYK to RGB in sRGB, by its profile."""
    if profile := colors.info.get("icc_profile"):
        space = _space(profile)
        if space == "RGB" and colors.mode == "L":
            colors = colors.convert("RGB")
        conversion = _conversion(profile, colors.mode)
        if conversion.transform:
            return conversion.transform.apply(colors)
    return colors if colors.mode == "RGB" else colors.convert("RGB")


def kept_profile(image: Image.Image) -> bytes | None:
    """Return the profile that says what an RGB image's numbers mean; None if they mean sRGB, or the image is not RGB.

    Grey and CMYK numbers cannot be stored in a cutout, which is RGB.
    """
    profile: bytes | None = image.info.get("icc_profile")
    is_rgb = image.mode in ("RGB", "RGBA", "RGBa", "P", "PA")
    return profile if profile and is_rgb and _conversion(profile, "RGB").transform else None


def has_unusable_profile(image: Image.Image) -> bool:
    """Return whether an image has a profile that `to_srgb` cannot use."""
    if "icc_profile" not in image.info:
        return False
    profile: bytes | None = image.info["icc_profile"]
    if not profile:  # Pillow could not put it together
        return True
    space = _space(profile)
    mode = {"CMYK": "CMYK", "L": "L", "LA": "L", "La": "L", "1": "L"}.get(image.mode, "RGB")
    if image.mode.startswith("I;16"):
        mode = "L"
    return not _conversion(profile, "RGB" if (mode, space) == ("L", "RGB") else mode).is_usable


def opacity_of(image: Image.Image) -> NDArray[np.uint8] | None:
    """Return an image's own opacity_HW, 255 is opaque; None where all of it is.

    Raises:
        BadImage: One colour of 16-bit RGB is declared transparent, which Pillow cannot tell from its neighbours.
    """
    opacity_HW: NDArray[np.uint8]
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        opacity_HW = np.array(image.getchannel(image.mode[-1]))
    elif (transparent := image.info.get("transparency")) is None:
        return None
    elif image.mode == "P":
        opacity_HW = np.array(image.convert("RGBA").getchannel("A"))
    elif isinstance(transparent, tuple) and max(transparent) > 255:
        raise BadImage("RGB of 16 bits with a transparent colour; expected an alpha channel")
    else:
        values = np.asarray(image)
        is_clear = values == np.array(transparent if image.mode != "1" else bool(transparent))
        opacity_HW = np.where(is_clear.all(axis=2) if values.ndim == 3 else is_clear, 0, 255).astype(np.uint8)
    return opacity_HW if opacity_HW.min() < 255 else None


def _space(profile: bytes) -> str | None:
    return _SPACES.get(profile[16:20]) if profile[36:40] == b"acsp" else None


@lru_cache(16)  # the photos of a camera share one profile, which may be large
def _conversion(profile: bytes, mode: str) -> _Conversion:
    if _space(profile) != mode:
        return _Conversion(None, False)
    try:
        transform = ImageCms.buildTransform(BytesIO(profile), ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return _Conversion(None, False)
    if mode == "CMYK":
        return _Conversion(transform, True)
    samples = _sample_colors(mode)
    converted, stored = np.asarray(transform.apply(samples)).astype(int), np.asarray(samples.convert("RGB"))
    return _Conversion(None if np.abs(converted - stored).max() <= _SAME else transform, True)


def _sample_colors(mode: str) -> Image.Image:
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    if mode == "L":
        return Image.fromarray(levels[None])
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
    return Image.fromarray(np.ascontiguousarray(grid.reshape(1, -1, 3)))
