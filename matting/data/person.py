"""Draw synthetic people: who they are, and their figures with an exact soft alpha.

    draw_appearance   random generator -> Appearance: framing, pose of body and head, colours
    draw_figure       Appearance       -> figure_HWC: RGBA in [0, 1], premultiplied

The figure is drawn with sharp shapes on a transparent image, at several samples per pixel. The mean of the samples is
the colour of a pixel and the fraction that the figure covers, so its alpha is exact. No random number depends on the
size: the same generators draw the same person at every size.
"""

from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

from matting.data.drawing import (
    Colour,
    Drawing,
    Frame,
    Points,
    Reals,
    any_colour,
    any_tone,
    arc,
    box,
    ink,
    joints,
    limb,
    symmetric,
    to_bytes,
)

SKIN_TONES = ((0.96, 0.82, 0.72), (0.89, 0.69, 0.55), (0.75, 0.54, 0.39), (0.54, 0.36, 0.25), (0.38, 0.25, 0.18))
HAIR_TONES = ((0.07, 0.06, 0.06), (0.2, 0.13, 0.1), (0.4, 0.25, 0.14), (0.6, 0.3, 0.13), (0.85, 0.7, 0.45), (0.7,) * 3)


class Appearance(NamedTuple):
    """Appearance of a person, on which all parts of an image agree.

    The unit of both frames is the height of the head. The body's origin is the base of the neck, the head's its middle.
    """

    body: Frame
    head: Frame
    skin: Colour
    hair: Colour
    cloth: Colour


class Framing(NamedTuple):
    """Framing of a person; lengths are relative to the image's height, as (shortest, longest)."""

    share: float  # fraction of all images
    head: tuple[float, float]  # height of the head
    room: tuple[float, float]  # space above the head


FRAMINGS = (
    Framing(share=0.77, head=(0.24, 0.38), room=(0.06, 0.24)),  # half-length portrait
    Framing(share=0.16, head=(0.44, 0.60), room=(0.06, 0.20)),  # head
    Framing(share=0.07, head=(0.125, 0.16), room=(0.03, 0.10)),  # whole figure
)


class Hairstyle(NamedTuple):
    """Hairstyle; lengths are in heads, from the middle of the head."""

    width: float
    rise: float
    fall: float
    stray: float  # typical length of single hairs beyond the outline
    curl: float


HAIRSTYLES = (
    Hairstyle(width=0.41, rise=0.55, fall=0.0, stray=0.04, curl=0.2),  # cropped
    Hairstyle(width=0.45, rise=0.60, fall=0.1, stray=0.08, curl=0.5),  # short
    Hairstyle(width=0.58, rise=0.75, fall=0.3, stray=0.10, curl=1.5),  # afro
    Hairstyle(width=0.48, rise=0.58, fall=0.5, stray=0.08, curl=0.4),  # bob
    Hairstyle(width=0.47, rise=0.58, fall=1.2, stray=0.10, curl=0.5),  # long
    Hairstyle(width=0.56, rise=0.62, fall=1.7, stray=0.12, curl=1.0),  # very long, wavy
)


def draw_appearance(rng: Generator) -> Appearance:
    """Choose a random appearance."""
    framing = FRAMINGS[rng.choice(len(FRAMINGS), p=[framing.share for framing in FRAMINGS])]
    scale, room = rng.uniform(*framing.head), rng.uniform(*framing.room)
    lean, tilt = rng.normal(0, (0.05, 0.1))
    body = Frame(rng.normal(0, 0.1), room + 1.12 * scale, scale, lean)
    head_x, head_y = body(np.array([0.62 * np.sin(tilt), -0.62 * np.cos(tilt)]))
    head = Frame(head_x, head_y, scale, lean + tilt)
    return Appearance(body, head, skin=any_tone(rng, SKIN_TONES), hair=any_tone(rng, HAIR_TONES), cloth=any_colour(rng))


