"""Files of cutouts, as the job and the command write them: cropped, on a new background, encoded.

--background COLOR|URI    -> find_background       -> Background, whose identity is part of the ledger's settings
photo, alpha_HW           -> CutoutEncoder.encode  -> bytes of a PNG, WebP or JPEG
row of the ledger         -> has_matte             -> whether the photo's first output holds its whole alpha
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any, Literal

import numpy as np
from PIL import Image

from matting.data import images
from matting.data.images import MAX_IMAGE_BYTES, MAX_PIXELS, BadImage, DecodedPhoto, Pixels
from matting.inference.compose import cover, crop_to_person, on_background, parse_color
from matting.inference.refine import cutout
from matting.storage import store
from matting.storage.errors import StorageError
from matting.storage.uri import absolute_uri, refuse_password, unsigned_uri

CutoutFormat = Literal["png", "webp", "jpg"]

# Encoders of pixels and the colour profile of their numbers. JPEG has a background, so its numbers are sRGB.
_ENCODERS: dict[CutoutFormat, Callable[[Pixels, bytes | None], bytes]] = {
    "png": images.encode_png,
    "webp": lambda pixels, profile: images.encode_webp(pixels, profile=profile),
    "jpg": lambda pixels, _: images.encode_jpeg(pixels),
}
_SIZES_KEPT = 2  # sizes for which a background stays scaled: photos are often of one size, upright and lying


class BadBackground(ValueError):
    """A background that is neither a colour nor an image, or was replaced. The message says what to do, on one line."""


@dataclass(frozen=True)
class Background:
    """A new background of cutouts.

    Args:
        source: Colour as #rrggbb, or URI of an image.
        identity: The same colour, or the SHA-256 of the image's file.
    """

    source: str
    identity: str


def find_background(text: str) -> Background:
    """Return the background that a user names.

    Args:
        text: Colour (see `compose.parse_color`), or URI of an image. A name of a colour is no URI: an image with such a
            name is given as ./white.

    Raises:
        BadBackground: The text is neither, or the image cannot be read or decoded, or is not opaque.
        StorageError: The URI has a password in it.
    """
    try:
        color = parse_color(text)
    except ValueError as error:
        raise BadBackground(str(error)) from error
    if color:
        code = "#{:02x}{:02x}{:02x}".format(*color)
        return Background(code, code)
    refuse_password(text)
    uri = absolute_uri(text)
    try:
        data = store.read_bytes(uri, MAX_IMAGE_BYTES)
        images.decode_image(data)
        if _is_transparent(data):
            raise BadImage("it is transparent in places; put it on a background of its own first")
    except (BadImage, StorageError) as error:
        raise BadBackground(
            f"the background {unsigned_uri(text)!r} is neither a colour, such as white or #ffffff, nor an image that "
            f"can be used: {error}"
        ) from error
    return Background(uri, hashlib.sha256(data).hexdigest())


def _is_transparent(data: bytes) -> bool:
    """Return whether an image that can be decoded has pixels that are not opaque."""
    with Image.open(BytesIO(data)) as image:
        if not image.has_transparency_data:
            return False
        return bool(np.asarray(image.convert("RGBA"))[..., 3].min() < 255)


def read_background(background: Background) -> Pixels:
    """Return a background as an image, uint8 (H, W, 3); a colour has one pixel.

    Raises:
        BadBackground: The image was replaced since `find_background`.
        StorageError: The image cannot be read.
    """
    if color := parse_color(background.identity):
        return np.array(color, np.uint8).reshape(1, 1, 3)
    data = store.read_bytes(background.source, MAX_IMAGE_BYTES)
    if hashlib.sha256(data).hexdigest() != background.identity:
        raise BadBackground(
            f"the background {unsigned_uri(background.source)} was replaced while it was in use; run again"
        )
    return images.decode_image(data)


class CutoutEncoder:
    """Makes files of cutouts. The background's image is read once, at the beginning.

    Args:
        cutout_format: File format. JPEG needs a background.
        background: New background; None to keep cutouts transparent.
        crop: Margin around the person in a cropped cutout; see `compose.crop_to_person`. None for the whole photo.

    Raises:
        BadBackground: The background was replaced since it was found.
        StorageError: The background cannot be read.
    """

    def __init__(
        self, cutout_format: CutoutFormat, background: Background | None = None, crop: float | None = None
    ) -> None:
        self._encode, self._crop = _ENCODERS[cutout_format], crop
        self._background_HWC = read_background(background) if background else None
        self._covering = lru_cache(_SIZES_KEPT)(self._cover)

    def encode(self, data: bytes, photo: DecodedPhoto, pred_alpha_HW: Pixels, max_pixels: int = MAX_PIXELS) -> bytes:
        """Cut the person out, crop, composite on the background, and encode.

        The crop comes first: a background image covers what is left of the photo. A transparent cutout has the photo's
        stored numbers and profile; on a background, whose colours are sRGB, it has the photo's colours in sRGB.

        Args:
            data: File of the photo.
            photo: The same photo, decoded, perhaps at a reduced size.
            pred_alpha_HW: Predicted alpha of the whole photo.
            max_pixels: Number of pixels above which the photo is refused.

        Raises:
            BadImage: A side is longer than the file format allows, or the whole photo cannot be decoded.
        """
        image_HWC, profile = photo.image_HWC, None
        is_whole = image_HWC.shape[:2] == pred_alpha_HW.shape
        if self._background_HWC is not None:
            image_HWC = image_HWC if is_whole else images.decode_image(data, max_pixels)
        elif photo.profile or not is_whole:
            image_HWC, profile = images.decode_stored(data, max_pixels)
        pixels = cutout(image_HWC, pred_alpha_HW, photo.opacity_HW)
        if self._crop is not None:
            pixels = crop_to_person(pixels, self._crop)
        if self._background_HWC is not None:
            pixels = on_background(pixels, self._covering(pixels.shape[1], pixels.shape[0]))
        return self._encode(pixels, profile)

    def _cover(self, width: int, height: int) -> Pixels:
        assert self._background_HWC is not None
        return cover(self._background_HWC, width, height)


def check_cutout_options(cutout_format: CutoutFormat, has_background: bool, crop: float | None) -> None:
    """Refuse options of cutouts that contradict each other.

    Raises:
        ValueError: JPEG without a background, or a crop outside [0, 1]. The message names options of the job and of the
            command, whose names are the same.
    """
    if cutout_format == "jpg" and not has_background:
        raise ValueError("JPEG holds no transparency: give a --background with --format jpg, or choose png or webp")
    if crop is not None and not 0 <= crop <= 1:
        raise ValueError(f"--crop is a fraction of the longer side of the person's box, from 0 to 1, is {crop:g}")


def has_matte(row: Mapping[str, Any]) -> bool:
    """Return whether a photo's first output holds its whole alpha: a matte, or a transparent cutout of its size.

    Args:
        row: Ledger row of a photo that is done: columns settings and outputs.
    """
    if row["outputs"][0].startswith("alpha/"):
        return True
    settings = json.loads(row["settings"])
    return "alpha" in settings["write"] or not {"background", "crop"}.intersection(settings)
