"""Augmentation of whole batches of images and alphas, on the device of the batch.

    image_BCHW and alpha_B1HW, float in [0, 1]
      -> random_affine   flipped, scaled, rotated, stretched; resampled to the size that training uses now
      -> color_jitter    brightness, contrast, saturation, tint
      -> composite       a fraction of the people on the backgrounds of other images, or on photos without people
      -> degrade         a fraction of the images blurred, and a fraction noisy
      -> image_BCHW and alpha_B1HW, float in [0, 1]

All randomness comes from the caller's generator, a CPU generator, so that a run draws the same numbers on every device.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

# Sides of the sampling window, relative to the image's: below 1 the image is enlarged, above 1 it is reduced.
SCALE_RANGE = (0.6, 1.4)
COMPOSITE_MAX_SCALE = 2.5  # upper end of the range for composites, whose new background fills the whole window
MAX_STRETCH = 0.15  # largest |log(horizontal scale / vertical scale)|
MAX_ROTATION = math.radians(6)
JITTER_STD = 0.2  # standard deviation of the logarithms of brightness, contrast and saturation
TINT_STD = 0.1  # standard deviation of the logarithm of each channel's gain
COMPOSITE_FRACTION = 0.3  # fraction of the images that get another background
BACKGROUND_PHOTO_FRACTION = 0.6  # fraction of composites that use a photo without people, if there are any
DILATION = 1 / 64  # distance from its alpha at which a person may still be visible, relative to the side of the image
BLUR_FRACTION = 0.25
NOISE_FRACTION = 0.25
MAX_NOISE_STD = 0.06


def augment(
    image_BCHW: Tensor,
    alpha_B1HW: Tensor,
    size: int,
    generator: torch.Generator,
    backgrounds_NCHW: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Apply every augmentation to a batch: affine map, color, background, degradation.

    Args:
        image_BCHW: Images, float in [0, 1].
        alpha_B1HW: Alphas, float in [0, 1].
        size: Side in pixels of the results.
        generator: CPU generator, the only source of randomness.
        backgrounds_NCHW: Photos without people, uint8, of any size; or None.

    Returns:
        image_BCHW and alpha_B1HW of that size, float in [0, 1].
    """
    is_composite = torch.rand(image_BCHW.shape[0], generator=generator) < COMPOSITE_FRACTION
    max_scale = torch.where(is_composite, COMPOSITE_MAX_SCALE, SCALE_RANGE[1])
    image, alpha, inside = random_affine(image_BCHW, alpha_B1HW, size, max_scale, generator)
    image = color_jitter(image, generator)
    image, alpha = composite(image, alpha, inside, is_composite, generator, backgrounds_NCHW)
    return degrade(image, generator), alpha


