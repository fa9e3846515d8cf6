"""Damage that viewers overlook: files whose rows of pixels are all there, though other parts are damaged or missing.

    PNG  -> checksums verified; damaged ancillary chunks left out, a missing end replaced
    JPEG -> a missing end replaced, if the file held every row of blocks

Each mended file comes with a warning. A file that lacks rows, or whose pixels have a wrong checksum, stays refused.
"""

import re
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from matting.data.decoding.errors import BadImage

_PNG_START = 8  # bytes of the signature
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # PNG's colour type -> samples a pixel
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))

_END_OF_IMAGE = b"\xff\xd9"
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
_PADDING = bytes(64)  # zeros that a file system or a download left in place of a file's end
_OTHER_BITS = bytes(range(1, 128)) * 2  # any data that decodes to other blocks than zeros do


def mend_png(data: bytes, max_pixels: int) -> tuple[bytes, str | None]:
    """Verify the checksums of a PNG.

    Returns:
        The file, and None; or the file without ancillary chunks whose checksum is wrong, or with a new end if it is
        truncated behind its last row, and a warning. A file that lacks rows comes back as it is.

    Raises:
        BadImage: The checksum of a chunk that the pixels need is wrong.
    """
    whole, dropped, pixels = [], [], []
    position = _PNG_START
    while (end := position + 12 + int.from_bytes(data[position : position + 4])) <= len(data):
        kind, checksum = data[position + 4 : position + 8], int.from_bytes(data[end - 4 : end])
        if zlib.crc32(memoryview(data)[position + 4 : end - 4]) == checksum:
            whole.append((position, end))
        elif kind[0] & 0x20 or kind == b"IEND":  # a small letter: ancillary
            dropped.append(ascii(kind)[2:-1])
        else:
            raise BadImage(f"damaged PNG: wrong checksum in {ascii(kind)[2:-1]}")
        if kind == b"IDAT":
            pixels.append(slice(position + 8, end - 4))
        position = end
        if kind == b"IEND":
            break
    else:
        if data[position + 4 : position + 8] == b"IDAT":
            pixels.append(slice(position + 8, len(data)))
        if not (rows := _all_rows(data, b"".join(data[part] for part in pixels), max_pixels)):
            return data, None
        kept = [data[start:end] for start, end in whole if data[start + 4 : start + 8] != b"IDAT"]
        last = [png_chunk(b"IDAT", zlib.compress(rows, 1)), png_chunk(b"IEND", b"")]
        return data[:_PNG_START] + b"".join([*kept, *last]), "its end is missing; all pixels are there"
    if not dropped:
        return data, None
    kept = [data[start:end] for start, end in whole]
    return data[:_PNG_START] + b"".join(kept), f"wrong checksum in {', '.join(dropped)}, which was left out"


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG, with its length and checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def mend_jpeg(data: bytes, decode: Callable[[bytes], Image.Image]) -> tuple[Image.Image, str] | None:
    """Decode a JPEG that ends too early, if it holds every row of blocks, the last one perhaps in part.

    The decoder fills missing blocks from zeros and does not say so. So the file is decoded with two different ends:
    where blocks are missing, the results differ.

    Args:
        data: The file.
        decode: Function that decodes a file whose end is in place.

    Returns:
        The image and a warning; None if rows are missing.
    """
    data = data.removesuffix(b"\xff")
    if not _has_all_coefficients(data):
        return None
    image = decode(data + _END_OF_IMAGE)
    other = decode(data + _OTHER_BITS + _END_OF_IMAGE)
    differing = np.flatnonzero((np.asarray(image) != np.asarray(other)).reshape(image.height, -1).any(axis=1))
    if not len(differing):
        return image, "its end is missing; all pixels are there"
    if differing[0] < _last_block_row(image):
        return None
    return image, "its last bytes are missing; blocks in its last rows of pixels are filled in"


def without_padding(data: bytes) -> bytes:
    """Return a JPEG without zeros behind its last byte, which the decoder would take for pixels."""
    return data.rstrip(b"\0") if data.endswith(_PADDING) else data


def _all_rows(data: bytes, compressed: bytes, max_pixels: int) -> bytes | None:
    """Return the bytes of a PNG's rows, uncompressed; None if rows are missing."""
    if data[12:16] != b"IHDR" or len(data) < 33:
        return None
    width, height, depth, color, _, _, interlaced = struct.unpack_from(">2I5B", data, 16)
    if width * height > max_pixels or color not in _CHANNELS:
        return None
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = [((width - x + dx - 1) // dx, (height - y + dy - 1) // dy) for x, y, dx, dy in passes]
    expected = sum(rows * (1 + (columns * depth * _CHANNELS[color] + 7) // 8) for columns, rows in sizes if columns)
    try:
        rows = zlib.decompressobj().decompress(compressed, expected)
    except zlib.error:
        return None
    return rows if len(rows) == expected else None


def _has_all_coefficients(data: bytes) -> bool:
    """Return whether a JPEG's scans bring every component to its full precision; a progressive one takes about ten."""
    missing: set[tuple[int, int]] = set()
    position = 0
    while (marker := _JPEG_MARKER.search(data, position)) and marker[1] != b"\xd9":
        kind, start = marker[1][0], marker.end()
        length = int.from_bytes(data[start : start + 2])
        body = data[start + 2 : start + length]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC) and len(body) >= 6:  # start of frame
            missing = {(component, number) for component in body[6::3] for number in range(64)}
        elif kind == 0xDA and len(body) >= 4 and not body[-1] & 15:  # start of a scan that leaves no bits for later
            missing -= {(part, number) for part in body[1:-3:2] for number in range(body[-3], body[-2] + 1)}
        position = start + length
    return not missing


def _last_block_row(image: Image.Image) -> int:
    """Return the first row of pixels that the last row of blocks touches, in an image that may be reduced."""
    factors = [layer[2] for layer in image.layer] if isinstance(image, JpegImageFile) else [1]
    reduction = image.decoderconfig[0] if isinstance(image, JpegImageFile) and image.decoderconfig else 1
    block = max(1, (max(factors) if len(factors) > 1 else 1) * 8 // reduction)
    return (image.height - 1) // block * block - 2  # the upsampling of colours reaches into the row above
