"""Bytes <-> uint8 arrays: the one place that opens and writes picture files.

    bytes of a photo  -> decode_image -> image_HWC (RGB)  -> encode_jpeg / encode_png -> bytes
    bytes of a matte  -> decode_alpha -> alpha_HW (0..255) -> encode_png -> bytes

Opened are JPEG, PNG, WebP, BMP, TIFF and GIF, of an animation the first frame. Whatever is wrong with the bytes of a
stranger ends as one error type, BadImage. Colour profiles are not applied.

Knows no paths. Touches none of Pillow's global settings, so that threads can decode side by side: each format's
plugin is called directly, since `Image.open` checks sizes against a global and warns.
"""

import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

Pixels = NDArray[np.uint8]

# 320 MB in Pillow and 240 MB as an array: more than 64-megapixel cameras give, and less than Pillow's own bound of 89
# million, so that this is the only one.
MAX_PIXELS = 80_000_000

# A progressive JPEG has some ten. Each costs as much time as the picture is large and may be of no bytes at all.
MAX_JPEG_SCANS = 100

MAX_WEBP_SIDE = 16_383

# Less than the network's first step down leaves a pixel of: a placeholder, not a photo with its matte.
MIN_PAIR_SIDE = 8

# How far apart the channels of a matte that is stored as RGB may lie, after JPEG's rounding. A photo's lie further.
_GREY_TOLERANCE = 16

