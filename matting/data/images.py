"""Decode and encode image files: bytes <-> uint8 arrays.

    bytes of a photo  -> decode_photo, decode_image -> image_HWC (RGB) -> encode_jpeg, encode_png, encode_webp -> bytes
    bytes of a matte  -> decode_alpha -> alpha_HW (0 … 255)            -> encode_png -> bytes

JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF and, with the extra `heif`, HEIC can be read; an animation gives its first frame.
The rules for formats, damage, orientation and colours are in `decoding`. Images come upright and in sRGB. Everything
that can be wrong with a file raises one type, BadImage. No function takes a path.
"""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.GifImagePlugin import GifImageFile
from PIL.PngImagePlugin import PngImageFile

from matting.data.decoding import color, formats, jpeg, matte_values, named_colors, orientation, png, tiff
from matting.data.decoding.errors import BadImage as BadImage
from matting.data.decoding.formats import IMAGE_SUFFIXES as IMAGE_SUFFIXES

Pixels = NDArray[np.uint8]
StoredMatte = NDArray[np.uint8] | NDArray[np.uint16]

# Predicting a photo of this size takes 2.3 GB for its alpha and 4.1 GB for its cutout.
MAX_PIXELS = 120_000_000

# Size of the largest file that is fetched: 80 million pixels as uncompressed 16-bit RGBA, 120 million as 8-bit RGBA.
MAX_IMAGE_BYTES = 640_000_000

MAX_WEBP_SIDE = 16_383
MAX_JPEG_SIDE = 65_500  # of libjpeg, a little less than the format's own


@dataclass(frozen=True)
class DecodedPhoto:
    """A photo, upright and in sRGB.

    Args:
        image_HWC: Pixels, uint8 RGB, at the photo's size or reduced.
        width, height: Size of the whole photo.
        opacity_HW: The photo's own opacity at its whole size, uint8, 255 is opaque; None where all of it is.
        profile: Colour profile of the stored RGB numbers; None if they are sRGB, or cannot be kept in RGB.
        warning: Damage that left all pixels in place, or why colours may be off; None if nothing is wrong.
        orientation: Orientation of the stored pixels, 1 to 8 as in EXIF; 1 is upright.
    """

    image_HWC: Pixels
    width: int
    height: int
    opacity_HW: Pixels | None = None
    profile: bytes | None = None
    warning: str | None = None
    orientation: int = 1

    def limit(self, alpha_HW: Pixels) -> Pixels:
        """Multiply a predicted alpha of the photo's size with the photo's own opacity."""
        return alpha_HW if self.opacity_HW is None else multiply(alpha_HW, self.opacity_HW)


class DecodedMatte(NamedTuple):
    """A matte, upright.

    Attributes:
        matte_HW: Stored values, uint8 or uint16.
        orientation: Orientation of the stored pixels, 1 to 8 as in EXIF; 1 is upright.
        warning: Damage that left all pixels in place; None if there is none.
    """

    matte_HW: StoredMatte
    orientation: int
    warning: str | None


