"""Formats of image files, recognised by their first bytes: data -> Pillow's plugin, which opens them.

Many threads may decode at the same time, so none of Pillow's global settings is touched. Each format's plugin is called
directly, because `Image.open` checks sizes against a global limit and warns.
"""

from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from matting.data.decoding.errors import BadImage
from matting.data.decoding.jpeg import Jpeg
from matting.data.decoding.tiff import Tiff

# "heic" and its relatives need the extra `heif`. They are photos without it too, so that they are counted as failures.
IMAGE_SUFFIXES = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "tif", "tiff", "gif"),
    *("avif", "heic", "heif", "hif"),
)

_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"mif2", b"msf1"}

_OTHER_FORMATS = {
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"II\xbc": "JPEG XR",
    b"\x8bJNG": "JNG",
    b"8BPS": "Photoshop",
    b"gimp xcf": "GIMP",
    b"\0\0\1\0": "icon",
    b"icns": "icon",
    b"DDS ": "DirectDraw",
    b"qoif": "QOI",
    b"v/1\1": "OpenEXR",
    b"#?R": "Radiance HDR",
    b"%!PS": "PostScript",
    b"\n\5\1": "PCX",
    b"\1\xda": "SGI",
    **{b"P%d" % number: "Netpbm" for number in range(1, 8)},
    b"II*\0\x10\0\0\0CR": "Canon's raw format",
    b"II\x1a\0\0\0HEAPCCDR": "Canon's raw format",
    b"IIRO": "Olympus' raw format",
    b"IIU\0": "Panasonic's raw format",
    b"FUJIFILMCCD-RAW": "Fujifilm's raw format",
}

_NOT_IMAGES = {
    b"<": "HTML or XML?",
    b"{": "JSON?",
    b"\xef\xbf\xbd": "binary data that were changed to text; fetch the file again",
    b"%PDF": "PDF",
    b"PK\x03\x04": "a zip file",
    b"\x1f\x8b": "gzip",
    b"version https://git-lfs": "a pointer of Git LFS; fetch the file itself",
}


def plugin_of(data: bytes) -> type[ImageFile]:
    """Return the plugin for an image's format.

    Raises:
        BadImage: The format is not read here. The message names it, and the cure if there is one.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return Jpeg
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImageFile
    if name := next((name for start, name in _OTHER_FORMATS.items() if data.startswith(start)), None):
        raise BadImage(f"a format that is not read here ({name}); convert it to JPEG")
    if data.startswith(b"BM"):
        return BmpImageFile
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return Tiff
    if data.startswith((b"GIF87a", b"GIF89a")):
        return GifImageFile
    if not data:
        raise BadImage("empty file")
    if data[4:8] == b"ftyp":
        return _plugin_of_boxes(data)
    kind = next((kind for start, kind in _NOT_IMAGES.items() if data.lstrip().startswith(start)), repr(data[:8]))
    raise BadImage(f"not an image ({kind})")


def _plugin_of_boxes(data: bytes) -> type[ImageFile]:
    """Return the plugin for a file of ISO boxes: AVIF and HEIC share the container, and the brands tell them apart."""
    size = int.from_bytes(data[:4])
    major, compatible = data[8:12], {data[start : start + 4] for start in range(16, min(size, 256), 4)}
    if major in _AVIF_BRANDS or (major not in _HEIF_BRANDS - {b"mif1", b"msf1"} and compatible & _AVIF_BRANDS):
        return AvifImageFile
    name = major.decode("ascii", "replace")
    if not ({major} | compatible) & _HEIF_BRANDS:
        raise BadImage(f"a format that is not read here ({name}); convert it to JPEG")
    try:
        from pillow_heif import HeifImageFile  # an extra
    except ImportError as error:
        raise BadImage(
            f'a HEIC photo ({name}), which needs pillow-heif: pip install "matting[heif]" on every node, or '
            "convert it to JPEG"
        ) from error
    heif: type[ImageFile] = HeifImageFile
    return heif
