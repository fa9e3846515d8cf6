"""JPEG: kinds that are read, and damage that viewers overlook.

    check_scans  bytes -> whether all scans are there; kinds that are not read here are refused by name
    open_jpeg    bytes -> OpenedJpeg: image, without damaged metadata
    load_jpeg    OpenedJpeg -> pixels, with a warning where the end is missing and every row of blocks is there

The decoder fills what is missing and does not say so. A file that lacks rows is refused, whether it has an end or not.

Literature: ITU-T T.81, "Digital compression and coding of continuous-tone still images", 1992, annex B.
"""

import re
from collections.abc import Iterator
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from matting.data.decoding.errors import BadImage

# A progressive JPEG has about ten. Each scan costs time in proportion to the pixels, and may hold no bytes at all.
MAX_SCANS = 100

_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # starts a segment, whose length follows
_START_OF_SCAN, _END, _JPEG_LS = 0xDA, 0xD9, 0xF7
_NO_FRAMES = (0xC4, 0xC8, 0xCC)  # among the markers of frames
_END_OF_IMAGE = b"\xff\xd9"
_PADDINGS = (bytes(64), b"\xff" * 64)  # what a file system, a download or an erased disk leaves in place of the end
_OTHER_BITS = bytes(range(1, 128)) * 2  # any data that decodes to other blocks than missing data do
_ALL_BITS = (1 << 64) - 1  # one for each of a block's coefficients
_LEAST_CRLF = 8  # so many line feeds follow a carriage return by chance in one file of 2^64

# Starts of segments that Pillow reads, and the least length of the whole content
_METADATA = ((b"JFIF", 9), (b"ICC_PROFILE\0", 14), (b"Photoshop 3.0\0", 1 << 16), (b"Adobe", 12))


class Jpeg(JpegImageFile):
    """JPEG plugin that does not parse all EXIF data on opening, which is slow and warns about damage."""

    def getexif(self) -> Image.Exif:
        """Return no EXIF data; `orientation` reads what is needed."""
        return Image.Exif()


def check_scans(data: bytes) -> bool:
    """Check that a JPEG is of a kind that is read, from its segments.

    Returns:
        Whether the scans bring every coefficient to its full precision; a progressive JPEG takes about ten for that.

    Raises:
        BadImage: It is of a kind that is not read here, has no pixels, or so many scans that it would take very long
            to decode.
    """
    missing: dict[int, int] = {}  # component -> bits of the coefficients that are not at full precision
    count = 0
    for kind, start, end in _segments(data):
        if kind == _START_OF_SCAN:
            count += 1
            _count_off(missing, data[start:end])
        elif kind == _JPEG_LS or (0xC0 <= kind <= 0xCF and kind not in _NO_FRAMES):
            is_lossless = kind & 3 == 3
            missing = dict.fromkeys(_components(kind, data[start:end]), 0 if is_lossless else _ALL_BITS)
    if not missing or not count:
        raise BadImage("truncated JPEG: it ends before its pixels")
    if count > MAX_SCANS:
        raise BadImage(f"a JPEG of more than {MAX_SCANS} scans, which would take very long to decode")
    return not any(missing.values())


class OpenedJpeg(NamedTuple):
    """A JPEG that is not decoded yet.

    Attributes:
        image: Its image, not loaded.
        data: The bytes that it is decoded from.
        is_complete: Whether no scan is missing; see `check_scans`.
        warning: What was left out of its metadata; None if nothing was.
    """

    image: Jpeg
    data: bytes
    is_complete: bool
    warning: str | None


def open_jpeg(data: bytes) -> OpenedJpeg:
    """Open a JPEG, without metadata that cannot be read.

    Raises:
        BadImage: See `check_scans`; or the file was damaged in a transfer as text.
        SyntaxError: Another part of it cannot be read.
    """
    if data.endswith(_PADDINGS):  # the decoder would take it for pixels
        data = data.rstrip(b"\0\xff")
    warning = None
    try:
        image = Jpeg(BytesIO(data))
    except SyntaxError:
        check_scans(data)
        data = _without_bad_metadata(data)
        image = Jpeg(BytesIO(data))
        warning = "some of its metadata are damaged, and were left out"
    assert image.fp is not None  # open until the pixels are loaded
    pixels = image.fp.tell()
    _check_transfer(data, pixels)
    # Most files are not progressive, and have one scan of all components. The decoder refuses another one behind it.
    length = 6 + 2 * image.layers  # of such a scan's header
    is_simple = "progressive" not in image.info and data[pixels - length : pixels - length + 3] == bytes(
        [0, length, image.layers]
    )
    is_complete = is_simple or check_scans(data)
    return OpenedJpeg(image, data, is_complete, warning)


