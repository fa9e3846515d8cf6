"""Colours that a file defines without a profile, as a profile: the rest of the code knows profiles alone.

    PNG                       -> cICP, else its profile, else sRGB, else gAMA and cHRM, as the standard orders them
    AVIF and HEIC             -> their profile, else the numbers of their "colr" box
    EXIF data of any, or TIFF -> Adobe RGB, as cameras say it, where nothing else is said

A gAMA of 1/2.2 with the primaries of sRGB, or without any, means sRGB, as in libpng and in browsers.

Literature: ITU-T H.273, "Coding-independent code points for video signal type identification", 2021. Portable Network
Graphics (PNG) Specification, third edition, W3C 2025, 13.13. Design rule for Camera File system 2.0, JEITA 2010, 3.2.2.
Specification ICC.1:2022, International Color Consortium.
"""

import struct
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from matting.data.decoding.exif import read_tag

_Chromaticities = tuple[float, ...]  # x and y of white, red, green and blue

_D65 = (0.3127, 0.3290)
_SRGB: _Chromaticities = (*_D65, 0.640, 0.330, 0.300, 0.600, 0.150, 0.060)
_ADOBE: _Chromaticities = (*_D65, 0.640, 0.330, 0.210, 0.710, 0.150, 0.060)
_ADOBE_GAMMA = 563 / 256
_PRIMARIES: dict[int, _Chromaticities] = {
    1: _SRGB,  # BT.709's
    2: _SRGB,  # unspecified
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),  # BT.2020's
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # Display P3's
}
# None is sRGB's curve, which counts for those of BT.709 and its relatives too: viewers do not tell them apart.
_GAMMAS: dict[int, float | None] = {1: None, 2: None, 4: 2.2, 5: 2.8, 6: None, 8: 1.0, 13: None, 14: None, 15: None}
_SAME_POINT = 0.005  # difference of chromaticities that rounding explains
_SAME_GAMMA = 0.05  # share by which a gAMA may differ from another and mean the same, as in libpng
_GAMMA_RANGE = (0.1, 10.0)

_UNSPECIFIED = (2, 2)
_UNCALIBRATED = 65535  # ColorSpace of all colours but sRGB
_ADOBE_INDEX = b"R03\0"

_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D50_XYZ = np.array([0.9642, 1.0, 0.8249])
_LEAST_VOLUME, _MOST_XYZ = 1e-3, 8.0  # primaries that span nearly nothing, and what comes of them
_HEADER, _KIND = 128, (b"mntr", b"RGB ", b"XYZ ")
_COLUMNS, _CURVES = (b"rXYZ", b"gXYZ", b"bXYZ"), (b"rTRC", b"gTRC", b"bTRC")
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


class _Colors(NamedTuple):
    """Chromaticities of an RGB space, and the exponent of its values; None is sRGB's curve."""

    chromaticities: _Chromaticities
    gamma: float | None


_SRGB_COLORS = _Colors(_SRGB, None)


def define_colors(image: Image.Image, data: bytes = b"") -> str | None:
    """Give an image the profile of the colours that its file defines by other means.

    Args:
        image: Image as Pillow has opened and loaded it. Its `info` is changed.
        data: Its file, if it is at hand: Pillow does not tell numbers by CICP, and EXIF data of a TIFF.

    Returns:
        A warning if colours are defined in a way that is not applied; else None.
    """
    cicp = _cicp_of(image, data)
    colors = _colors_of_cicp(cicp) if cicp else None
    if colors and image.format == "PNG":
        image.info.pop("icc_profile", None)  # for programs that do not know cICP
    if "icc_profile" in image.info:
        return None
    if cicp and not colors:
        named = f"CICP primaries {cicp[0]}, transfer {cicp[1]}"
    else:
        colors = colors or _colors_of_png(image) or _colors_of_exif(image, data) or _SRGB_COLORS
        if colors == _SRGB_COLORS:
            return None
        if profile := _profile(colors):
            image.info["icc_profile"] = profile
            return None
        named = "gAMA and cHRM of no real colours"
    return f"its colours ({named}) are not converted; they are taken as sRGB"


def _cicp_of(image: Image.Image, data: bytes) -> tuple[int, int, bool] | None:
    """Return primaries, transfer, and whether values use their full range; None where nothing is specified."""
    if image.format == "PNG" and (place := data.find(b"\0\0\0\4cICP", 0, max(0, data.find(b"IDAT")))) >= 0:
        primaries, transfer, matrix, is_full = data[place + 8 : place + 12]
        cicp = primaries, transfer, (matrix, is_full) == (0, 1)
    elif image.format in ("AVIF", "HEIF") and (place := data.find(b"colrnclx", 0, 65_536)) >= 0:
        cicp = *struct.unpack_from(">2H", data, place + 8), True  # decoders apply matrix and range
    else:
        return None
    return None if cicp[:2] == _UNSPECIFIED else cicp