_UPRIGHT = {  # EXIF orientation -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # of a segment, which begins with its length

_NOT_IMAGES = {b"<": "HTML or XML?", b"{": "JSON?", b"%PDF": "PDF", b"PK\x03\x04": "a zip file", b"\x1f\x8b": "gzip"}


class BadImage(ValueError):
    """These bytes are not a picture that can be used. The message is the reason, on one line."""


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decodes a photo to image_HWC, uint8 RGB, upright by its EXIF orientation.

    Of transparent pictures the colours are kept as they are stored, whatever the transparency hides. 16-bit grey is
    scaled to 8 bits (rounded), 16-bit colour keeps its upper 8 bits.

    Raises:
        BadImage: not a picture, damaged, cut short, larger than `max_pixels` or made to decode for ever, or of
            floating-point pixels.
    """
    with _opened(data, max_pixels) as (picture, _):
        return to_rgb(picture)


def to_rgb(picture: Image.Image) -> Pixels:
    """image_HWC, uint8 RGB, of a picture that Pillow has decoded, as `decode_image` has it; turned by nothing.

    Raises:
        BadImage: it is of floating-point pixels, or of 32-bit ones.
    """
    if picture.mode.startswith("I;16"):
        return np.repeat(_to_8_bits(picture)[..., None], 3, axis=2)
    if picture.mode in ("I", "F"):
        raise BadImage(f"pixels of mode {picture.mode!r}; expected 8 or 16 bits a channel")
    picture.info.pop("transparency", None)  # Pillow would translate it too, and warn where it cannot
    return np.array(picture.convert("RGB") if picture.mode != "RGB" else picture)


def decode_reduced(data: bytes, side: int) -> tuple[Pixels, int, int]:
    """Decodes a photo as `decode_image` does, but a large JPEG at a half, a quarter or an eighth of its size, the
    smallest of these whose shorter side has at least `side` pixels. That takes a fraction of the time and the memory.

    Returns:
        image_HWC, and width and height of the photo itself.

    Raises:
        BadImage: as `decode_image`.
    """
    with _opened(data, MAX_PIXELS, least_side=side) as (picture, (width, height)):
        return to_rgb(picture), width, height


def decode_alpha(data: bytes, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decodes a matte to alpha_HW, uint8: 0 is background, 255 is opaque; upright by its EXIF orientation.

    The alpha is the transparency channel where the file has one, unless that is opaque everywhere and the colours are
    grey: then, as where there is none, it is the grey values: 8-bit, 16-bit (scaled, rounded), 1-bit (0 or 255),
    palette, or RGB whose channels agree (its luma).

    Raises:
        BadImage: as `decode_image`, or the file is in colour and so is not a matte.
    """
    with _opened(data, max_pixels) as (picture, _):
        if picture.mode.startswith("I;16"):
            return _to_8_bits(picture)
        if picture.mode == "P" and "transparency" in picture.info:
            picture = picture.convert("RGBA")
        if picture.mode in ("RGBA", "LA", "PA"):
            alpha_HW = np.array(picture.getchannel("A"))
            picture = picture.convert("RGB")
            if alpha_HW.min() < 255 or not _is_grey(picture):
                return alpha_HW
        if picture.mode in ("1", "L"):
            return np.array(picture.convert("L"))
        if picture.mode not in ("P", "RGB"):
            raise BadImage(f"pixels of mode {picture.mode!r}, not a matte")
        picture.info.pop("transparency", None)
        picture = picture.convert("RGB")
        if not _is_grey(picture):
            raise BadImage("a picture in colour, not a matte")
        return np.array(picture.convert("L"))


def image_size(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) of the upright picture, from the header alone. Raises BadImage as `decode_image`, but cannot
    tell whether the pixels behind the header are whole."""
    with _opened(data, max_pixels, load=False) as (_, size):
        return size


def check_same_aspect(image_HWC: Pixels, alpha_HW: Pixels) -> None:
    """Raises BadImage unless image and matte can be of the same picture: their aspect ratios agree to 1 %, or to the
    pixel by which a scaled copy is rounded."""
    height, width = image_HWC.shape[:2]
    matte_height, matte_width = alpha_HW.shape
    apart = abs(width * matte_height - matte_width * height)
    rounding = max(width, height, matte_width, matte_height)
    if apart > max(rounding, 0.01 * width * matte_height):
        raise BadImage(f"image is {width}×{height}, matte {matte_width}×{matte_height}: not the same picture")


def decode_pair(image_bytes: bytes, matte_bytes: bytes) -> tuple[Pixels, Pixels]:
    """Decodes a photo and its matte to image_HWC and alpha_HW.

    Raises:
        BadImage: one of the two cannot be used, or both are not of the same picture; says which.
    """
    try:
        image_HWC = decode_image(image_bytes)
    except BadImage as error:
        raise BadImage(f"image: {error}") from error
    try:
        alpha_HW = decode_alpha(matte_bytes)
    except BadImage as error:
        raise BadImage(f"matte: {error}") from error
    for what, array in (("image", image_HWC), ("matte", alpha_HW)):
        height, width = array.shape[:2]
        if min(height, width) < MIN_PAIR_SIDE:
            raise BadImage(f"{what}: {width}×{height} pixels, fewer than {MIN_PAIR_SIDE} a side")
    check_same_aspect(image_HWC, alpha_HW)
    return image_HWC, alpha_HW


def resize(array: Pixels, width: int, height: int) -> Pixels:
    """Resizes image_HWC or alpha_HW by antialiased bilinear interpolation; the array itself where the size is right."""
    if array.shape[:2] == (height, width):
        return array
    return np.array(Image.fromarray(array).resize((width, height), Image.Resampling.BILINEAR))


def encode_png(array: Pixels) -> bytes:
    """PNG of alpha_HW, image_HWC or cutout_HWC (RGBA), uint8.

    Every row is stored as its difference from the one above (PNG's filter "up"), packed by run lengths and Huffman
    codes. Pillow tries all five filters on each row, which takes three to five times as long, and saves nothing on
    mattes and a few per cent on cutouts.

    Literature: Portable Network Graphics (PNG) Specification, third edition, W3C 2025.
    """
    height, width = array.shape[:2]
    values = array.reshape(height, -1)
    rows = np.empty((height, 1 + values.shape[1]), np.uint8)
    rows[:, 0] = 2  # the filter's number
    rows[0, 1:] = values[0]
    np.subtract(values[1:], values[:-1], out=rows[1:, 1:])  # modulo 256
    packer = zlib.compressobj(strategy=zlib.Z_RLE)
    packed = packer.compress(rows.data) + packer.flush()
    colours = {1: 0, 3: 2, 4: 6}[array.size // (height * width)]  # grey, RGB, RGBA
    header = struct.pack(">2I5B", width, height, 8, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def encode_webp(cutout_HWC: Pixels, quality: int = 90) -> bytes:
    """WebP of cutout_HWC (RGBA), uint8: colours with losses, and none where nothing shows; alpha without.

    Raises:
        BadImage: larger than a WebP can be.
    """
    height, width = cutout_HWC.shape[:2]
    if max(height, width) > MAX_WEBP_SIDE:
        raise BadImage(f"{width}×{height} pixels, more than the {MAX_WEBP_SIDE:,} a side that WebP holds; choose PNG")
    buffer = BytesIO()
    Image.fromarray(cutout_HWC).save(buffer, "WEBP", quality=quality, method=0, alpha_quality=100)
    return buffer.getvalue()


def encode_jpeg(image_HWC: Pixels, quality: int = 95) -> bytes:
    """JPEG of image_HWC, uint8 RGB, its colours at full resolution (4:4:4)."""
    buffer = BytesIO()
    Image.fromarray(image_HWC).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


class _Jpeg(JpegImageFile):
    """Does without Pillow's reading of the EXIF data, which is slow and warns about what is corrupt in it."""

    def getexif(self) -> Image.Exif:
        return Image.Exif()


def _plugin(data: bytes) -> type[ImageFile]:
    if data.startswith(b"\xff\xd8\xff"):
        return _Jpeg
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImageFile
    if data.startswith(b"BM"):
        return BmpImageFile
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return TiffImageFile
    if data.startswith((b"GIF87a", b"GIF89a")):
        return GifImageFile
    if not data:
        raise BadImage("empty file")
    if data[4:8] == b"ftyp":
        raise BadImage(f"a format that is not read here ({data[8:12].decode('ascii', 'replace')}); convert it to JPEG")
    kind = next((kind for start, kind in _NOT_IMAGES.items() if data.lstrip().startswith(start)), repr(data[:8]))
    raise BadImage(f"not an image ({kind})")


@contextmanager
def _opened(
    data: bytes, max_pixels: int, load: bool = True, least_side: int | None = None
) -> Iterator[tuple[Image.Image, tuple[int, int]]]:
    """The picture, upright where it is loaded and reduced as `decode_reduced` says, and (width, height) of the whole
    upright one. Any error in the block, of which Pillow has no common type, becomes BadImage."""
    plugin = _plugin(data)
    name = plugin.format
    # Two formats can warn at any time. The filters are all threads' and are not restored safely when threads meet here,
    # so this one is as narrow as can be, and is set only for these formats.
    chatty = plugin is TiffImageFile or (plugin is PngImageFile and b"acTL" in data)
    try:
        with warnings.catch_warnings() if chatty else nullcontext():
            if chatty:
                warnings.filterwarnings("ignore", module=r"PIL\.")
            picture: Image.Image = plugin(BytesIO(data))
            width, height = picture.size
            if width * height > max_pixels:
                raise BadImage(f"{width}×{height} pixels, more than the limit of {max_pixels:,}")
            if plugin is _Jpeg and _jpeg_scans(data) > MAX_JPEG_SCANS:
                raise BadImage(f"a JPEG of more than {MAX_JPEG_SCANS} scans, which would take very long to decode")
            orientation = _orientation(picture)
            if load:
                if least_side:
                    picture.draft(picture.mode, (least_side, least_side))
                picture.load()
                if orientation in _UPRIGHT:
                    picture = picture.transpose(_UPRIGHT[orientation])
            yield picture, (height, width) if orientation >= 5 else (width, height)
    except BadImage:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImage(f"{'truncated' if 'truncated' in reason.lower() else 'damaged'} {name}: {reason}") from error


def _jpeg_scans(data: bytes) -> int:
    scans = place = 0
    while (marker := _JPEG_MARKER.search(data, place)) and marker[1] != b"\xd9":  # end of image
        scans += marker[1] == b"\xda"
        place = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return scans


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def _is_grey(picture: Image.Image) -> bool:
    """Whether the channels of an RGB picture agree."""
    return bool(np.ptp(np.asarray(picture), axis=2).max() <= _GREY_TOLERANCE)


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none or it cannot be read. Of a TIFF, Pillow has seen to it."""
    exif = picture.info.get("exif", b"").removeprefix(b"Exif\0\0")
    try:
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, directory)
        for entry in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, value = struct.unpack_from(f"{order}H6xH", exif, entry)
            if tag == 0x0112:
                return int(value) if value in _UPRIGHT else 1
    except (KeyError, struct.error):
        pass  # damaged EXIF data says nothing about the pixels
    return 1


def _to_8_bits(picture: Image.Image) -> Pixels:
    return ((np.asarray(picture).astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 / 255 = 257
