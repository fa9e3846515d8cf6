"""People-like figures with an exact soft alpha, for the quick start and the tests.

    (seed, index) -> figure: RGB premultiplied by alpha -> over a background -> camera -> image_HWC, alpha_HW

The figure is drawn with sharp shapes on nothing, at several samples per pixel. Averaging the samples tells the colour
of each pixel and how much of it the figure covers: alpha is what the picture is composed with, never an estimate.
Lengths are relative to the picture's height (x from its middle, y from its top), and no random number but the sensor's
noise depends on the size: one (seed, index) shows the same person at every size. Must not know: files, torch.
"""

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

Pixels = NDArray[np.uint8]
Floats = NDArray[np.floating]
Points = NDArray[np.floating]  # …×2: x, y
Colour = NDArray[np.floating]  # R, G, B; 0 is black, 1 is white

SKIN_TONES = ((0.96, 0.82, 0.72), (0.89, 0.69, 0.55), (0.75, 0.54, 0.39), (0.54, 0.36, 0.25), (0.38, 0.25, 0.18))
HAIR_TONES = ((0.07, 0.06, 0.06), (0.2, 0.13, 0.1), (0.4, 0.25, 0.14), (0.6, 0.3, 0.13), (0.85, 0.7, 0.45), (0.7,) * 3)


def draw_person(seed: int, index: int, width: int, height: int) -> tuple[Pixels, Pixels]:
    """Take one photo of a made-up person: a pure function of its arguments.

    Args:
        seed, index: which person, both at least 0. The same pair shows the same person at every size.
        width, height: size of the picture in pixels.

    Returns:
        image_HWC: RGB.
        alpha_HW: 255 where only the person is seen, 0 where only the background is.
    """
    sequences = np.random.SeedSequence([seed, index]).spawn(4)
    look_rng, figure_rng, background_rng, camera_rng = (np.random.default_rng(sequence) for sequence in sequences)
    look = draw_look(look_rng)
    figure_HWC = draw_figure(look, figure_rng, width, height)
    background_HWC = draw_background(look, background_rng, width, height)
    scene_HWC = figure_HWC[..., :3] + (1 - figure_HWC[..., 3:]) * background_HWC
    return photograph(scene_HWC, camera_rng), to_bytes(figure_HWC[..., 3])


# ----------------------------------------------------------------------------------------------- shapes and colours


class Drawing:
    """Sharp shapes on a Pillow image that has several samples per pixel."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self._draw = ImageDraw.Draw(image)

    def fill(self, colour: Colour, *outlines: Points) -> None:
        """Fill the inside of outlines with one colour."""
        for outline in outlines:
            self._draw.polygon(self._samples(outline).ravel().tolist(), fill=ink(colour))

    def hatch(self, colour: Colour, lines_NK2: Points) -> None:
        """Draw N lines as thin as hairs."""
        fill, width = ink(colour), max(1, round(self.image.height / 512))
        for line in self._samples(lines_NK2).reshape(len(lines_NK2), -1).tolist():
            self._draw.line(line, fill=fill, width=width)

    def fill_with(self, pattern: Image.Image, *outlines: Points) -> None:
        """Fill with an image of the drawing's own size."""
        stencil = Image.new("1", self.image.size)
        for outline in outlines:
            ImageDraw.Draw(stencil).polygon(self._samples(outline).ravel().tolist(), fill=1)
        self.image.paste(pattern, mask=stencil)

    def _samples(self, points: Points) -> Points:
        samples: Points = points * self.image.height + (self.image.width / 2, 0)
        return samples


class Frame(NamedTuple):
    """The coordinates of a body or a head: where they lie in the picture, their size and their lean."""

    x: float
    y: float
    scale: float
    angle: float

    def __call__(self, points: Points) -> Points:
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        placed: Points = points @ np.array([[cos, sin], [-sin, cos]]) * self.scale + (self.x, self.y)
        return placed


