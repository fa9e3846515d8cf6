"""Random numbers of the augmentation, drawn on the host and copied to the device once a batch.

    Randomness of an epoch, number of images -> draw -> Draws on the device, one row an image -> matting.nn.augment

Which images change is known on the host, so that no step waits for the device to count them.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from matting.nn.precision import to_device

# Sides of the sampling window, relative to the image's: below 1 the image is enlarged, above 1 it is reduced.
SCALE_RANGE = (0.6, 1.4)
COMPOSITE_MAX_SCALE = 2.5  # upper end of the range for composites, whose new background fills the whole window
MAX_STRETCH = 0.15  # largest |log(horizontal scale / vertical scale)|
MAX_ROTATION = math.radians(6)
JITTER_STD = 0.2  # standard deviation of the logarithms of brightness, contrast and saturation
TINT_STD = 0.1  # standard deviation of the logarithm of each channel's gain
COMPOSITE_FRACTION = 0.3  # fraction of the images that get another background
BACKGROUND_PHOTO_FRACTION = 0.6  # fraction of composites that use a photo without people, if there are any
BLUR_FRACTION = 0.25
NOISE_FRACTION = 0.25
MAX_NOISE_STD = 0.06


class Randomness(NamedTuple):
    """Sources of the random numbers of an epoch.

    Args:
        host: Generator of everything but noise, so that a run draws the same numbers on every device.
        noise: Generator of the noise, on the device of the images.
    """

    host: np.random.Generator
    noise: torch.Generator

    @classmethod
    def seeded(cls, seed: int, device: torch.device) -> "Randomness":
        """Return generators that follow from a seed."""
        return cls(np.random.default_rng(seed), torch.Generator(device).manual_seed(seed))


class Draws(NamedTuple):
    """Random numbers of one batch of B images: float32 and int64 tensors on the device.

    Args:
        windows: Affine maps of the images, float (B, 2, 3); see :func:`draw_windows`.
        colors: Color changes of the images, float (B, 5, 1, 1); see :func:`draw_colors`.
        photo_windows: Affine maps of the chosen photos, float (P, 2, 3).
        photo_colors: Color changes of the chosen photos, float (P, 5, 1, 1).
        noise_stds: Standard deviations of the noise, float (N, 1, 1, 1).
        composites: Numbers of the images that get another background, int (C). The first P get a photo.
        neighbours: Numbers of the images whose backgrounds the others get, int (C - P).
        photos: Numbers of the chosen photos, int (P).
        blurred: Numbers of the blurred images, int.
        noisy: Numbers of the noisy images, int (N).
    """

    windows: Tensor
    colors: Tensor
    photo_windows: Tensor
    photo_colors: Tensor
    noise_stds: Tensor
    composites: Tensor
    neighbours: Tensor
    photos: Tensor
    blurred: Tensor
    noisy: Tensor


def draw(count: int, photo_count: int, host: np.random.Generator, device: torch.device) -> Draws:
    """Draw the random numbers of one batch, and copy them to the device.

    Args:
        count: Number of images in the batch.
        photo_count: Number of photos without people to choose from; may be 0.
        host: Generator to draw from.
        device: Device of the images.
    """
    is_composite = host.random(count) < COMPOSITE_FRACTION
    max_scales = np.where(is_composite, COMPOSITE_MAX_SCALE, SCALE_RANGE[1])
    windows, colors = draw_windows(max_scales, host), draw_colors(count, host)
    composites = np.flatnonzero(is_composite)
    on_photo = host.random(len(composites)) < (BACKGROUND_PHOTO_FRACTION if photo_count else 0)
    photos = host.integers(photo_count, size=on_photo.sum()) if photo_count else np.zeros(0, np.int64)
    noisy = np.flatnonzero(host.random(count) < NOISE_FRACTION)
    floats = [
        windows,
        colors,
        draw_windows(np.full(len(photos), SCALE_RANGE[1]), host),
        draw_colors(len(photos), host),
        host.uniform(0, MAX_NOISE_STD, (len(noisy), 1, 1, 1)),
    ]
    indices = [
        np.concatenate([composites[on_photo], composites[~on_photo]]),
        (composites[~on_photo] + 1) % count,
        photos,
        np.flatnonzero(host.random(count) < BLUR_FRACTION),
        noisy,
    ]
    return Draws(*copy_once(floats, indices, device))


def draw_windows(max_scales: np.ndarray, host: np.random.Generator) -> np.ndarray:
    """Draw random windows, flipped horizontally half of the time.

    Args:
        max_scales: Upper end of the range of each window's side, relative to the image's; float (B).
        host: Generator to draw from.

    Returns:
        The two rows of the affine map from output to input coordinates, both in [-1, 1]; float (B, 2, 3). A window
        that is smaller than the image lies inside it. A larger one ends at the image's bottom edge, which cuts people
        off.
    """
    count = len(max_scales)
    scale = np.exp(host.uniform(math.log(SCALE_RANGE[0]), np.log(max_scales)))
    stretch = np.exp(host.uniform(-MAX_STRETCH / 2, MAX_STRETCH / 2, count))
    scale_x, scale_y = scale * stretch, scale / stretch
    angle = host.uniform(-MAX_ROTATION, MAX_ROTATION, count)
    flip = np.where(host.random(count) < 0.5, -1.0, 1.0)
    across, down = host.uniform(-1, 1, (2, count))
    shift_x = across * np.abs(1 - scale_x)
    shift_y = np.where(scale_y < 1, down, 1) * (1 - scale_y)
    cos, sin = np.cos(angle), np.sin(angle)
    rows = [scale_x * cos * flip, -scale_y * sin, shift_x, scale_x * sin * flip, scale_y * cos, shift_y]
    return np.stack(rows, axis=1).reshape(count, 2, 3)


def draw_colors(count: int, host: np.random.Generator) -> np.ndarray:
    """Draw color changes: factors of saturation, contrast, red, green and blue, float (count, 5, 1, 1)."""
    saturation, contrast, brightness = np.exp(host.normal(0, JITTER_STD, (3, count, 1)))
    tint = np.exp(host.normal(0, TINT_STD, (count, 3)))
    return np.concatenate([saturation, contrast, brightness * tint], axis=1)[:, :, None, None]


def draw_flips(count: int, host: np.random.Generator, device: torch.device) -> Tensor:
    """Draw which of ``count`` images are flipped, with probability 1/2: boolean (count, 1, 1, 1) on the device."""
    return to_device((host.random(count) < 0.5)[:, None, None, None], device)


def copy_once(floats: Sequence[np.ndarray], indices: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, ...]:
    """Return the arrays as float32 and the indices as int64 tensors on the device, with a single copy.

    Indices travel as float32, which holds whole numbers up to 2^24.
    """
    arrays = [*floats, *indices]
    joined = to_device(np.concatenate([array.ravel() for array in arrays], dtype=np.float32), device)
    boundary = sum(array.size for array in floats)
    parts = [
        *torch.split(joined[:boundary], [array.size for array in floats]),
        *torch.split(joined[boundary:].long(), [array.size for array in indices]),
    ]
    return tuple(part if array.ndim == 1 else part.view(array.shape) for part, array in zip(parts, arrays, strict=True))
