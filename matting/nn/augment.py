"""Augmentation of whole batches of images and alphas, on the device of the batch.

    image_BCHW and alpha_B1HW, float in [0, 1]
      -> random_affine   flipped, scaled, rotated, stretched; resampled to the size that training uses now
      -> color_jitter    brightness, contrast, saturation, tint
      -> composite       a fraction of the people on the backgrounds of other images, or on photos without people
      -> degrade         a fraction of the images blurred, and a fraction noisy
      -> image_BCHW and alpha_B1HW, float in [0, 1]

All random numbers but the noise are drawn beforehand, by :mod:`matting.nn.augment_draws`.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from matting.nn.augment_draws import Draws, Randomness, draw, draw_flips

DILATION = 1 / 64  # distance from its alpha at which a person may still be visible, relative to the side of the image


def augment(
    image_BCHW: Tensor,
    alpha_B1HW: Tensor,
    size: int,
    randomness: Randomness,
    backgrounds_NCHW: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Apply every augmentation to a batch: affine map, color, background, degradation.

    Args:
        image_BCHW: Images, float in [0, 1].
        alpha_B1HW: Alphas, float in [0, 1].
        size: Side in pixels of the results.
        randomness: Only source of random numbers.
        backgrounds_NCHW: Photos without people, uint8, of any size; or None.

    Returns:
        image_BCHW and alpha_B1HW of that size, float in [0, 1].
    """
    photo_count = 0 if backgrounds_NCHW is None else len(backgrounds_NCHW)
    draws = draw(len(image_BCHW), photo_count, randomness.host, image_BCHW.device)
    image, alpha, inside = random_affine(image_BCHW, alpha_B1HW, size, draws.windows)
    image = color_jitter(image, draws.colors)
    image, alpha = composite(image, alpha, inside, draws, backgrounds_NCHW)
    return degrade(image, draws, randomness.noise), alpha


