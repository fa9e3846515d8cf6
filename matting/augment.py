"""Variety for training, a whole batch at a time, on whatever device the batch is on.

    image_BCHW and alpha_B1HW, float in [0, 1]
      -> moved     mirrored, zoomed, turned, stretched; at the size that training wants just now
      -> relit     brightness, contrast, colour
      -> placed    some of the people before the backgrounds of others, or photos without people
      -> worn      some pictures blurred, noisy
      -> image_BCHW and alpha_B1HW again, float in [0, 1]

Randomness comes from the caller's generator only (a CPU generator, so that a run draws the same numbers on every
device). No files, no models.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

ZOOM = (0.6, 1.4)  # side of the window over the picture's: from a closer look to a person farther away
FAR = 2.5  # in place of 1.4 for people placed before another background, since that is all around them
STRETCH = 0.15  # of one side against the other, as the logarithm of their ratio
TURN = math.radians(6)
LIGHT = 0.2  # standard deviation of the logarithm of brightness, of contrast and of saturation
TINT = 0.1  # of the logarithm of each colour's share
PLACED = 0.3  # of the pictures
RIM = 1 / 64  # of the picture's side: how far beyond its alpha a person is still to be seen
ELSEWHERE = 0.6  # of these, if there are photos without people, before one of them
WORN = 0.25  # are blurred; and as many are noisy
NOISE = 0.06  # standard deviation at the most


def vary(
    image_BCHW: Tensor,
    alpha_B1HW: Tensor,
    size: int,
    generator: torch.Generator,
    backgrounds_NCHW: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """All of it, in turn.

    Args:
        image_BCHW: float in [0, 1].
        alpha_B1HW: float in [0, 1].
        size: pixels a side of what is wanted.
        generator: a CPU generator; the only source of randomness.
        backgrounds_NCHW: uint8, photos without people, if there are any.

    Returns:
        image_BCHW and alpha_B1HW of that size, float in [0, 1].
    """
    placed = torch.rand(image_BCHW.shape[0], generator=generator) < PLACED
    image, alpha, inside = move(image_BCHW, alpha_B1HW, size, torch.where(placed, FAR, ZOOM[1]), generator)
    image = relight(image, generator)
    image, alpha = place(image, alpha, inside, placed, generator, backgrounds_NCHW)
    return wear(image, generator), alpha


def move(
    image_BCHW: Tensor, alpha_B1HW: Tensor, size: int, widest: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Look at each picture through a random window, mirrored half of the time.

    A window smaller than the picture lies inside of it. A larger one ends where the picture does at the bottom, as
    people do who are cut off there, and shows reflections elsewhere.

    Args:
        image_BCHW: float in [0, 1].
        alpha_B1HW: float in [0, 1].
        size: pixels a side of what is wanted.
        widest: float (B), the side of each one's largest window over the picture's.
        generator: a CPU generator.

    Returns:
        Image and alpha, sampled on one grid, bilinearly, so that they stay aligned; and ``inside_B1HW``, 1 where
        there is a picture and 0 where there are reflections.
    """
    count = image_BCHW.shape[0]
    scale = torch.exp(uniform(count, math.log(ZOOM[0]), torch.log(widest), generator))
    stretch = torch.exp(uniform(count, -STRETCH / 2, STRETCH / 2, generator))
    across, down = scale * stretch, scale / stretch
    turn = uniform(count, -TURN, TURN, generator)
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    shift_x = uniform(count, -1, 1, generator) * (1 - across).abs()
    shift_y = torch.where(down < 1, uniform(count, -1, 1, generator) * (1 - down), 1 - down)
    # Rows of the affine map from output to input coordinates, both in [-1, 1].
    cos, sin = torch.cos(turn), torch.sin(turn)
    theta = torch.stack([across * cos * mirror, -down * sin, shift_x, across * sin * mirror, down * cos, shift_y], 1)
    both = torch.cat([image_BCHW, alpha_B1HW], dim=1)
    shape = [count, both.shape[1], size, size]
    grid = functional.affine_grid(theta.view(count, 2, 3).to(both), shape, align_corners=False)
    both = functional.grid_sample(both, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    inside = (grid.abs().amax(dim=3) <= 1)[:, None].to(both)
    return both[:, :3], both[:, 3:], inside


def relight(image_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Other light: contrast, saturation, brightness and tint of each picture change."""
    count = image_BCHW.shape[0]

    def factors(deviation: float, columns: int) -> Tensor:
        drawn = torch.randn(count, columns, 1, 1, generator=generator) * deviation
        return torch.exp(drawn).to(image_BCHW)

    contrast, saturation, gain = factors(LIGHT, 1), factors(LIGHT, 1), factors(LIGHT, 1) * factors(TINT, 3)
    grey = image_BCHW.mean(dim=1, keepdim=True)
    middle = grey.mean(dim=(2, 3), keepdim=True)
    # grey + saturation (image - grey) is the colour; from its distance to the middle, contrast.
    image = torch.lerp(grey, image_BCHW, saturation)
    return (torch.lerp(middle, image, contrast) * gain).clamp(0, 1)


def place(
    image_BCHW: Tensor,
    alpha_B1HW: Tensor,
    inside_B1HW: Tensor,
    placed_B: Tensor,
    generator: torch.Generator,
    backgrounds_NCHW: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Put the people of these pictures before the background of the next of the batch, or before one of the photos.

    Where the next picture has a person, its background is carried on from around; from beyond the rim, where masks are
    too small or hair is thin, or an outline of that person would be left there to learn from.
    """
    behind = torch.nonzero(placed_B).squeeze(1)
    if not len(behind):
        return image_BCHW, alpha_B1HW
    others = (behind + 1) % len(placed_B)
    background = carry_on(image_BCHW[others], 1 - widened(alpha_B1HW[others]))
    if backgrounds_NCHW is not None:
        elsewhere = torch.nonzero(torch.rand(len(behind), generator=generator) < ELSEWHERE).squeeze(1)
        if len(elsewhere):
            background[elsewhere] = scenes(backgrounds_NCHW, len(elsewhere), image_BCHW.shape[-1], generator)
    alpha = alpha_B1HW[behind] * inside_B1HW[behind]
    image_BCHW, alpha_B1HW = image_BCHW.clone(), alpha_B1HW.clone()
    image_BCHW[behind] = torch.lerp(background, image_BCHW[behind], alpha)
    alpha_B1HW[behind] = alpha
    return image_BCHW, alpha_B1HW


def scenes(backgrounds_NCHW: Tensor, count: int, size: int, generator: torch.Generator) -> Tensor:
    """So many of the backgrounds, as much moved and relit as people are: image_BCHW, float in [0, 1]."""
    picked = torch.randint(len(backgrounds_NCHW), (count,), generator=generator)
    image = backgrounds_NCHW[picked.to(backgrounds_NCHW.device)].float() / 255
    moved, _, _ = move(image, torch.zeros_like(image[:, :1]), size, torch.full((count,), ZOOM[1]), generator)
    return relight(moved, generator)


def widened(alpha_B1HW: Tensor) -> Tensor:
    """Each pixel's greatest alpha as far as the rim."""
    reach = max(1, round(RIM * alpha_B1HW.shape[-1]))
    return functional.max_pool2d(alpha_B1HW, 2 * reach + 1, stride=1, padding=reach)


def carry_on(image_BCHW: Tensor, weight_B1HW: Tensor) -> Tensor:
    """The picture where the weight is 1; where it is 0, means of what is known around, from nearer to farther."""
    known, weight = image_BCHW * weight_B1HW, weight_B1HW
    pyramid = []
    while min(weight.shape[-2:]) > 1:
        pyramid.append((known, weight))
        known, weight = functional.avg_pool2d(known, 2), functional.avg_pool2d(weight, 2)
    filled = known / weight.clamp_min(1e-3)
    for known, weight in reversed(pyramid):
        around = functional.interpolate(filled, size=weight.shape[-2:], mode="bilinear")
        filled = known + around * (1 - weight)
    return filled.clamp(0, 1)


def wear(image_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """What cameras and small files do: some pictures lose their detail, some get noise."""
    count = image_BCHW.shape[0]
    image_BCHW = image_BCHW.clone()
    blurred = torch.nonzero(torch.rand(count, generator=generator) < WORN).squeeze(1)
    if len(blurred):
        small = functional.avg_pool2d(image_BCHW[blurred], 2)
        image_BCHW[blurred] = functional.interpolate(small, size=image_BCHW.shape[-2:], mode="bilinear")
    noisy = torch.nonzero(torch.rand(count, generator=generator) < WORN).squeeze(1)
    if len(noisy):
        noise = torch.randn(len(noisy), *image_BCHW.shape[1:], generator=generator)
        noise *= uniform(len(noisy), 0, NOISE, generator)[:, None, None, None]
        image_BCHW[noisy] = (image_BCHW[noisy] + noise.to(image_BCHW)).clamp(0, 1)
    return image_BCHW


def mirror(image_BCHW: Tensor, alpha_B1HW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """About half of the pictures mirrored, and nothing else, so that they stay as sharp and whole as they came."""
    chosen = (torch.rand(image_BCHW.shape[0], generator=generator) < 0.5).to(image_BCHW.device)[:, None, None, None]
    return torch.where(chosen, image_BCHW.flip(3), image_BCHW), torch.where(chosen, alpha_B1HW.flip(3), alpha_B1HW)


def uniform(count: int, low: float, high: float | Tensor, generator: torch.Generator) -> Tensor:
    """So many numbers between the two, of which the second may be a number each."""
    return low + (high - low) * torch.rand(count, generator=generator)