def load_jpeg(opened: OpenedJpeg, least_side: int | None) -> tuple[Image.Image, str | None]:
    """Decode a JPEG, perhaps reduced.

    The decoder gives rows that the file lacks one colour. So where the last row has one, or the end is missing, the
    file is decoded again with other bits before its end: rows that differ are those that it lacks.

    Args:
        opened: The JPEG.
        least_side: Pixels that the shorter side of a reduced image has at least; None for the whole size.

    Returns:
        The image, and a warning if its end, its last row of blocks or its last scans are missing.

    Raises:
        BadImage: Rows are missing.
        OSError: The decoder fails.
    """
    image, data, is_complete, warning = opened
    try:
        _load(image, least_side)
    except OSError:
        if not is_complete or _find_end(data) is not None:
            raise
        body = data.rstrip(b"\xff")
        image = _load(Jpeg(BytesIO(body + _END_OF_IMAGE)), least_side)
        warning = "its end is missing; all pixels are there"
    else:
        if not is_complete:
            warning = "its last scans are missing, so it is less sharp than it was"
        if not _is_of_one_color(image):
            return image, warning
        body = data[: _find_end(data)].rstrip(b"\xff")
    other = _load(Jpeg(BytesIO(body + _OTHER_BITS + _END_OF_IMAGE)), least_side)
    differing = np.flatnonzero((np.asarray(image) != np.asarray(other)).reshape(image.height, -1).any(axis=1))
    if not len(differing):
        return image, warning
    if differing[0] < _last_block_row(image):
        raise BadImage("truncated JPEG: its last rows of pixels are missing")
    return image, "its last bytes are missing; blocks in its last rows of pixels are filled in"


def _load(image: Jpeg, least_side: int | None) -> Jpeg:
    if least_side:
        image.draft(image.mode, (least_side, least_side))
    image.load()
    return image


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the kind of each segment, and the offsets of its content's start and end, up to the end of the image."""
    position = 0
    while marker := _MARKER.search(data, position):
        start = marker.end()
        length = data[start] << 8 | data[start + 1] if start + 1 < len(data) else 0
        position = start + length
        yield marker[1][0], start + 2, position
        if marker[1][0] == _END:
            return


def _find_end(data: bytes) -> int | None:
    """Return the offset of the end mark; None if there is none."""
    return next((start - 4 for kind, start, _ in _segments(data) if kind == _END), None)


def _without_bad_metadata(data: bytes) -> bytes:
    """Return a JPEG without segments of metadata that are too short for what they say they are."""
    kept, position = [], 0
    for kind, start, end in _segments(data):
        if kind in (_START_OF_SCAN, _END):
            break
        if any(data.startswith(name, start) and end - start < least for name, least in _METADATA):
            kept.append(data[position : start - 4])
            position = end
    return b"".join(kept) + data[position:]


def _check_transfer(data: bytes, pixels: int) -> None:
    """Check that pixels from this offset on have line feeds without a carriage return, as any binary data.

    Raises:
        BadImage: They were changed as texts are.
    """
    first = data.find(b"\n", pixels)
    if first > 0 and data[first - 1] == ord("\r"):
        lines = data.count(b"\r\n", pixels)
        if lines >= _LEAST_CRLF and lines == data.count(b"\n", pixels):
            raise BadImage(
                "damaged JPEG: a transfer as text put a carriage return before each line feed; transfer it as binary"
            )


def _components(kind: int, frame: bytes) -> bytes:
    """Return the numbers of a frame's components.

    Raises:
        BadImage: Frames of this kind are not read here.
    """
    if len(frame) < 9:
        raise BadImage("truncated JPEG: its frame is cut")
    bits, height, channels = frame[0], frame[1] << 8 | frame[2], frame[5]
    if kind == _JPEG_LS:
        what = "JPEG-LS"
    elif bits != 8:
        what = f"a JPEG of {bits} bits"
    elif channels not in (1, 3, 4):
        what = f"a JPEG of {channels} channels"
    elif not height:
        what = "a JPEG with its height behind its pixels"
    else:
        return frame[6::3]
    raise BadImage(f"{what}, which is not read here; convert it to a JPEG of 8 bits in RGB")


def _count_off(missing: dict[int, int], scan: bytes) -> None:
    """Strike out the coefficients that a scan brings to full precision: it leaves no bits for later ones."""
    if len(scan) >= 6 and not scan[-1] & 15:
        first, last = scan[-3], scan[-2]
        brought = (1 << max(0, last + 1 - first)) - 1 << first
        for component in scan[1:-3:2]:
            missing[component] = missing.get(component, 0) & ~brought


def _is_of_one_color(image: Image.Image) -> bool:
    """Return whether the last row of pixels is of one colour."""
    width, height = image.size
    if image.getpixel((0, height - 1)) != image.getpixel((width - 1, height - 1)):
        return False
    extrema = np.array(image.crop((0, height - 1, width, height)).getextrema()).reshape(-1, 2)
    return bool((extrema[:, 0] == extrema[:, 1]).all())


def _last_block_row(image: Jpeg) -> int:
    """Return the first row of pixels that the last row of blocks touches, in an image that may be reduced."""
    factors = [layer[2] for layer in image.layer]
    reduction = image.decoderconfig[0] if image.decoderconfig else 1
    block = max(1, (max(factors) if len(factors) > 1 else 1) * 8 // reduction)
    return (image.height - 1) // block * block - 2  # the upsampling of colours reaches into the row above
