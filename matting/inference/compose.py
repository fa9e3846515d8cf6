"""Finished cutouts: cropped to the person, and composited on a new background.

    alpha_HW                   -> person_box     -> box in pixels; None if there is nobody
    cutout_HWC, margin         -> crop_to_person -> part of the cutout around the person
    image_HWC, size            -> cover          -> background_HWC, scaled and cropped to the size
    cutout_HWC, background_HWC -> on_background  -> image_HWC, RGB without alpha

Arrays are uint8. Nothing here knows networks or files.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor

from matting.data.images import Pixels

# A pixel belongs to the person from this alpha on. Softer pixels are left to the margin of a crop.
PERSON_ALPHA = 128


class PersonBox(NamedTuple):
    """Smallest box around all people of a photo, in pixels of the upright photo.

    Attributes:
        left, top: First column and row of the box.
        right, bottom: Column and row after the last ones, so the width is right - left.
    """

    left: int
    top: int
    right: int
    bottom: int


def person_box(alpha_HW: Pixels) -> PersonBox | None:
    """Return the smallest box around all pixels whose alpha is at least `PERSON_ALPHA`; None if there are none."""
    rows = np.flatnonzero(alpha_HW.max(axis=1) >= PERSON_ALPHA)
    if not len(rows):
        return None
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(alpha_HW[top:bottom].max(axis=0) >= PERSON_ALPHA)
    return PersonBox(int(columns[0]), top, int(columns[-1]) + 1, bottom)


def crop_to_person(cutout_HWC: Pixels, margin: float) -> Pixels:
    """Return the part of a cutout inside the box of its people, widened on all sides, as a view.

    Args:
        cutout_HWC: Cutout, RGBA.
        margin: Width of the margin, as a fraction of the box's longer side; rounded to whole pixels. The margin ends
            where the cutout ends.

    Returns:
        RGBA, at most of the cutout's size; the whole cutout if there is nobody.
    """
    box = person_box(cutout_HWC[..., 3])
    if box is None:
        return cutout_HWC
    pixels = round(margin * max(box.right - box.left, box.bottom - box.top))
    rows = slice(max(0, box.top - pixels), box.bottom + pixels)
    return cutout_HWC[rows, max(0, box.left - pixels) : box.right + pixels]


def on_background(cutout_HWC: Pixels, background_HWC: Pixels) -> Pixels:
    """Composite a cutout on a background, in the encoded values of both: alpha * foreground + (1 - alpha) * background.

    Args:
        cutout_HWC: Cutout, RGBA, whose colours are not multiplied by alpha.
        background_HWC: Background of the same height and width, RGB.

    Returns:
        Image of the same size, RGB; each value is rounded to the nearest whole number, of which there is always one.

    Raises:
        ValueError: The sizes differ.

    Literature: Porter & Duff, "Compositing digital images", SIGGRAPH 1984, the operator "over".
    """
    if cutout_HWC.shape[:2] != background_HWC.shape[:2]:
        raise ValueError(
            f"the cutout is {cutout_HWC.shape[:2]}, its background {background_HWC.shape[:2]}: cover the cutout first"
        )
    canvas, person = Image.fromarray(background_HWC), Image.fromarray(cutout_HWC)
    canvas.paste(person, mask=person)  # Pillow's integer arithmetic rounds exactly
    return np.array(canvas)


def cover(image_HWC: Pixels, width: int, height: int) -> Pixels:
    """Scale an image so that it just covers width × height pixels, and crop it at its centre.

    Scaling is by antialiased bilinear interpolation. An image of one pixel is a background of one colour.

    Args:
        image_HWC: Image of any size, RGB.
        width, height: Size to cover, in pixels.

    Returns:
        Image of shape (height, width, 3); the image itself if it has that size.
    """
    own_height, own_width = image_HWC.shape[:2]
    if (own_width, own_height) == (width, height):
        return image_HWC
    scale = min(own_width / width, own_height / height)  # own pixels for each pixel of the result
    left, top = max(0.0, (own_width - scale * width) / 2), max(0.0, (own_height - scale * height) / 2)
    box = (left, top, min(own_width, left + scale * width), min(own_height, top + scale * height))
    return np.array(Image.fromarray(image_HWC).resize((width, height), Image.Resampling.BILINEAR, box=box))


def parse_color(text: str) -> tuple[int, int, int] | None:
    """Return the colour that a text names as CSS does (`white`, `#fff`, `#ffffff`, `rgb(255, 255, 255)`): R, G, B.

    Returns:
        Three values from 0 to 255; None if the text is no colour.

    Raises:
        ValueError: The colour is not opaque, or has a value over 255.
    """
    try:
        color = ImageColor.getrgb(text.strip())
    except ValueError:
        return None
    if len(color) != 3 or max(color) > 255:
        raise ValueError(f"{text!r} is no opaque colour of values from 0 to 255; give one such as #ffffff")
    return color
