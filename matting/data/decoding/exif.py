"""Single tags of EXIF data, read without Pillow: bytes -> read_tag -> number or text; None where it is missing.

Pillow's own reader reports damage by warnings, which cannot be silenced safely while other threads decode, and it
parses every tag, which takes a tenth of the time that a small photo takes.

Literature: Exchangeable image file format (Exif) 3.0, CIPA 2023, 4.6.2.
"""

import re
import struct

_START = re.compile(rb"(?:Exif\0\0){1,2}")  # some software writes it twice, some leaves it out
_FORMATS = {1: "B", 2: "4s", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I"}  # types that fit into an entry


def read_tag(exif: bytes, *path: int) -> int | bytes | None:
    """Return the value of a tag in EXIF data.

    Args:
        exif: EXIF data, with or without their first word.
        path: Tags of the directories in which the tag is, from the outermost on; then the tag itself.

    Returns:
        A whole number, or the first four bytes of a text; None where there is neither, or the data are damaged.
    """
    exif = _START.sub(b"", exif, count=1) if exif.startswith(b"Exif") else exif
    try:
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        value: int | bytes | None = struct.unpack_from(f"{order}I", exif, 4)[0]
        for tag in path:
            if not isinstance(value, int):
                return None
            value = _entry(exif, order, value, tag)
    except (KeyError, struct.error):
        return None  # damaged EXIF data say nothing about the pixels
    return value


def _entry(exif: bytes, order: str, directory: int, wanted: int) -> int | bytes | None:
    (count,) = struct.unpack_from(f"{order}H", exif, directory)
    for place in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(f"{order}HH", exif, place)
        if tag == wanted:
            value: int | bytes = struct.unpack_from(f"{order}{_FORMATS[kind]}", exif, place + 8)[0]
            return value
    return None
