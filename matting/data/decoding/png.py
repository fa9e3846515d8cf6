"""PNG: damage that viewers overlook, though all rows of pixels are there, and parts that a reader must know.

    checksums verified -> damaged, malformed and misplaced ancillary chunks left out, a missing end replaced
    animations         -> their frames left out: the image that counts is the one that every viewer shows

Each mended file comes with a warning. A file that lacks rows, or whose pixels have a wrong checksum, stays refused.

Literature: Portable Network Graphics (PNG) Specification, third edition, W3C 2025, 5, 11 and 14.
"""

import struct
import zlib

from PIL.PngImagePlugin import MAX_TEXT_CHUNK

from matting.data.decoding.errors import BadImage

_START = 8  # bytes of the signature
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # PNG's colour type -> samples a pixel
_PALETTE = 3  # colour type
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_FRAMES = (b"acTL", b"fcTL", b"fdAT")
_LEAST_BYTES = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"cICP": 4, b"pHYs": 9}
_LEAST_TRANSPARENCY = {0: 2, 2: 6}  # in bytes, by colour type


def mend_png(data: bytes, max_pixels: int) -> tuple[bytes, str | None]:
    """Verify the chunks of a PNG.

    Returns:
        The file, and None; or the file without ancillary chunks that are damaged, or with a new end if it is
        truncated behind its last row, and a warning. A file that lacks rows comes back as it is. The frames of an
        animation are left out without a warning.

    Raises:
        BadImage: The checksum of a chunk that the pixels need is wrong, the palette is missing, or there is a chunk
            that is not known and that the pixels need.
    """
    kept, dropped, pixels = list[tuple[int, int]](), dict[bytes, str](), list[slice]()
    position, color = _START, int.from_bytes(data[25:26])
    has_palette = has_frames = False
    while (end := position + 12 + int.from_bytes(data[position : position + 4])) <= len(data):
        kind, checksum = data[position + 4 : position + 8], int.from_bytes(data[end - 4 : end])
        is_ancillary = bool(kind[0] & 0x20)  # a small letter
        if zlib.crc32(memoryview(data)[position + 4 : end - 4]) != checksum:
            if not is_ancillary and kind != b"IEND":
                raise BadImage(f"damaged PNG: wrong checksum in {_name(kind)}")
            dropped[kind] = "wrong checksum in"
        elif kind in _FRAMES:
            has_frames = True
        elif is_ancillary and (problem := _problem(kind, data[position + 8 : end - 4], color, bool(pixels))):
            dropped[kind] = problem
        else:
            kept.append((position, end))
        if not is_ancillary and kind not in _CRITICAL:
            raise BadImage(f"a PNG with the chunk {_name(kind)}, which is not known here; convert it to JPEG")
        has_palette |= kind == b"PLTE"
        if kind == b"IDAT":
            if color == _PALETTE and not has_palette:
                raise BadImage("damaged PNG: its palette is missing")
            pixels.append(slice(position + 8, end - 4))
        position = end
        if kind == b"IEND":
            break
    else:
        if data[position + 4 : position + 8] == b"IDAT":
            pixels.append(slice(position + 8, len(data)))
        if not (rows := _all_rows(data, b"".join(data[part] for part in pixels), max_pixels)):
            return data, None
        others = [data[start:end] for start, end in kept if data[start + 4 : start + 8] != b"IDAT"]
        last = [png_chunk(b"IDAT", zlib.compress(rows, 1)), png_chunk(b"IEND", b"")]
        return data[:_START] + b"".join([*others, *last]), "its end is missing; all pixels are there"
    if not dropped and not has_frames:
        return data, None
    warning = "; ".join(f"{problem} {_name(kind)}, which was left out" for kind, problem in dropped.items())
    return data[:_START] + b"".join(data[start:end] for start, end in kept), warning or None


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG, with its length and checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def _name(kind: bytes) -> str:
    return ascii(kind)[2:-1]


def _problem(kind: bytes, content: bytes, color: int, is_behind_pixels: bool) -> str:
    """Return what is wrong with an ancillary chunk, or "".

    Args:
        kind, content: The chunk.
        color: Colour type of the PNG.
        is_behind_pixels: Whether the pixels came before it.
    """
    if len(content) < _LEAST_BYTES.get(kind, 0):
        return "malformed"
    if kind == b"tRNS":
        if is_behind_pixels:
            return "misplaced"
        return "malformed" if len(content) < _LEAST_TRANSPARENCY.get(color, 0) else ""
    if kind in (b"iCCP", b"zTXt"):
        name, separator, rest = content.partition(b"\0")
        return _problem_of_compressed(rest[1:]) if name and separator and rest[:1] == b"\0" else "malformed"
    if kind == b"iTXt":
        start = content.find(b"\0")
        if content[start + 1 : start + 3] == b"\1\0":  # compressed
            return _problem_of_compressed(content[start + 3 :].split(b"\0", 2)[-1])
    return ""


def _problem_of_compressed(compressed: bytes) -> str:
    """Return "oversized" for what Pillow does not unpack. It takes care of other damage."""
    decompressor = zlib.decompressobj()
    try:
        decompressor.decompress(compressed, MAX_TEXT_CHUNK)
    except zlib.error:
        return ""
    return "oversized" if decompressor.unconsumed_tail else ""


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
