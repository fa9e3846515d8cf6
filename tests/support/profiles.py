"""Colour profiles, written byte by byte, since Pillow makes none but sRGB's.

Literature: Specification ICC.1:2022, International Color Consortium.
"""

import struct
from collections.abc import Callable
from functools import cache

import numpy as np

P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))  # red, green and blue of Display P3
SRGB = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
ADOBE = ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060))
D65 = (0.3127, 0.3290)
D50_XYZ = np.array([0.96422, 1.0, 0.82521])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def matrix_of(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Return the matrix from linear RGB to XYZ of the profile connection space (white D50)."""

    def xyz(x: float, y: float) -> np.ndarray:
        return np.array([x / y, 1, (1 - x - y) / y])

    columns = np.stack([xyz(*primary) for primary in primaries], axis=1)
    white = xyz(*D65)
    matrix = columns * np.linalg.solve(columns, white)
    scale = (_BRADFORD @ D50_XYZ) / (_BRADFORD @ white)
    return np.linalg.inv(_BRADFORD) @ np.diag(scale) @ _BRADFORD @ matrix


def srgb_curve(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def srgb_curve_inverse(linear: np.ndarray) -> np.ndarray:
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@cache
def rgb_profile(primaries: tuple[tuple[float, float], ...] = P3, gamma: float | None = None) -> bytes:
    """Return a profile of RGB with these primaries, white D65, and a gamma or sRGB's curve."""
    matrix = matrix_of(primaries)
    tags = {f"{name}XYZ": _xyz(matrix[:, index]) for index, name in enumerate("rgb")}
    curve = lambda values: values**gamma if gamma else srgb_curve(values)  # noqa: E731
    return _profile(b"RGB ", b"XYZ ", tags | dict.fromkeys(("rTRC", "gTRC", "bTRC"), _curve(curve)))


@cache
def grey_profile(gamma: float) -> bytes:
    return _profile(b"GRAY", b"XYZ ", {"kTRC": _curve(lambda values: values**gamma)})


@cache
def cmyk_profile() -> bytes:
    """Return a profile of CMYK: a table of the lightness and hue of each mixture of full inks."""
    inks = {"c": (-35, -50), "m": (75, -5), "y": (-5, 90)}  # a and b of CIELAB
    table = bytearray()
    for index in range(16):
        c, m, y, k = (index >> shift & 1 for shift in (3, 2, 1, 0))
        lightness = max(0, 100 - 45 * c - 50 * m - 10 * y) * (1 - k)
        a, b = (sum(ink[axis] * on for ink, on in zip(inks.values(), (c, m, y), strict=True)) for axis in (0, 1))
        table += bytes([round(lightness * 2.55), round(a * (1 - k)) + 128, round(b * (1 - k)) + 128])
    identity = b"".join(struct.pack(">i", round(65536 * (row == column))) for row in range(3) for column in range(3))
    ramp = bytes(range(256))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + bytes(table) + ramp * 3
    return _profile(b"CMYK", b"Lab ", {"A2B0": lut}, kind=b"prtr")


def _profile(space: bytes, connection: bytes, tags: dict[str, bytes], kind: bytes = b"mntr") -> bytes:
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)
    tags = {"desc": text, "cprt": b"text\0\0\0\0none\0", "wtpt": _xyz(D50_XYZ), **tags}
    directory, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        directory += name.encode() + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    header = bytearray(128)
    struct.pack_into(">I4xI4s4s4s", header, 0, start + len(body), 0x02400000, kind, space, connection)
    struct.pack_into(">6H4s", header, 24, 2026, 1, 1, 0, 0, 0, b"acsp")
    header[68:80] = struct.pack(">3i", *(round(65536 * value) for value in D50_XYZ))
    return bytes(header) + directory + body


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * value) for value in values))


def _curve(function: Callable[[np.ndarray], np.ndarray], entries: int = 1024) -> bytes:
    values = np.rint(65535 * function(np.linspace(0, 1, entries))).astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", entries) + values.tobytes()