def multiply(alpha_HW: Pixels, opacity_HW: Pixels) -> Pixels:
    """Multiply two opacities of one size, uint8, 255 is opaque."""
    return ((alpha_HW.astype(np.uint16) * opacity_HW + 127) // 255).astype(np.uint8)


def decode_photo(data: bytes, side: int | None = None, max_pixels: int = MAX_PIXELS) -> DecodedPhoto:
    """Decode a photo, upright and in sRGB; with `side`, a large JPEG at a half, a quarter or an eighth of its size.

    The size is the smallest of these whose shorter side has at least `side` pixels. This takes a fraction of the time
    and memory. Transparent images keep their stored colours, also where they are fully transparent. 16-bit grey is
    scaled to 8 bits (rounded); 16-bit colour keeps its upper 8 bits.

    Raises:
        BadImage: The bytes are no image, are damaged or truncated, have more than `max_pixels`, hold floating-point
            pixels, are of a kind that cannot be decoded right, or were made to take very long to decode.
    """
    with _opened(data, max_pixels, least_side=side) as opened:
        return _decoded(opened)


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode a whole photo to image_HWC, uint8 RGB, upright and in sRGB.

    Raises:
        BadImage: See `decode_photo`.
    """
    with _opened(data, max_pixels) as opened:
        return np.array(color.to_srgb(color.as_8_bits(opened.image)))


def decode_stored(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[Pixels, bytes | None]:
    """Decode a whole photo to image_HWC, uint8 RGB, upright, with the numbers that it stores, and their profile.

    Returns:
        The stored numbers and their colour profile, if they are RGB; sRGB and None otherwise.

    Raises:
        BadImage: See `decode_photo`.
    """
    with _opened(data, max_pixels) as opened:
        profile = color.kept_profile(opened.image)
        colors = color.as_8_bits(opened.image)
        return np.array(colors if profile else color.to_srgb(colors)), profile


def from_pillow(image: Image.Image) -> DecodedPhoto:
    """Decode a photo that Pillow has opened, as `decode_photo` does from its bytes.

    Pillow does not tell colours that are named by CICP alone, or by EXIF data in a TIFF; they count as sRGB here.

    Raises:
        BadImage: See `decode_photo`.
    """
    if tags := getattr(image, "tag_v2", None):
        tiff.check_variant(tags)
    image.load()  # reads what a PNG has after its pixels
    warning = named_colors.define_colors(image)
    image = tiff.corrected(orientation.upright(image))
    return _decoded(_Opened(image, *image.size, warning))


def decode_alpha(data: bytes, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode a matte to alpha_HW, uint8: 0 is background, 255 is opaque; upright. Colour profiles are not applied.

    These are the values of `decode_matte`, those of 16 bits scaled and rounded.

    Raises:
        BadImage: See `decode_matte`.
    """
    matte_HW = decode_matte(data, max_pixels).matte_HW
    return color.to_8_bits(matte_HW) if matte_HW.dtype == np.uint16 else matte_HW.astype(np.uint8, copy=False)


def decode_matte(data: bytes, max_pixels: int = MAX_PIXELS) -> DecodedMatte:
    """Decode a matte to its stored values, upright.

    A transparency channel is the matte, unless it is opaque everywhere and the colours are grey. Otherwise the matte is
    the grey values: 8-bit, 16-bit, 1-bit (0 or 255), palette, or RGB whose channels agree (its luma). Values of 16 bits
    keep them all, in grey and in RGB.

    Raises:
        BadImage: See `decode_photo`; or the file is in colour, and so is not a matte.
    """
    with _opened(data, max_pixels) as opened:
        if not matte_values.has_deep_channels(opened.raw_mode):
            return DecodedMatte(matte_values.matte_values(opened.image), opened.orientation, opened.warning)
        with _opened(data, max_pixels, lower_bytes=True) as lower:
            values_HW = matte_values.join_bytes(opened.image, lower.image, opened.raw_mode)
        return DecodedMatte(values_HW, opened.orientation, opened.warning)


def image_size(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return (width, height) of the upright image, from its header alone.

    The pixels behind the header may be damaged. EXIF data that a PNG has after its pixels is not read.

    Raises:
        BadImage: See `decode_photo`.
    """
    with _opened(data, max_pixels, load=False) as opened:
        return opened.width, opened.height


def resize(array: Pixels, width: int, height: int) -> Pixels:
    """Resize image_HWC or alpha_HW by antialiased bilinear interpolation; return the array itself if the size fits."""
    if array.shape[:2] == (height, width):
        return array
    return np.array(Image.fromarray(array).resize((width, height), Image.Resampling.BILINEAR))


def encode_png(array: Pixels, profile: bytes | None = None) -> bytes:
    """Encode alpha_HW, image_HWC or cutout_HWC (RGBA), uint8, as PNG; with the colour profile of its numbers, if any.

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
    chunks = [(b"IHDR", header), (b"IDAT", compressed), (b"IEND", b"")]
    if profile:
        chunks.insert(1, (b"iCCP", b"ICC profile\0\0" + zlib.compress(profile)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png.png_chunk(*chunk) for chunk in chunks)


def encode_webp(cutout_HWC: Pixels, quality: int = 90, profile: bytes | None = None) -> bytes:
    """Encode cutout_HWC (RGBA) or image_HWC, uint8, as WebP: lossy colours, none under alpha 0, and lossless alpha.

    Raises:
        BadImage: A side is longer than WebP allows.
    """
    height, width = cutout_HWC.shape[:2]
    if max(height, width) > MAX_WEBP_SIDE:
        raise BadImage(f"{width}×{height} pixels, more than the {MAX_WEBP_SIDE:,} a side that WebP holds; choose PNG")
    buffer = BytesIO()
    Image.fromarray(cutout_HWC).save(
        buffer, "WEBP", quality=quality, method=0, alpha_quality=100, icc_profile=profile or b""
    )
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


class _Opened(NamedTuple):
    """An upright image, perhaps reduced; width and height of the whole one; a warning; how its pixels were stored."""

    image: Image.Image
    width: int
    height: int
    warning: str | None
    orientation: int = 1
    raw_mode: str = ""


@contextmanager
def _opened(
    data: bytes, max_pixels: int, load: bool = True, least_side: int | None = None, lower_bytes: bool = False
) -> Iterator[_Opened]:
    """Open an image, upright if it is loaded, reduced as in `decode_photo`; or with the lower bytes of 16 bits.

    Any error inside the block becomes BadImage, because Pillow's errors have no common type.
    """
    plugin = formats.plugin_of(data)
    # Only these formats warn at any time. Python's warning filters belong to all threads, and overlapping blocks do
    # not restore them reliably: so the filter is narrow, and set for these formats alone.
    may_warn = plugin in (tiff.Tiff, GifImageFile)
    warning = None
    try:
        with warnings.catch_warnings() if may_warn else nullcontext():
            if may_warn:
                warnings.filterwarnings("ignore", module=r"PIL\.")
            if plugin is PngImageFile:
                data, warning = png.mend_png(data, max_pixels)
            elif plugin is tiff.Tiff:
                tiff.check_directory(data)
            opened_jpeg = jpeg.open_jpeg(data) if plugin is jpeg.Jpeg else None
            image: Image.Image = opened_jpeg.image if opened_jpeg else plugin(BytesIO(data))
            raw_mode = matte_values.raw_mode_of(image)
            if lower_bytes:
                matte_values.swap_bytes(image)
            width, height = image.size
            if width * height > max_pixels:
                raise BadImage(f"{width}×{height} pixels, more than the limit of {max_pixels:,}")
            if load and opened_jpeg:
                image, warning = jpeg.load_jpeg(opened_jpeg, least_side)
            elif load:
                image.load()
            if plugin is PngImageFile and image.mode == "L" and image.info.get("transparency"):
                image.info["transparency"] *= 255 // (2 ** min(data[24], 8) - 1)  # Pillow scales the pixels alone
            warning = "; ".join(filter(None, (warning, named_colors.define_colors(image, data)))) or None
            lies = orientation.orientation_of(image)
            if load:
                image = orientation.turned(tiff.corrected(image), lies)
            yield _Opened(image, *((height, width) if lies >= 5 else (width, height)), warning, lies, raw_mode)
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(f"more pixels than Pillow decodes of a {plugin.format}; convert it to JPEG or PNG") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        how = "truncated" if "truncated" in reason.lower() else "damaged"
        raise BadImage(f"{how} {plugin.format}: {reason}") from error


def _decoded(opened: _Opened) -> DecodedPhoto:
    image, width, height, warning, lies, _ = opened
    image_HWC = np.array(color.to_srgb(color.as_8_bits(image)))
    problems = [warning, color.UNREADABLE_PROFILE if color.has_unusable_profile(image) else None]
    return DecodedPhoto(
        image_HWC,
        width,
        height,
        color.opacity_of(image),
        color.kept_profile(image),
        "; ".join(problem for problem in problems if problem) or None,
        lies,
    )
