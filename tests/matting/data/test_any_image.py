"""images: any file decodes to an independent reader's pixels, within rounding, or is refused by name.

The files are drawn: format × mode × compression × colour profile × orientation × damage. The independent readers are
tifffile, OpenCV and imagecodecs, and ImageMagick where it is installed; HEIC, which no other Python package reads, is
compared with what was drawn, without a profile, which would stretch the losses. Orientations and profiles are applied
by their definitions. EXAMPLES_TIMES=10 in the environment draws ten times as many.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pillow_heif
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from matting.data import images
from matting.data.images import BadImage
from tests.matting.data.test_color import converted
from tests.matting.data.test_orientation import STORED, exif, raw_profile, xmp
from tests.support.profiles import ADOBE, P3, SRGB, rgb_profile

MODES = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "JPEG": ["L", "RGB", "CMYK"],
    "WEBP": ["RGB", "RGBA"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"],
    "BMP": ["1", "L", "P", "RGB"],
    "GIF": ["L", "P"],
    "AVIF": ["RGB", "RGBA"],
    "HEIF": ["L", "RGB", "RGBA"],
}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "PNG": [{}, {"compress_level": 0}],
    "JPEG": [{"quality": 90}, {"quality": 75, "progressive": True}, {"quality": 90, "subsampling": 0}],
    "WEBP": [{"lossless": True, "exact": True}, {"quality": 90}],
    "TIFF": [{}, {"compression": "tiff_lzw"}, {"compression": "packbits"}, {"compression": "tiff_adobe_deflate"}],
    "BMP": [{}],
    "GIF": [{}, {"interlace": 0}],
    "AVIF": [{"quality": 90}],
    "HEIF": [{"quality": 95, "chroma": 444}],
}
TIMES = int(os.environ.get("EXAMPLES_TIMES", "1"))
HAVE_TAGS = ("PNG", "JPEG", "WEBP", "TIFF", "AVIF", "HEIF")
PROFILES = {"P3": (P3, None), "Adobe RGB": (ADOBE, 563 / 256), "sRGB": (SRGB, None)}
RECORDS = ["none", "exif", "xmp", "raw"]  # how the orientation is recorded
IS_OPENCV_LOSSY = ("JPEG", "WEBP", "AVIF", "HEIF")  # formats whose decoders may round differently


@dataclass(frozen=True)
class Drawn:
    """A file, and what is known of it."""

    format: str
    mode: str
    options: dict[str, Any]
    profile: str | None
    record: str
    orientation: int
    width: int
    height: int
    seed: int

    def image(self) -> Image.Image:
        """Return the pixels, as a camera stores them."""
        rng = np.random.default_rng(self.seed)
        coarse = rng.integers(60, 200, (3, 3, 4), np.uint8)
        channels = Image.fromarray(coarse, "RGBA").resize((self.width, self.height), Image.Resampling.BICUBIC)
        if self.mode == "I;16":
            return Image.fromarray(np.asarray(channels)[..., 0].astype(np.uint16) * 251)
        if self.mode == "CMYK":
            return Image.fromarray(np.asarray(channels), "CMYK")
        return (channels if "A" in self.mode else channels.convert("RGB")).convert(self.mode)

    def encode(self) -> bytes:
        """Return the file."""
        tags: dict[str, Any] = {}
        if self.profile:
            tags["icc_profile"] = rgb_profile(*PROFILES[self.profile])
        if self.format == "PNG" and self.record in ("xmp", "raw"):
            info = PngInfo()
            info.add_itxt("XML:com.adobe.xmp", xmp(self.orientation).decode())
            tags["pnginfo"] = raw_profile("exif", exif(self.orientation)) if self.record == "raw" else info
        elif self.format == "TIFF" and self.record != "none":
            tags["tiffinfo"] = {700: xmp(self.orientation)} if self.record == "xmp" else {274: self.orientation}
        elif self.record != "none":
            tags |= {"xmp": xmp(self.orientation)} if self.record == "xmp" else {"exif": exif(self.orientation)}
        buffer = BytesIO()
        if self.format == "HEIF":
            pillow_heif.from_pillow(self.image()).save(buffer, **self.options, **tags)
        else:
            self.image().save(buffer, self.format, **self.options, **tags)
        return buffer.getvalue()

    def expected(self, data: bytes) -> np.ndarray:
        """Return the upright sRGB pixels of the file, by the independent readers."""
        if self.format == "TIFF":
            stored = read_by_tifffile(data, self.mode)
        elif self.format == "AVIF":
            stored = imagecodecs.avif_decode(data)[..., :3].astype(float)  # OpenCV does not read the smallest ones
        elif self.format == "HEIF":
            image = self.image()
            stored = np.asarray(image if image.mode == "RGBA" else image.convert("RGB"))[..., :3].astype(float)
        else:
            stored = read_by_opencv(data)
        upright = UPRIGHT[self.orientation if self.record != "none" else 1](stored)
        if self.profile and self.mode not in ("CMYK", "1", "L", "LA", "I;16"):
            upright = converted(upright, *PROFILES[self.profile])
        return upright


UPRIGHT = {**STORED, 6: STORED[8], 8: STORED[6]}  # all others undo themselves


def read_by_opencv(data: bytes) -> np.ndarray:
    """Return RGB in [0, 255] as it is stored."""
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    found = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    values = found / (np.iinfo(found.dtype).max / 255)
    if values.ndim == 2 or values.shape[2] == 1:
        return np.broadcast_to(values.reshape(*values.shape[:2], 1), (*values.shape[:2], 3))
    return values[..., 2::-1]


def read_by_tifffile(data: bytes, mode: str) -> np.ndarray:
    """Return RGB in [0, 255] as it is stored."""
    with tifffile.TiffFile(BytesIO(data)) as file:
        page = file.pages[0]
        values = page.asarray()
        if mode == "P":
            return page.colormap.T[values] // 256
    values = values * 255.0 if mode == "1" else values / (np.iinfo(values.dtype).max / 255)
    if mode == "CMYK":
        return (255 - values[..., :3]) * (255 - values[..., 3:]) / 255
    if mode in ("1", "L", "LA", "I;16"):
        values = values if values.ndim == 2 else values[..., 0]
        return np.broadcast_to(values[..., None], (*values.shape, 3))
    return values[..., :3]


@cache
def imagemagick() -> str | None:
    """Return the path of ImageMagick's program; None where it is not installed."""
    for path in filter(None, map(shutil.which, ("magick", "convert"))):
        if b"Version: ImageMagick" in subprocess.run([path, "-version"], capture_output=True, check=False).stdout:
            return path
    return None


