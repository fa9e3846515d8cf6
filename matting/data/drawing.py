"""Shapes and colours for synthetic images: outlines, and a drawing that fills them.

Lengths are relative to the image's height: x from its middle, y from its top.
"""

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from matting.data.images import Pixels

Reals = NDArray[np.floating]
Points = NDArray[np.floating]  # (…, 2): x, y
Colour = NDArray[np.floating]  # (3,): R, G, B; 0 is black, 1 is white


class Drawing:
    """Drawing of sharp shapes on a Pillow image that has several samples per pixel.

    Args:
        image: Image to draw on, in place.
    """

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self._draw = ImageDraw.Draw(image)

    def fill(self, colour: Colour, *outlines: Points) -> None:
        """Fill each outline with one colour."""
        for outline in outlines:
            self._draw.polygon(self._samples(outline).ravel().tolist(), fill=ink(colour))

    def hatch(self, colour: Colour, lines_NK2: Points) -> None:
        """Draw N lines of K points, as thin as hairs."""
        fill, width = ink(colour), max(1, round(self.image.height / 512))
        for line in self._samples(lines_NK2).reshape(len(lines_NK2), -1).tolist():
            self._draw.line(line, fill=fill, width=width)

    def fill_with(self, pattern: Image.Image, *outlines: Points) -> None:
        """Fill each outline with an image of the drawing's own size."""
        stencil = Image.new("1", self.image.size)
        for outline in outlines:
            ImageDraw.Draw(stencil).polygon(self._samples(outline).ravel().tolist(), fill=1)
        self.image.paste(pattern, mask=stencil)

    def _samples(self, points: Points) -> Points:
        samples: Points = points * self.image.height + (self.image.width / 2, 0)
        return samples


class Frame(NamedTuple):
    """Coordinate frame of a body or a head: its origin in the image, its scale, and its angle in radians."""

    x: float
    y: float
    scale: float
    angle: float

    def __call__(self, points: Points) -> Points:
        """Transform points of this frame to points of the image."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        placed: Points = points @ np.array([[cos, sin], [-sin, cos]]) * self.scale + (self.x, self.y)
        return placed


def box(left: float, top: float, right: float, bottom: float) -> Points:
    """Return the outline of a rectangle."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def arc(x: float, y: float, radius_x: float, radius_y: float, start: float = 0, stop: float = 2) -> Points:
    """Return an arc of an ellipse, which begins on the right and runs over the bottom; angles are in half turns."""
    angles = np.pi * (start + (stop - start) * np.arange(36) / 35)
    return np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], axis=1)


def limb(start: Points, stop: Points, start_radius: float, stop_radius: float) -> Points:
    """Return the outline of two discs and the area between them."""
    x, y = stop - start
    along = np.arctan2(y, x) / np.pi
    near_end = arc(start[0], start[1], start_radius, start_radius, along + 0.5, along + 1.5)
    return np.concatenate([near_end, arc(stop[0], stop[1], stop_radius, stop_radius, along - 0.5, along + 0.5)])


def joints(start: tuple[float, float], bones: Sequence[float], turns: Reals) -> Points:
    """Return the ends of a chain of bones, (N + 1, 2).

    Args:
        start: Start of the first bone.
        bones: Lengths of the N bones.
        turns: Angle between each bone and straight down, outwards, in radians.
    """
    steps = np.array(bones)[:, None] * np.stack([np.sin(turns), np.cos(turns)], axis=1)
    return np.cumsum([start, *steps], axis=0)


def symmetric(*right_half: tuple[float, float]) -> Points:
    """Return a closed outline from its right half, top to bottom, with its corners cut three times (Chaikin 1974)."""
    points = np.array(right_half)
    points = np.concatenate([points, points[::-1] * (-1, 1)])
    for _ in range(3):
        following = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * following, 0.25 * points + 0.75 * following], axis=1).reshape(-1, 2)
    return points


def any_colour(rng: Generator) -> Colour:
    """Choose a random colour that is not very dark."""
    return np.array(colorsys.hsv_to_rgb(rng.random(), rng.random() ** 2, rng.uniform(0.2, 0.97)))


def any_tone(rng: Generator, tones: Sequence[tuple[float, ...]]) -> Colour:
    """Choose one of these tones at random, and vary it a little."""
    tone: Colour = rng.choice(tones)
    return tone * rng.uniform(0.85, 1.15) + rng.normal(0, 0.02, 3)


def ink(colour: Colour) -> tuple[int, ...]:
    """Return a colour in Pillow's form."""
    return tuple(to_bytes(colour).tolist())


def to_bytes(values: Reals) -> Pixels:
    """Convert values in [0, 1] to 0 … 255, clipped and rounded."""
    return (values.clip(0, 1) * 255 + 0.5).astype(np.uint8)