def random_affine(
    image_BCHW: Tensor, alpha_B1HW: Tensor, size: int, windows_B23: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample each image through a window, and show reflections beyond its edges.

    Args:
        image_BCHW: Images, float in [0, 1].
        alpha_B1HW: Alphas, float in [0, 1].
        size: Side in pixels of the results.
        windows_B23: Affine maps, as :func:`matting.nn.augment_draws.draw_windows` returns them.

    Returns:
        Image and alpha, sampled bilinearly on one grid, so that they stay aligned; and ``inside_B1HW``, 1 inside the
        image and 0 where there are reflections.
    """
    both = torch.cat([image_BCHW, alpha_B1HW], dim=1)
    shape = [len(both), both.shape[1], size, size]
    grid = functional.affine_grid(windows_B23, shape, align_corners=False)
    both = functional.grid_sample(both, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    inside = (grid.abs().amax(dim=3) <= 1)[:, None].to(both)
    image, alpha = torch.split(both, [3, 1], dim=1)
    return image, alpha, inside


def color_jitter(image_BCHW: Tensor, colors_B511: Tensor) -> Tensor:
    """Change saturation, contrast and each channel's gain by the factors of each image; float in [0, 1]."""
    saturation, contrast, gain = torch.split(colors_B511, [1, 1, 3], dim=1)
    gray = image_BCHW.mean(dim=1, keepdim=True)
    middle = gray.mean(dim=(2, 3), keepdim=True)
    image = torch.lerp(gray, image_BCHW, saturation)
    return torch.lerp(middle, image, contrast).mul_(gain).clamp_(0, 1)


def composite(
    image_BCHW: Tensor,
    alpha_B1HW: Tensor,
    inside_B1HW: Tensor,
    draws: Draws,
    backgrounds_NCHW: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Replace the backgrounds of some images by the background of the next image of the batch, or by a photo.

    Where the next image has a person, its background is inpainted from the surroundings. The hole is dilated: masks are
    a little too small and hair is thin, and the network could learn from the outline that would be left.

    Args:
        image_BCHW: Images, float in [0, 1].
        alpha_B1HW: Alphas, float in [0, 1].
        inside_B1HW: 1 inside the image, 0 in reflections, whose people the composite leaves out.
        draws: Numbers of the images to change, and of their new backgrounds.
        backgrounds_NCHW: Photos without people, uint8, of any size, if ``draws`` has numbers of photos; or None.

    Returns:
        image_BCHW and alpha_B1HW, float in [0, 1].
    """
    chosen = draws.composites
    if not len(chosen):
        return image_BCHW, alpha_B1HW
    backgrounds = []
    if backgrounds_NCHW is not None and len(draws.photos):
        backgrounds.append(random_backgrounds(backgrounds_NCHW, image_BCHW.shape[-1], draws))
    if len(draws.neighbours):
        backgrounds.append(inpaint(image_BCHW[draws.neighbours], dilate(alpha_B1HW[draws.neighbours])))
    alpha = alpha_B1HW[chosen] * inside_B1HW[chosen]
    image = torch.lerp(torch.cat(backgrounds), image_BCHW[chosen], alpha)
    return image_BCHW.index_copy(0, chosen, image), alpha_B1HW.index_copy(0, chosen, alpha)


def random_backgrounds(backgrounds_NCHW: Tensor, size: int, draws: Draws) -> Tensor:
    """Return the drawn backgrounds, each with its own affine map and color jitter.

    Args:
        backgrounds_NCHW: Photos without people, uint8.
        size: Side in pixels of the results.
        draws: Numbers of the photos, their affine maps and their color changes.

    Returns:
        image_BCHW, float in [0, 1].
    """
    image = backgrounds_NCHW[draws.photos] / 255
    grid = functional.affine_grid(draws.photo_windows, [len(image), 3, size, size], align_corners=False)
    mapped = functional.grid_sample(image, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return color_jitter(mapped, draws.photo_colors)


def dilate(alpha_B1HW: Tensor) -> Tensor:
    """Return each pixel's maximum alpha within ``DILATION`` of the image's side, at least one pixel."""
    reach = max(1, round(DILATION * alpha_B1HW.shape[-1]))
    return functional.max_pool2d(alpha_B1HW, 2 * reach + 1, stride=1, padding=reach)


def inpaint(image_BCHW: Tensor, missing_B1HW: Tensor) -> Tensor:
    """Fill the image where it is missing with means of the known surroundings, over an image pyramid.

    Args:
        image_BCHW: Images, float in [0, 1].
        missing_B1HW: 0 where a pixel is known and stays as it is, 1 where it is filled.

    Returns:
        image_BCHW, float in [0, 1].
    """
    known = torch.addcmul(image_BCHW, image_BCHW, missing_B1HW, value=-1)
    both = torch.cat([known, missing_B1HW], dim=1)  # one pooling a level
    pyramid = []
    while min(both.shape[-2:]) > 1:
        pyramid.append(torch.split(both, [3, 1], dim=1))
        both = functional.avg_pool2d(both, 2)
    known, missing = torch.split(both, [3, 1], dim=1)
    filled: Tensor = known / (1 - missing).clamp_min(1e-3)
    for known, missing in reversed(pyramid):
        around = functional.interpolate(filled, size=missing.shape[-2:], mode="bilinear")
        filled = torch.addcmul(known, around, missing)
    return filled.clamp_(0, 1)


def degrade(image_BCHW: Tensor, draws: Draws, noise_generator: torch.Generator) -> Tensor:
    """Blur some images and add noise to some, as cameras and compression do; float in [0, 1].

    Args:
        image_BCHW: Images, float in [0, 1].
        draws: Numbers of the blurred and of the noisy images, and the standard deviations of the noise.
        noise_generator: Generator of the noise, on the device of the images.
    """
    if len(draws.blurred):
        small = functional.avg_pool2d(image_BCHW[draws.blurred], 2)
        soft = functional.interpolate(small, size=image_BCHW.shape[-2:], mode="bilinear")
        image_BCHW = image_BCHW.index_copy(0, draws.blurred, soft)
    if len(draws.noisy):
        clean = image_BCHW[draws.noisy]
        noise = torch.randn(clean.shape, generator=noise_generator, device=clean.device)
        rough = torch.addcmul(clean, noise, draws.noise_stds).clamp_(0, 1)
        image_BCHW = image_BCHW.index_copy(0, draws.noisy, rough)
    return image_BCHW


def random_flip(image_BCHW: Tensor, alpha_B1HW: Tensor, host: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Flip each image and its alpha horizontally with probability 1/2, without resampling."""
    chosen = draw_flips(len(image_BCHW), host, image_BCHW.device)
    return torch.where(chosen, image_BCHW.flip(3), image_BCHW), torch.where(chosen, alpha_B1HW.flip(3), alpha_B1HW)