def read_by_imagemagick(data: bytes, file: Drawn) -> np.ndarray:
    """Return RGB in [0, 255] as it is stored."""
    options = ["-alpha", "off", "-colorspace", "sRGB", "-depth", "8"]
    command = [str(imagemagick()), f"{file.format}:-[0]", *options, "RGB:-"]
    found = subprocess.run(command, input=data, capture_output=True, check=True).stdout
    return np.frombuffer(found, np.uint8).reshape(file.height, file.width, 3)


@st.composite
def drawn(draw: st.DrawFn) -> Drawn:
    format = draw(st.sampled_from(sorted(MODES)))
    has_tags = format in HAVE_TAGS
    mode = draw(st.sampled_from(MODES[format]))
    is_rgb = mode in ("RGB", "RGBA", "P")
    return Drawn(
        format,
        mode,
        draw(st.sampled_from(OPTIONS[format])),
        draw(st.sampled_from([None, *PROFILES])) if has_tags and is_rgb and format != "HEIF" else None,
        draw(st.sampled_from(RECORDS)) if has_tags else "none",
        draw(st.integers(1, 8)),
        draw(st.integers(1, 40)),
        draw(st.integers(1, 40)),
        draw(st.integers(0, 99)),
    )


def decode(data: bytes) -> images.DecodedPhoto | None:
    """Return the decoded photo, whose every entrance agrees; None if it is refused by a reason in one line."""
    try:
        photo = images.decode_photo(data)
    except BadImage as error:
        assert str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
        return None
    assert photo.image_HWC.shape == (photo.height, photo.width, 3)
    assert images.image_size(data) == (photo.width, photo.height)
    np.testing.assert_array_equal(images.decode_image(data), photo.image_HWC)
    return photo