def box(left: float, top: float, right: float, bottom: float) -> Points:
    """A rectangle."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def arc(x: float, y: float, radius_x: float, radius_y: float, start: float = 0, stop: float = 2) -> Points:
    """A piece of an ellipse, from its right over its bottom; angles in half turns."""
    angles = np.pi * (start + (stop - start) * np.arange(36) / 35)
    return np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], axis=1)


def limb(start: Points, stop: Points, start_radius: float, stop_radius: float) -> Points:
    """Two discs and what lies between them."""
    x, y = stop - start
    along = np.arctan2(y, x) / np.pi
    near_end = arc(start[0], start[1], start_radius, start_radius, along + 0.5, along + 1.5)
    return np.concatenate([near_end, arc(stop[0], stop[1], stop_radius, stop_radius, along - 0.5, along + 0.5)])


def joints(start: tuple[float, float], bones: Sequence[float], turns: Floats) -> Points:
    """Where a chain of bones bends: their lengths, and how far each turns outwards from straight down, in radians."""
    steps = np.array(bones)[:, None] * np.stack([np.sin(turns), np.cos(turns)], axis=1)
    return np.cumsum([start, *steps], axis=0)


def symmetric(*right_half: tuple[float, float]) -> Points:
    """A closed outline from its right half, top to bottom, with its corners cut three times (Chaikin 1974)."""
    points = np.array(right_half)
    points = np.concatenate([points, points[::-1] * (-1, 1)])
    for _ in range(3):
        following = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * following, 0.25 * points + 0.75 * following], axis=1).reshape(-1, 2)
    return points


def any_colour(rng: Generator) -> Colour:
    """Any but the very dark."""
    return np.array(colorsys.hsv_to_rgb(rng.random(), rng.random() ** 2, rng.uniform(0.2, 0.97)))


def any_of(rng: Generator, tones: Sequence[tuple[float, ...]]) -> Colour:
    """One of these tones, or one close to it."""
    tone: Colour = rng.choice(tones)
    return tone * rng.uniform(0.85, 1.15) + rng.normal(0, 0.02, 3)


def ink(colour: Colour) -> tuple[int, ...]:
    """The colour as Pillow takes it."""
    return tuple(to_bytes(colour).tolist())


def to_bytes(values: Floats) -> Pixels:
    """[0, 1] to 0 … 255, rounded and clipped."""
    return (values.clip(0, 1) * 255 + 0.5).astype(np.uint8)


# -------------------------------------------------------------------------------------------------------- the figure


class Look(NamedTuple):
    """What the parts of a picture must agree on.

    The unit of both frames is the height of the head; the body's origin is the base of the neck, the head's its middle.
    """

    body: Frame
    head: Frame
    skin: Colour
    hair: Colour
    cloth: Colour


class Framing(NamedTuple):
    """How much of a person a picture shows; lengths in heights of the picture."""

    share: float  # of all pictures
    head: tuple[float, float]
    room: tuple[float, float]  # above the head


FRAMINGS = (
    Framing(share=0.77, head=(0.24, 0.38), room=(0.06, 0.24)),  # half-length portrait
    Framing(share=0.16, head=(0.44, 0.60), room=(0.06, 0.20)),  # head
    Framing(share=0.07, head=(0.125, 0.16), room=(0.03, 0.10)),  # whole figure
)


class Hairstyle(NamedTuple):
    """Lengths in heads, from the middle of the head."""

    width: float
    rise: float
    fall: float
    stray: float
    curl: float


HAIRSTYLES = (
    Hairstyle(width=0.41, rise=0.55, fall=0.0, stray=0.04, curl=0.2),  # cropped
    Hairstyle(width=0.45, rise=0.60, fall=0.1, stray=0.08, curl=0.5),  # short
    Hairstyle(width=0.58, rise=0.75, fall=0.3, stray=0.10, curl=1.5),  # afro
    Hairstyle(width=0.48, rise=0.58, fall=0.5, stray=0.08, curl=0.4),  # bob
    Hairstyle(width=0.47, rise=0.58, fall=1.2, stray=0.10, curl=0.5),  # long
    Hairstyle(width=0.56, rise=0.62, fall=1.7, stray=0.12, curl=1.0),  # very long, wavy
)


def draw_look(rng: Generator) -> Look:
    """Choose what the person looks like."""
    framing = FRAMINGS[rng.choice(len(FRAMINGS), p=[framing.share for framing in FRAMINGS])]
    scale, room = rng.uniform(*framing.head), rng.uniform(*framing.room)
    lean, tilt = rng.normal(0, (0.05, 0.1))
    body = Frame(rng.normal(0, 0.1), room + 1.12 * scale, scale, lean)
    head_x, head_y = body(np.array([0.62 * np.sin(tilt), -0.62 * np.cos(tilt)]))
    head = Frame(head_x, head_y, scale, lean + tilt)
    return Look(body, head, skin=any_of(rng, SKIN_TONES), hair=any_of(rng, HAIR_TONES), cloth=any_colour(rng))


def draw_figure(look: Look, rng: Generator, width: int, height: int) -> Floats:
    """The person alone: RGBA in [0, 1], premultiplied."""
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


def light(alpha_HW: Floats, angle: float, strength: float) -> Floats:
    """The brightness of a figure lit from one side, as if it were puffed up: its blurred alpha is its height."""
    reach = 0.04 * len(alpha_HW)
    blurred = Image.fromarray(to_bytes(alpha_HW)).filter(ImageFilter.GaussianBlur(reach))
    relief_HW = np.asarray(blurred, np.float32) / 255
    down_HW, right_HW = np.gradient(relief_HW)
    slope_HW = reach * (float(np.cos(angle)) * right_HW + float(np.sin(angle)) * down_HW)
    return 1 - strength * (1 - relief_HW + 2 * slope_HW)


def draw_hair_behind(drawing: Drawing, look: Look, style: Hairstyle, rng: Generator) -> None:
    """The hair that the head hides a part of."""
    crown = arc(0, 0, style.width, style.rise, 1, 2)
    right = (style.width, 0) + np.linspace(0, 1, 24)[1:, None] * (rng.uniform(-0.1, 0.12), style.fall)
    outline = np.concatenate([crown, right, right[::-1] * (-1, 1)])
    outline += rng.normal(0, 0.012, outline.shape)
    draw_strands(drawing, look, style, outline, rng)
    drawing.fill(0.75 * look.hair, look.head(outline))


def draw_hair_in_front(drawing: Drawing, look: Look, style: Hairstyle, rng: Generator) -> None:
    """The hair over the forehead."""
    crown = arc(0, 0, style.width, style.rise, 1, 2)
    parting, hairline = rng.uniform((-0.25, -0.42), (0.25, -0.24))
    fringe = np.array([(0.4, 0.05), (0.36, -0.15), (parting, hairline), (-0.36, -0.15), (-0.4, 0.05)])
    drawing.fill(look.hair, look.head(np.concatenate([crown, fringe])))
    draw_strands(drawing, look, style, crown, rng)


def draw_strands(drawing: Drawing, look: Look, style: Hairstyle, outline: Points, rng: Generator) -> None:
    """Hairs from an outline outwards, most of them short, in locks that share a direction."""
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


def draw_legs(drawing: Drawing, look: Look, rng: Generator) -> None:
    """Both legs, of a figure that is seen whole."""
    body, trousers, shoes = look.body, any_colour(rng), any_colour(rng)
    for side in (-1, 1):
        turns = np.append(rng.normal(0.03, 0.07, 2), 1.2)
        hip, knee, ankle, toes = joints((0.3, 2.5), (1.7, 1.6, 0.25), turns) * (side, 1)
        drawing.fill(shoes, body(limb(ankle, toes, 0.16, 0.1)))
        drawing.fill(trousers, body(limb(hip, knee, 0.33, 0.24)), body(limb(knee, ankle, 0.24, 0.16)))


def draw_torso_and_arms(drawing: Drawing, look: Look, rng: Generator) -> None:
    """Clothes, arms and hands."""
    body = look.body
    shoulder, waist = rng.uniform((0.7, 0.5), (1.02, 0.8))
    upper = ((0.15, -0.02), (0.3, 0.03), (0.85 * shoulder, 0.14), (shoulder, 0.3))
    lower = ((0.92 * shoulder, 0.9), (waist, 1.7), (0.68, 2.4), (0.66, 2.8))
    dressed = [symmetric(*upper, *lower)]
    bare = [symmetric((0.2, -0.1), (0.24, 0.05), (rng.uniform(0.02, 0.2), rng.uniform(0.15, 0.6)))]
    long_sleeves = rng.random() < 0.6
    for side in (-1, 1):
        # The arm hangs, rests on the hip, is folded, is raised: the turns of its upper half and of its lower.
        pose = rng.choice(((0.1, 0.05), (0.6, -0.8), (0.25, -1.9), (1.9, 2.8)), p=(0.55, 0.2, 0.15, 0.1))
        turns = rng.normal(pose, 0.12)[[0, 1, 1]]
        top, elbow, wrist, hand = joints((shoulder - 0.18, 0.37), (1.25, 1.1, 0.2), turns) * (side, 1)
        dressed.append(limb(top, elbow, 0.21, 0.16))
        (dressed if long_sleeves else bare).append(limb(elbow, wrist, 0.16, 0.11))
        bare.append(limb(wrist, hand, 0.12, 0.13))
    drawing.fill_with(weave(drawing, look, rng), *(body(outline) for outline in dressed))
    drawing.fill(look.skin, *(body(outline) for outline in bare))
    drawing.fill(0.85 * look.skin, body(symmetric((0.17, -0.5), (0.18, -0.1), (0.3, 0.15), (0.1, 0.2))))


def weave(drawing: Drawing, look: Look, rng: Generator) -> Image.Image:
    """Cloth as large as the drawing: plain, striped or checked."""
    cloth = Drawing(Image.new(drawing.image.mode, drawing.image.size, ink(look.cloth)))
    second, period, breadth = any_colour(rng), rng.uniform(0.2, 0.5), rng.uniform(0.2, 0.7)
    across, along = rng.random(2) < 0.25
    for at in np.arange(-3, 3, period):
        if across:
            cloth.fill(second, look.body(box(-4, at, 4, at + breadth * period)))
        if along:
            cloth.fill(second, look.body(box(at, -4, at + breadth * period, 4)))
    return cloth.image


def draw_face(drawing: Drawing, look: Look, rng: Generator) -> None:
    """The head and what is in it."""
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


# ---------------------------------------------------------------------------------------- the background, the camera


def draw_background(look: Look, rng: Generator, width: int, height: int) -> Floats:
    """A room, a landscape or a bare wall, in or out of focus: RGB in [0, 1]."""
    one, other = any_colour(rng), any_colour(rng)
    if rng.random() < 0.2:
        one = rng.choice((look.cloth, look.skin, look.hair))
    corners = one + rng.random((3, 3, 1)) * rng.uniform(0, 0.8) * (other - one)
    wall = Image.fromarray(to_bytes(corners))
    drawing = Drawing(wall.resize((2 * width, 2 * height), Image.Resampling.BICUBIC))
    place = rng.random()
    if place < 0.4:
        draw_room(drawing, rng)
    elif place < 0.8:
        draw_landscape(drawing, rng)
    draw_distractors(drawing, look, rng)
    # As in most portraits the person is what is sharp, bright and colourful; but not in all of them.
    blur, saturation, brightness, contrast = rng.uniform((0, 0.2, 0.45, 0.15), (0.03, 0.8, 0.95, 0.45)).tolist()
    picture = drawing.image.reduce(2).filter(ImageFilter.GaussianBlur(blur * height))
    picture = ImageEnhance.Color(picture).enhance(saturation)
    grain = Image.fromarray(rng.random((24, 24), np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    texture_HW = brightness * (1 + contrast * (np.asarray(grain) - 0.5))
    background_HWC: Floats = np.asarray(picture, np.float32) / 255 * texture_HW[..., None]
    return background_HWC


def draw_room(drawing: Drawing, rng: Generator) -> None:
    """Walls, a floor, and furniture."""
    drawing.fill(any_colour(rng), box(-2, rng.uniform(0.55, 1), 2, 1))
    for _ in range(rng.integers(1, 6)):
        left, top, wide, tall, frame = rng.uniform((-0.6, -0.1, 0.08, 0.1, 0.01), (0.5, 0.6, 0.4, 0.6, 0.03))
        drawing.fill(any_colour(rng), box(left, top, left + wide, top + tall))
        drawing.fill(any_colour(rng), box(left + frame, top + frame, left + wide - frame, top + tall - frame))


def draw_landscape(drawing: Drawing, rng: Generator) -> None:
    """Sky, ground, and what stands on it."""
    horizon = rng.uniform(0.3, 0.8)
    green = np.array([0.3, 0.45, 0.2]) * rng.uniform(0.4, 1.3)
    drawing.fill(green * rng.uniform(0.7, 1.3, 3), box(-2, horizon, 2, 1))
    for _ in range(rng.integers(10, 50)):
        x, y, radius = rng.normal((0, horizon - 0.1, 0.05), (0.4, 0.12, 0.02))
        drawing.fill(green * rng.uniform(0.5, 1.4), arc(x, y, radius, radius))


def draw_distractors(drawing: Drawing, look: Look, rng: Generator) -> None:
    """Balls of the colours of people, some of them on a post: not every round thing is a head."""
    for _ in range(rng.poisson(1.2)):
        x, y, radius, post = rng.uniform((-0.6, 0.1, 0.03, -0.1), (0.6, 0.8, 0.13, 0.1))
        if post > 0:
            drawing.fill(any_colour(rng), box(x - post, y, x + post, 1))
        colour = rng.choice((any_of(rng, SKIN_TONES), any_of(rng, HAIR_TONES), look.cloth, any_colour(rng)))
        drawing.fill(colour, arc(x, y, radius, radius * rng.uniform(0.8, 1.4)))


def photograph(scene_HWC: Floats, rng: Generator) -> Pixels:
    """Expose a scene: gain, colour cast and gamma, then the sensor's noise."""
    gain = rng.uniform(0.8, 1.25) * rng.normal(1, 0.05, 3)
    gamma, noise = rng.uniform((0.75, 0), (1.25, 0.025)).tolist()
    exposed_HWC = (scene_HWC * gain.astype(np.float32)).clip(0, 1) ** gamma
    return to_bytes(exposed_HWC + noise * rng.standard_normal(scene_HWC.shape, np.float32))