def draw_figure(look: Appearance, rng: Generator, width: int, height: int) -> Reals:
    """Draw the person alone: figure_HWC, RGBA in [0, 1], premultiplied."""
    samples = max(4, round(512 / height))
    # RGBa is Pillow's premultiplied RGBA: reduce() averages it as it is.
    drawing = Drawing(Image.new("RGBa", (width * samples, height * samples)))
    hairstyle = None if rng.random() < 0.08 else HAIRSTYLES[rng.integers(len(HAIRSTYLES))]
    if hairstyle:
        draw_hair_behind(drawing, look, hairstyle, rng)
    draw_legs(drawing, look, rng)
    draw_torso_and_arms(drawing, look, rng)
    draw_face(drawing, look, rng)
    if hairstyle:
        draw_hair_in_front(drawing, look, hairstyle, rng)
    figure_HWC = np.asarray(drawing.image.reduce(samples), np.float32) / 255
    brightness_HW = light(figure_HWC[..., 3], angle=rng.uniform(-1, 1) * np.pi, strength=rng.uniform(0.15, 0.6))
    figure_HWC[..., :3] = np.minimum(figure_HWC[..., :3] * brightness_HW[..., None], figure_HWC[..., 3:])
    return figure_HWC


def light(alpha_HW: Reals, angle: float, strength: float) -> Reals:
    """Return the brightness of a figure that is lit from one side, (H, W).

    The blurred alpha serves as the height of a relief.

    Args:
        alpha_HW: Alpha of the figure, in [0, 1].
        angle: Direction of the light, in radians.
        strength: Contrast of the light; 0 is even.
    """
    reach = 0.04 * len(alpha_HW)
    blurred = Image.fromarray(to_bytes(alpha_HW)).filter(ImageFilter.GaussianBlur(reach))
    relief_HW = np.asarray(blurred, np.float32) / 255
    down_HW, right_HW = np.gradient(relief_HW)
    slope_HW = reach * (float(np.cos(angle)) * right_HW + float(np.sin(angle)) * down_HW)
    return 1 - strength * (1 - relief_HW + 2 * slope_HW)


def draw_hair_behind(drawing: Drawing, look: Appearance, style: Hairstyle, rng: Generator) -> None:
    """Draw the hair behind the head."""
    crown = arc(0, 0, style.width, style.rise, 1, 2)
    right = (style.width, 0) + np.linspace(0, 1, 24)[1:, None] * (rng.uniform(-0.1, 0.12), style.fall)
    outline = np.concatenate([crown, right, right[::-1] * (-1, 1)])
    outline += rng.normal(0, 0.012, outline.shape)
    draw_strands(drawing, look, style, outline, rng)
    drawing.fill(0.75 * look.hair, look.head(outline))


def draw_hair_in_front(drawing: Drawing, look: Appearance, style: Hairstyle, rng: Generator) -> None:
    """Draw the hair over the forehead."""
    crown = arc(0, 0, style.width, style.rise, 1, 2)
    parting, hairline = rng.uniform((-0.25, -0.42), (0.25, -0.24))
    fringe = np.array([(0.4, 0.05), (0.36, -0.15), (parting, hairline), (-0.36, -0.15), (-0.4, 0.05)])
    drawing.fill(look.hair, look.head(np.concatenate([crown, fringe])))
    draw_strands(drawing, look, style, crown, rng)