@given(drawn())
@settings(max_examples=300 * TIMES)
def test_any_image_has_the_pixels_of_another_reader(file: Drawn) -> None:
    data = file.encode()
    photo = decode(data)
    assert photo is not None, file
    assert photo.warning is None
    wanted_HWC = file.expected(data)
    errors = np.abs(photo.image_HWC - wanted_HWC.astype(float))
    assert errors.mean() <= (2 if file.format in IS_OPENCV_LOSSY else 1)
    assert errors.max() <= (12 if file.format in IS_OPENCV_LOSSY else 2)
    opened = pillow_heif.HeifImageFile if file.format == "HEIF" else Image.open
    from_pillow_HWC = images.from_pillow(opened(BytesIO(data))).image_HWC
    np.testing.assert_array_equal(from_pillow_HWC, photo.image_HWC)


@pytest.mark.skipif(not imagemagick(), reason="ImageMagick is not installed")
@given(drawn().filter(lambda file: file.mode != "CMYK" and file.format in ("PNG", "JPEG", "TIFF", "BMP", "GIF")))
@settings(max_examples=60 * TIMES, deadline=None)
def test_any_image_has_the_pixels_of_imagemagick(file: Drawn) -> None:
    file = replace(file, record="none", profile=None)
    data = file.encode()
    errors = np.abs(images.decode_image(data) - read_by_imagemagick(data, file).astype(float))
    assert errors.mean() <= (2 if file.format == "JPEG" else 1)


@given(drawn(), st.floats(0, 1))
@settings(max_examples=200 * TIMES)
def test_any_image_that_ends_early_is_refused_or_flagged(file: Drawn, kept: float) -> None:
    data = file.encode()
    whole, photo = decode(data), decode(data[: int(kept * len(data))])
    if photo is not None and kept < 1:
        assert whole is not None
        assert photo.image_HWC.shape == whole.image_HWC.shape
        differs_HW = (photo.image_HWC != whole.image_HWC).any(axis=2)
        if not photo.warning:
            # What is cut off held no pixels: the end of a GIF, padding of a BMP or a TIFF, tags of a WebP.
            assert not differs_HW.any()
        elif file.format == "JPEG":
            stored_HW = STORED[file.orientation if file.record != "none" else 1](differs_HW)
            assert not stored_HW[: -(16 + 2)].any()
        else:
            assert not differs_HW.any()


@given(drawn().filter(lambda file: file.format == "PNG"), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
@settings(max_examples=200 * TIMES)
def test_png_with_a_wrong_byte_is_refused_or_flagged(file: Drawn, place: float, change: int) -> None:
    data = bytearray(file.encode())
    whole = decode(bytes(data))
    data[int(place * len(data))] ^= change
    photo = decode(bytes(data))
    if photo is not None and not photo.warning:
        assert whole is not None
        np.testing.assert_array_equal(photo.image_HWC, whole.image_HWC)


@given(drawn(), st.data())
@settings(max_examples=200 * TIMES)
def test_any_damage_is_refused_or_decoded(file: Drawn, choice: st.DataObject) -> None:
    data = bytearray(file.encode())
    for _ in range(choice.draw(st.integers(1, 4))):
        data[choice.draw(st.integers(0, len(data) - 1))] = choice.draw(st.integers(0, 255))
    try:
        images.decode_photo(bytes(data), max_pixels=100_000)
    except BadImage as error:
        assert str(error)  # noqa: PT017