def _colors_of_cicp(cicp: tuple[int, int, bool]) -> _Colors | None:
    primaries, transfer, is_full = cicp
    if primaries not in _PRIMARIES or transfer not in _GAMMAS or not is_full:
        return None
    return _Colors(_PRIMARIES[primaries], _GAMMAS[transfer])


def _colors_of_png(image: Image.Image) -> _Colors | None:
    if "srgb" in image.info:
        return _SRGB_COLORS
    value, chromaticities = image.info.get("gamma"), image.info.get("chromaticity", _SRGB)
    if value is None and chromaticities is _SRGB:
        return None
    if all(abs(own - other) <= _SAME_POINT for own, other in zip(chromaticities, _SRGB, strict=True)):
        chromaticities = _SRGB
        if value is None or abs(value * 2.2 - 1) <= _SAME_GAMMA:
            return _SRGB_COLORS
    return _Colors(chromaticities, (1 / value if value else 0.0) if value is not None else None)


def _colors_of_exif(image: Image.Image, data: bytes) -> _Colors | None:
    exif = image.info.get("exif")
    if image.format == "TIFF":
        # A TIFF is laid out as EXIF data are. Few have them: do not search the pixels for the index.
        exif = data if ExifTags.IFD.Exif in getattr(image, "tag_v2", ()) else None
    if image.mode == "CMYK" or not isinstance(exif, bytes) or _ADOBE_INDEX not in exif:  # parse few of them
        return None
    space = read_tag(exif, ExifTags.IFD.Exif, ExifTags.Base.ColorSpace)
    index = read_tag(exif, ExifTags.IFD.Exif, ExifTags.IFD.Interop, ExifTags.Interop.InteropIndex)
    return _Colors(_ADOBE, _ADOBE_GAMMA) if (space, index) == (_UNCALIBRATED, _ADOBE_INDEX) else None


@lru_cache(16)
def _profile(colors: _Colors) -> bytes | None:
    """Return a colour profile, version 4: a matrix to XYZ and a curve; None if no real colours have these numbers."""
    if colors.gamma is not None and not _GAMMA_RANGE[0] <= colors.gamma <= _GAMMA_RANGE[1]:
        return None
    points = np.array(colors.chromaticities).reshape(4, 2)
    if points.min() < 0 or points[:, 1].min() <= 0 or points.sum(axis=1).max() > 1.001:
        return None
    white, *primaries = (np.array([x / y, 1, (1 - x - y) / y]) for x, y in points)
    primaries_33 = np.stack(primaries, axis=1)
    if abs(np.linalg.det(primaries_33)) < _LEAST_VOLUME:
        return None
    adaptation = np.linalg.inv(_BRADFORD) @ np.diag(_BRADFORD @ _D50_XYZ / (_BRADFORD @ white)) @ _BRADFORD
    to_xyz = adaptation @ primaries_33 * np.linalg.solve(primaries_33, white)
    if np.abs(to_xyz).max() > _MOST_XYZ:
        return None
    curve = (0, colors.gamma) if colors.gamma is not None else (3, *_SRGB_CURVE)
    tags = {
        b"desc": _text("RGB, as the photo defines it"),
        b"cprt": _text("CC0"),
        b"wtpt": b"XYZ \0\0\0\0" + _fixed(*_D50_XYZ),
        b"chad": b"sf32\0\0\0\0" + _fixed(*adaptation.ravel()),
        **{name: b"XYZ \0\0\0\0" + _fixed(*to_xyz[:, index]) for index, name in enumerate(_COLUMNS)},
        **dict.fromkeys(_CURVES, b"para\0\0\0\0" + struct.pack(">Hxx", curve[0]) + _fixed(*curve[1:])),
    }
    directory, body = struct.pack(">I", len(tags)), b""
    start = _HEADER + 4 + 12 * len(tags)
    for name, content in tags.items():
        directory += struct.pack(">4sII", name, start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    header = bytearray(_HEADER)
    struct.pack_into(">I4xI4s4s4s6H4s", header, 0, start + len(body), 0x04400000, *_KIND, 2026, 1, 1, 0, 0, 0, b"acsp")
    header[68:80] = _fixed(*_D50_XYZ)
    return bytes(header) + directory + body


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(65536 * value)) for value in values)


def _text(text: str) -> bytes:
    return b"mluc\0\0\0\0" + struct.pack(">II4sII", 1, 12, b"enUS", 2 * len(text), 28) + text.encode("utf-16-be")
