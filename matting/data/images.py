"""Decode and encode image files: bytes <-> uint8 arrays.

    bytes of a photo  -> decode_image -> image_HWC (RGB)    -> encode_jpeg, encode_png, encode_webp -> bytes
    bytes of a matte  -> decode_alpha -> alpha_HW (0 … 255) -> encode_png -> bytes

JPEG, PNG, WebP, BMP, TIFF and GIF can be read; an animation gives its first frame. Images come upright, by their EXIF
orientation. Colour profiles are not applied. Everything that can be wrong with a file raises one type, BadImage.

Many threads may decode at the same time, so none of Pillow's global settings is touched. Each format's plugin is called
directly, because `Image.open` checks sizes against a global limit and warns. No function takes a path.
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
from PIL import ExifTags, Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

Pixels = NDArray[np.uint8]

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif")

# 320 MB in Pillow and 240 MB as an array. Cameras of 64 megapixels stay below it, and it stays below Pillow's own limit
# of 89 million, so that only this one applies.
MAX_PIXELS = 80_000_000

# Size of the largest file that is fetched: the largest image as uncompressed 16-bit RGBA.
MAX_IMAGE_BYTES = 8 * MAX_PIXELS

# A progressive JPEG has about ten. Each scan costs time in proportion to the pixels, and may hold no bytes at all.
MAX_JPEG_SCANS = 100

MAX_WEBP_SIDE = 16_383
MAX_JPEG_SIDE = 65_500  # of libjpeg, a little less than the format's own

# Largest difference between the channels of a grey matte stored as RGB, after JPEG's rounding. Photos exceed it.
_GREY_TOLERANCE = 16

_TO_UPRIGHT = {  # EXIF orientation -> transposition that undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # starts a segment, whose length follows

_NOT_IMAGES = {b"<": "HTML or XML?", b"{": "JSON?", b"%PDF": "PDF", b"PK\x03\x04": "a zip file", b"\x1f\x8b": "gzip"}


class BadImage(ValueError):
    """Bytes that are no usable image. The message gives the reason in one line."""


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode a photo to image_HWC, uint8 RGB, upright by its EXIF orientation.

    Transparent images keep their stored colours, also where they are fully transparent. 16-bit grey is scaled to 8 bits
    (rounded); 16-bit colour keeps its upper 8 bits.

    Raises:
        BadImage: The bytes are no image, are damaged or truncated, have more than `max_pixels`, hold floating-point
            pixels, or were made to take very long to decode.
    """
    with _opened(data, max_pixels) as (image, _):
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Pixels:
    """Convert an image that Pillow has decoded to image_HWC, uint8 RGB, as `decode_image` does, but without turning it.

    Raises:
        BadImage: The pixels are floating-point or 32-bit.
    """
    if image.mode.startswith("I;16"):
        return np.repeat(_to_8_bits(image)[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise BadImage(f"pixels of mode {image.mode!r}; expected 8 or 16 bits a channel")
    return np.array(_without_transparency(image).convert("RGB") if image.mode != "RGB" else image)


def upright(image: Image.Image) -> Image.Image:
    """Turn an image by its EXIF orientation, as `decode_image` does.

    Returns:
        A turned copy without EXIF data, or the image itself where it is upright already. Missing and damaged EXIF data
        count as upright.
    """
    image.load()  # turns a TIFF, and reads the EXIF data that a PNG has after its pixels
    return _turned(image, _orientation(image))


def decode_reduced(data: bytes, side: int) -> tuple[Pixels, int, int]:
    """Decode a photo as `decode_image` does, but a large JPEG at a half, a quarter or an eighth of its size.

    The size is the smallest of these whose shorter side has at least `side` pixels. This takes a fraction of the time
    and memory.

    Returns:
        image_HWC, and the width and height of the whole photo.

    Raises:
        BadImage: See `decode_image`.
    """
    with _opened(data, MAX_PIXELS, least_side=side) as (image, (width, height)):
        return to_rgb(image), width, height


def decode_alpha(data: bytes, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode a matte to alpha_HW, uint8: 0 is background, 255 is opaque; upright by its EXIF orientation.

    A transparency channel is the alpha, unless it is opaque everywhere and the colours are grey. Otherwise the alpha is
    the grey values: 8-bit, 16-bit (scaled, rounded), 1-bit (0 or 255), palette, or RGB whose channels agree (its luma).

    Raises:
        BadImage: See `decode_image`; or the file is in colour, and so is not a matte.
    """
    with _opened(data, max_pixels) as (image, _):
        if image.mode.startswith("I;16"):
            return _to_8_bits(image)
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        if image.mode in ("RGBA", "LA", "PA"):
            alpha_HW = np.array(image.getchannel("A"))
            image = image.convert("RGB")
            if alpha_HW.min() < 255 or not _is_grey(image):
                return alpha_HW
        if image.mode in ("1", "L"):
            return np.array(image.convert("L"))
        if image.mode not in ("P", "RGB"):
            raise BadImage(f"pixels of mode {image.mode!r}, not a matte")
        image = _without_transparency(image).convert("RGB")
        if not _is_grey(image):
            raise BadImage("an image in colour, not a matte")
        return np.array(image.convert("L"))


def image_size(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return (width, height) of the upright image, from its header alone.

    The pixels behind the header may be damaged. EXIF data that a PNG has after its pixels is not read.

    Raises:
        BadImage: See `decode_image`.
    """
    with _opened(data, max_pixels, load=False) as (_, size):
        return size


def resize(array: Pixels, width: int, height: int) -> Pixels:
    """Resize image_HWC or alpha_HW by antialiased bilinear interpolation; return the array itself if the size fits."""
    if array.shape[:2] == (height, width):
        return array
    return np.array(Image.fromarray(array).resize((width, height), Image.Resampling.BILINEAR))


def encode_png(array: Pixels) -> bytes:
    """Encode alpha_HW, image_HWC or cutout_HWC (RGBA), uint8, as PNG.

    Every row is stored as its difference from the row above (PNG's filter "up"), compressed by run lengths and Huffman
    codes. Pillow tries all five filters on each row. That takes three to five times as long, saves nothing on mattes
    and a few per cent on cutouts.

    Literature: Portable Network Graphics (PNG) Specification, third edition, W3C 2025.
    """
    height, width = array.shape[:2]
    values = array.reshape(height, -1)
    rows = np.empty((height, 1 + values.shape[1]), np.uint8)
    rows[:, 0] = 2  # number of the filter
    rows[0, 1:] = values[0]
    np.subtract(values[1:], values[:-1], out=rows[1:, 1:])  # modulo 256
    compressor = zlib.compressobj(strategy=zlib.Z_RLE)
    compressed = compressor.compress(rows.data) + compressor.flush()
    colour_type = {1: 0, 3: 2, 4: 6}[array.size // (height * width)]  # grey, RGB, RGBA
    header = struct.pack(">2I5B", width, height, 8, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", compressed) + _chunk(b"IEND", b"")


def encode_webp(cutout_HWC: Pixels, quality: int = 90) -> bytes:
    """Encode cutout_HWC (RGBA) or image_HWC, uint8, as WebP: lossy colours, none under alpha 0, and lossless alpha.

    Raises:
        BadImage: A side is longer than WebP allows.
    """
    height, width = cutout_HWC.shape[:2]
    if max(height, width) > MAX_WEBP_SIDE:
        raise BadImage(f"{width}×{height} pixels, more than the {MAX_WEBP_SIDE:,} a side that WebP holds; choose PNG")
    buffer = BytesIO()
    Image.fromarray(cutout_HWC).save(buffer, "WEBP", quality=quality, method=0, alpha_quality=100)
    return buffer.getvalue()


def encode_jpeg(image_HWC: Pixels, quality: int = 95) -> bytes:
    """Encode image_HWC, uint8 RGB, as JPEG with its colours at full resolution (4:4:4).

    Raises:
        BadImage: A side is longer than JPEG allows.
    """
    height, width = image_HWC.shape[:2]
    if max(height, width) > MAX_JPEG_SIDE:
        raise BadImage(f"{width}×{height} pixels, more than the {MAX_JPEG_SIDE:,} a side that JPEG holds; choose PNG")
    buffer = BytesIO()
    Image.fromarray(image_HWC).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


class _Jpeg(JpegImageFile):
    """JPEG plugin that does not parse all EXIF data on opening, which is slow and warns about damage."""

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
    """Open an image, upright if it is loaded, reduced as in `decode_reduced`; and (width, height) of the whole one.

    Any error inside the block becomes BadImage, because Pillow's errors have no common type.
    """
    plugin = _plugin(data)
    name = plugin.format
    # Only these two formats warn at any time. Python's warning filters belong to all threads, and overlapping blocks do
    # not restore them reliably: so the filter is narrow, and set for these formats alone.
    may_warn = plugin is TiffImageFile or (plugin is PngImageFile and b"acTL" in data)
    try:
        with warnings.catch_warnings() if may_warn else nullcontext():
            if may_warn:
                warnings.filterwarnings("ignore", module=r"PIL\.")
            image: Image.Image = plugin(BytesIO(data))
            width, height = image.size
            if width * height > max_pixels:
                raise BadImage(f"{width}×{height} pixels, more than the limit of {max_pixels:,}")
            if plugin is _Jpeg and _jpeg_scans(data) > MAX_JPEG_SCANS:
                raise BadImage(f"a JPEG of more than {MAX_JPEG_SCANS} scans, which would take very long to decode")
            if load:
                if least_side:
                    image.draft(image.mode, (least_side, least_side))
                image.load()
            orientation = _orientation(image)
            if load:
                image = _turned(image, orientation)
            yield image, (height, width) if orientation >= 5 else (width, height)
    except BadImage:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImage(f"{'truncated' if 'truncated' in reason.lower() else 'damaged'} {name}: {reason}") from error


def _jpeg_scans(data: bytes) -> int:
    scans = position = 0
    while (marker := _JPEG_MARKER.search(data, position)) and marker[1] != b"\xd9":  # end of image
        scans += marker[1] == b"\xda"
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return scans


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def _is_grey(image: Image.Image) -> bool:
    """Return whether the channels of an RGB image agree."""
    return bool(np.ptp(np.asarray(image), axis=2).max() <= _GREY_TOLERANCE)


def _without_transparency(image: Image.Image) -> Image.Image:
    """Drop the colour that a palette or PNG declares transparent. Pillow would convert it, and warn where it cannot."""
    if "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]
    return image


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    if orientation not in _TO_UPRIGHT:
        return image
    image = image.transpose(_TO_UPRIGHT[orientation])
    image.info.pop("exif", None)  # else the copy would count as lying
    return image


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 (upright) where it is missing or damaged.

    Pillow's own reader reports damage by warnings, which cannot be silenced safely while other threads decode, and it
    parses every tag, which takes a tenth of the time that a small photo takes. A TIFF's tag is not EXIF data here:
    Pillow turns a TIFF while it loads the pixels.
    """
    exif = (image.info.get("exif") or b"").removeprefix(b"Exif\0\0")
    try:
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, directory)
        for entry in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, value = struct.unpack_from(f"{order}H6xH", exif, entry)
            if tag == ExifTags.Base.Orientation:
                return int(value) if value in _TO_UPRIGHT else 1
    except (KeyError, struct.error):
        pass  # damaged EXIF data says nothing about the pixels
    return 1


def _to_8_bits(image: Image.Image) -> Pixels:
    return ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 / 255 = 257