def random_affine(
    image_BCHW: Tensor, alpha_B1HW: Tensor, size: int, max_scale_B: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample each image through a random window, flipped horizontally half of the time.

    A window smaller than the image lies inside it. A larger one ends at the image's bottom edge, which cuts people off,
    and shows reflections beyond the other edges.

    Args:
        image_BCHW: Images, float in [0, 1].
        alpha_B1HW: Alphas, float in [0, 1].
        size: Side in pixels of the results.
        max_scale_B: Upper end of the range of each window's side, relative to the image's; float (B).
        generator: CPU generator.

    Returns:
        Image and alpha, sampled bilinearly on one grid, so that they stay aligned; and ``inside_B1HW``, 1 inside the
        image and 0 where there are reflections.
    """
    count = image_BCHW.shape[0]
    scale = torch.exp(uniform(count, math.log(SCALE_RANGE[0]), torch.log(max_scale_B), generator))
    stretch = torch.exp(uniform(count, -MAX_STRETCH / 2, MAX_STRETCH / 2, generator))
    scale_x, scale_y = scale * stretch, scale / stretch
    angle = uniform(count, -MAX_ROTATION, MAX_ROTATION, generator)
    flip = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    shift_x = uniform(count, -1, 1, generator) * (1 - scale_x).abs()
    shift_y = torch.where(scale_y < 1, uniform(count, -1, 1, generator) * (1 - scale_y), 1 - scale_y)
    # Rows of the affine map from output to input coordinates, both in [-1, 1].
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.stack(
        [scale_x * cos * flip, -scale_y * sin, shift_x, scale_x * sin * flip, scale_y * cos, shift_y], 1
    )
    both = torch.cat([image_BCHW, alpha_B1HW], dim=1)
    shape = [count, both.shape[1], size, size]
    grid = functional.affine_grid(theta.view(count, 2, 3).to(both), shape, align_corners=False)
    both = functional.grid_sample(both, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    inside = (grid.abs().amax(dim=3) <= 1)[:, None].to(both)
    return both[:, :3], both[:, 3:], inside


def color_jitter(image_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Change contrast, saturation, brightness and tint of each image at random; float in [0, 1]."""
    count = image_BCHW.shape[0]

    def factors(std: float, columns: int) -> Tensor:
        drawn = torch.randn(count, columns, 1, 1, generator=generator) * std
        return torch.exp(drawn).to(image_BCHW)

    contrast, saturation, gain = (
        factors(JITTER_STD, 1),
        factors(JITTER_STD, 1),
        factors(JITTER_STD, 1) * factors(TINT_STD, 3),
    )
    gray = image_BCHW.mean(dim=1, keepdim=True)
    middle = gray.mean(dim=(2, 3), keepdim=True)
    image = torch.lerp(gray, image_BCHW, saturation)
    return (torch.lerp(middle, image, contrast) * gain).clamp(0, 1)


def composite(
    image_BCHW: Tensor,
    alpha_B1HW: Tensor,
    inside_B1HW: Tensor,
    is_composite_B: Tensor,
    generator: torch.Generator,
    backgrounds_NCHW: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Replace the backgrounds of some images by the background of the next image of the batch, or by a photo.

    Where the next image has a person, its background is inpainted from the surroundings. The hole is dilated: masks are
    a little too small and hair is thin, and the network could learn from the outline that would be left.

    Args:
        image_BCHW: Images, float in [0, 1].
        alpha_B1HW: Alphas, float in [0, 1].
        inside_B1HW: 1 inside the image, 0 in reflections, whose people the composite leaves out.
        is_composite_B: Boolean, the images to change.
        generator: CPU generator.
        backgrounds_NCHW: Photos without people, uint8, of any size; or None.

    Returns:
        image_BCHW and alpha_B1HW, float in [0, 1].
    """
    chosen = torch.nonzero(is_composite_B).squeeze(1)
    if not len(chosen):
        return image_BCHW, alpha_B1HW
    others = (chosen + 1) % len(is_composite_B)
    background = inpaint(image_BCHW[others], 1 - dilate(alpha_B1HW[others]))
    if backgrounds_NCHW is not None:
        on_photo = torch.nonzero(torch.rand(len(chosen), generator=generator) < BACKGROUND_PHOTO_FRACTION).squeeze(1)
        if len(on_photo):
            background[on_photo] = random_backgrounds(backgrounds_NCHW, len(on_photo), image_BCHW.shape[-1], generator)
    alpha = alpha_B1HW[chosen] * inside_B1HW[chosen]
    image_BCHW, alpha_B1HW = image_BCHW.clone(), alpha_B1HW.clone()
    image_BCHW[chosen] = torch.lerp(background, image_BCHW[chosen], alpha)
    alpha_B1HW[chosen] = alpha
    return image_BCHW, alpha_B1HW


def random_backgrounds(backgrounds_NCHW: Tensor, count: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw backgrounds with replacement, with their own random affine map and color jitter.

    Args:
        backgrounds_NCHW: Photos without people, uint8.
        count: Number of backgrounds to draw.
        size: Side in pixels of the results.
        generator: CPU generator.

    Returns:
        image_BCHW, float in [0, 1].
    """
    picked = torch.randint(len(backgrounds_NCHW), (count,), generator=generator)
    image = backgrounds_NCHW[picked.to(backgrounds_NCHW.device)].float() / 255
    max_scale = torch.full((count,), SCALE_RANGE[1])
    mapped, _, _ = random_affine(image, torch.zeros_like(image[:, :1]), size, max_scale, generator)
    return color_jitter(mapped, generator)


def dilate(alpha_B1HW: Tensor) -> Tensor:
    """Return each pixel's maximum alpha within ``DILATION`` of the image's side, at least one pixel."""
    reach = max(1, round(DILATION * alpha_B1HW.shape[-1]))
    return functional.max_pool2d(alpha_B1HW, 2 * reach + 1, stride=1, padding=reach)


def inpaint(image_BCHW: Tensor, weight_B1HW: Tensor) -> Tensor:
    """Fill the image where its weight is 0 with means of the known surroundings, over an image pyramid.

    Args:
        image_BCHW: Images, float in [0, 1].
        weight_B1HW: 1 where a pixel is known and stays as it is, 0 where it is filled.

    Returns:
        image_BCHW, float in [0, 1].
    """
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


def degrade(image_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Blur a fraction of the images and add noise to a fraction, as cameras and compression do; float in [0, 1]."""
    count = image_BCHW.shape[0]
    image_BCHW = image_BCHW.clone()
    blurred = torch.nonzero(torch.rand(count, generator=generator) < BLUR_FRACTION).squeeze(1)
    if len(blurred):
        small = functional.avg_pool2d(image_BCHW[blurred], 2)
        image_BCHW[blurred] = functional.interpolate(small, size=image_BCHW.shape[-2:], mode="bilinear")
    noisy = torch.nonzero(torch.rand(count, generator=generator) < NOISE_FRACTION).squeeze(1)
    if len(noisy):
        noise = torch.randn(len(noisy), *image_BCHW.shape[1:], generator=generator)
        noise *= uniform(len(noisy), 0, MAX_NOISE_STD, generator)[:, None, None, None]
        image_BCHW[noisy] = (image_BCHW[noisy] + noise.to(image_BCHW)).clamp(0, 1)
    return image_BCHW


def random_flip(image_BCHW: Tensor, alpha_B1HW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Flip each image and its alpha horizontally with probability 1/2, without resampling."""
    chosen = (torch.rand(image_BCHW.shape[0], generator=generator) < 0.5).to(image_BCHW.device)[:, None, None, None]
    return torch.where(chosen, image_BCHW.flip(3), image_BCHW), torch.where(chosen, alpha_B1HW.flip(3), alpha_B1HW)


def uniform(count: int, low: float, high: float | Tensor, generator: torch.Generator) -> Tensor:
    """Draw ``count`` uniform numbers between ``low`` and ``high``, which may be a tensor of ``count`` upper ends."""
    return low + (high - low) * torch.rand(count, generator=generator)
