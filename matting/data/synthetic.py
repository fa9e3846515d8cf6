"""Draw synthetic images of people with an exact soft alpha, for the quick start and the tests.

    (seed, index) -> figure: RGB premultiplied by alpha -> over a background -> camera -> image_HWC, alpha_HW

The alpha is the one that the image is composited with, not an estimate. No random number but the sensor's noise depends
on the size, so one (seed, index) shows the same person at every size.
"""

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageEnhance, ImageFilter

from matting.data.drawing import Drawing, Reals, any_colour, any_tone, arc, box, to_bytes
from matting.data.images import Pixels
from matting.data.person import HAIR_TONES, SKIN_TONES, Appearance, draw_appearance, draw_figure


def draw_person(seed: int, index: int, width: int, height: int) -> tuple[Pixels, Pixels]:
    """Draw an image of a synthetic person. This is a pure function of its arguments.

    Args:
        seed: Random seed, at least 0.
        index: Number of the person under this seed, at least 0. It is the same person at every size.
        width: Width of the image in pixels.
        height: Height of the image in pixels.

    Returns:
        image_HWC, uint8 RGB; and alpha_HW, uint8: 255 where only the person shows, 0 where only the background does.
    """
    sequences = np.random.SeedSequence([seed, index]).spawn(4)
    look_rng, figure_rng, background_rng, camera_rng = (np.random.default_rng(sequence) for sequence in sequences)
    look = draw_appearance(look_rng)
    figure_HWC = draw_figure(look, figure_rng, width, height)
    background_HWC = draw_background(look, background_rng, width, height)
    scene_HWC = figure_HWC[..., :3] + (1 - figure_HWC[..., 3:]) * background_HWC
    return photograph(scene_HWC, camera_rng), to_bytes(figure_HWC[..., 3])


def draw_background(look: Appearance, rng: Generator, width: int, height: int) -> Reals:
    """Draw a room, a landscape or a bare wall, in or out of focus: RGB in [0, 1], (H, W, 3)."""
    one, other = any_colour(rng), any_colour(rng)
    if rng.random() < 0.2:
        one = rng.choice((look.cloth, look.skin, look.hair))
    corners = one + rng.random((3, 3, 1)) * rng.uniform(0, 0.8) * (other - one)
    wall = Image.fromarray(to_bytes(corners))
    drawing = Drawing(wall.resize((2 * width, 2 * height), Image.Resampling.BICUBIC))
    kind = rng.random()
    if kind < 0.4:
        draw_room(drawing, rng)
    elif kind < 0.8:
        draw_landscape(drawing, rng)
    draw_distractors(drawing, look, rng)
    # In most portraits the background is less sharp, bright and colourful than the person; but not in all.
    blur, saturation, brightness, contrast = rng.uniform((0, 0.2, 0.45, 0.15), (0.03, 0.8, 0.95, 0.45)).tolist()
    blurred = drawing.image.reduce(2).filter(ImageFilter.GaussianBlur(blur * height))
    faded = ImageEnhance.Color(blurred).enhance(saturation)
    grain = Image.fromarray(rng.random((24, 24), np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    texture_HW = brightness * (1 + contrast * (np.asarray(grain) - 0.5))
    background_HWC: Reals = np.asarray(faded, np.float32) / 255 * texture_HW[..., None]
    return background_HWC


def draw_room(drawing: Drawing, rng: Generator) -> None:
    """Draw a floor and framed rectangles: furniture and windows."""
    drawing.fill(any_colour(rng), box(-2, rng.uniform(0.55, 1), 2, 1))
    for _ in range(rng.integers(1, 6)):
        left, top, wide, tall, frame = rng.uniform((-0.6, -0.1, 0.08, 0.1, 0.01), (0.5, 0.6, 0.4, 0.6, 0.03))
        drawing.fill(any_colour(rng), box(left, top, left + wide, top + tall))
        drawing.fill(any_colour(rng), box(left + frame, top + frame, left + wide - frame, top + tall - frame))


def draw_landscape(drawing: Drawing, rng: Generator) -> None:
    """Draw ground, and bushes at the horizon."""
    horizon = rng.uniform(0.3, 0.8)
    green = np.array([0.3, 0.45, 0.2]) * rng.uniform(0.4, 1.3)
    drawing.fill(green * rng.uniform(0.7, 1.3, 3), box(-2, horizon, 2, 1))
    for _ in range(rng.integers(10, 50)):
        x, y, radius = rng.normal((0, horizon - 0.1, 0.05), (0.4, 0.12, 0.02))
        drawing.fill(green * rng.uniform(0.5, 1.4), arc(x, y, radius, radius))


def draw_distractors(drawing: Drawing, look: Appearance, rng: Generator) -> None:
    """Draw balls in the colours of people, some on a post, so that not every round shape is a head."""
    for _ in range(rng.poisson(1.2)):
        x, y, radius, post = rng.uniform((-0.6, 0.1, 0.03, -0.1), (0.6, 0.8, 0.13, 0.1))
        if post > 0:
            drawing.fill(any_colour(rng), box(x - post, y, x + post, 1))
        colour = rng.choice((any_tone(rng, SKIN_TONES), any_tone(rng, HAIR_TONES), look.cloth, any_colour(rng)))
        drawing.fill(colour, arc(x, y, radius, radius * rng.uniform(0.8, 1.4)))


def photograph(scene_HWC: Reals, rng: Generator) -> Pixels:
    """Expose a scene, RGB in [0, 1]: apply gain, colour cast and gamma, then the sensor's noise."""
    gain = rng.uniform(0.8, 1.25) * rng.normal(1, 0.05, 3)
    gamma, noise = rng.uniform((0.75, 0), (1.25, 0.025)).tolist()
    exposed_HWC = (scene_HWC * gain.astype(np.float32)).clip(0, 1) ** gamma
    return to_bytes(exposed_HWC + noise * rng.standard_normal(scene_HWC.shape, np.float32))