def draw_strands(drawing: Drawing, look: Appearance, style: Hairstyle, outline: Points, rng: Generator) -> None:
    """Draw single hairs from an outline outwards, most of them short, in locks that share a direction."""
    count = 4 * len(outline)
    at = rng.integers(len(outline), size=count)
    outwards = outline - outline.mean(axis=0)
    outwards /= np.linalg.norm(outwards, axis=1, keepdims=True)
    outwards = outwards[at] + rng.normal(0, 0.4, outline.shape)[at // 4] + rng.normal(0, 0.15, (count, 2))
    sideways = outwards[:, ::-1] * (-1, 1) * rng.normal(0, style.curl, (count, 1))
    length = style.stray * rng.lognormal(-0.7, 0.6, (count, 1, 1))
    t = np.linspace(-0.5, 1, 6)[:, None]
    strands = look.head(outline[at][:, None] + length * (t * outwards[:, None] + t**2 * (sideways[:, None] + (0, 0.4))))
    for part, shade in enumerate((0.8, 1, 1.25)):
        drawing.hatch(shade * look.hair, strands[part::3])


def draw_legs(drawing: Drawing, look: Appearance, rng: Generator) -> None:
    """Draw both legs, which show in whole figures."""
    body, trousers, shoes = look.body, any_colour(rng), any_colour(rng)
    for side in (-1, 1):
        turns = np.append(rng.normal(0.03, 0.07, 2), 1.2)
        hip, knee, ankle, toes = joints((0.3, 2.5), (1.7, 1.6, 0.25), turns) * (side, 1)
        drawing.fill(shoes, body(limb(ankle, toes, 0.16, 0.1)))
        drawing.fill(trousers, body(limb(hip, knee, 0.33, 0.24)), body(limb(knee, ankle, 0.24, 0.16)))


def draw_torso_and_arms(drawing: Drawing, look: Appearance, rng: Generator) -> None:
    """Draw clothes, arms and hands."""
    body = look.body
    shoulder, waist = rng.uniform((0.7, 0.5), (1.02, 0.8))
    upper = ((0.15, -0.02), (0.3, 0.03), (0.85 * shoulder, 0.14), (shoulder, 0.3))
    lower = ((0.92 * shoulder, 0.9), (waist, 1.7), (0.68, 2.4), (0.66, 2.8))
    dressed = [symmetric(*upper, *lower)]
    bare = [symmetric((0.2, -0.1), (0.24, 0.05), (rng.uniform(0.02, 0.2), rng.uniform(0.15, 0.6)))]
    long_sleeves = rng.random() < 0.6
    for side in (-1, 1):
        # Turns of the upper and lower arm: hanging, on the hip, folded, raised.
        pose = rng.choice(((0.1, 0.05), (0.6, -0.8), (0.25, -1.9), (1.9, 2.8)), p=(0.55, 0.2, 0.15, 0.1))
        turns = rng.normal(pose, 0.12)[[0, 1, 1]]
        top, elbow, wrist, hand = joints((shoulder - 0.18, 0.37), (1.25, 1.1, 0.2), turns) * (side, 1)
        dressed.append(limb(top, elbow, 0.21, 0.16))
        (dressed if long_sleeves else bare).append(limb(elbow, wrist, 0.16, 0.11))
        bare.append(limb(wrist, hand, 0.12, 0.13))
    drawing.fill_with(weave(drawing, look, rng), *(body(outline) for outline in dressed))
    drawing.fill(look.skin, *(body(outline) for outline in bare))
    drawing.fill(0.85 * look.skin, body(symmetric((0.17, -0.5), (0.18, -0.1), (0.3, 0.15), (0.1, 0.2))))


def weave(drawing: Drawing, look: Appearance, rng: Generator) -> Image.Image:
    """Draw cloth as large as the drawing: plain, striped or checked."""
    cloth = Drawing(Image.new(drawing.image.mode, drawing.image.size, ink(look.cloth)))
    second, period, breadth = any_colour(rng), rng.uniform(0.2, 0.5), rng.uniform(0.2, 0.7)
    across, along = rng.random(2) < 0.25
    for at in np.arange(-3, 3, period):
        if across:
            cloth.fill(second, look.body(box(-4, at, 4, at + breadth * period)))
        if along:
            cloth.fill(second, look.body(box(at, -4, at + breadth * period, 4)))
    return cloth.image


def draw_face(drawing: Drawing, look: Appearance, rng: Generator) -> None:
    """Draw head, neck shadow, ears and features of the face."""
    head, skin = look.head, look.skin
    width, jaw, turn, mouth = rng.uniform((0.35, 0.5, -0.1, 0.08), (0.41, 0.8, 0.1, 0.14))
    face = symmetric((0.5 * width, -0.52), (width, -0.4), (1.05 * width, 0), (jaw * width + 0.05, 0.42), (0.1, 0.54))
    drawing.fill(0.65 * skin, head(0.9 * face + (0, 0.1)))
    drawing.fill(0.9 * skin, head(arc(-width, 0.02, 0.06, 0.11)), head(arc(width, 0.02, 0.06, 0.11)))
    drawing.fill(skin, head(face))
    for x in (turn - 0.16, turn + 0.16):
        drawing.fill(0.7 * look.hair, head(arc(x, -0.12, 0.09, 0.018)))
        drawing.fill(np.array([0.9, 0.88, 0.86]), head(arc(x, -0.03, 0.06, 0.03)))
        drawing.fill(np.array([0.15, 0.1, 0.08]), head(arc(x, -0.03, 0.028, 0.03)))
    drawing.fill(0.8 * skin, head(arc(1.3 * turn, 0.13, 0.05, 0.03)))
    if rng.random() < 0.15:
        drawing.fill(look.hair, head(arc(0, 0.17, 0.97 * width, 0.37, 0, 1)))
    drawing.fill(skin * (0.85, 0.5, 0.5), head(arc(1.2 * turn, 0.28, mouth, 0.03)))
