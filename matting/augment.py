"""Variety for training, a whole batch at a time, on whatever device the batch is on.

image_BCHW and alpha_B1HW, float in [0, 1]  ->  the same, changed alike

Randomness comes from the caller's generator only (a CPU generator, so that a run draws the same numbers on every
device). No files, no models.
"""

import torch
from torch import Tensor
from torch.nn import functional

MIN_CROP = 0.7  # of the side: a head and shoulders portrait keeps its person in view


def flips_and_crops(image_BCHW: Tensor, alpha_B1HW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirror half of the pictures and zoom each into a random square window of at least ``MIN_CROP`` of its side.

    Args:
        image_BCHW: float in [0, 1].
        alpha_B1HW: float in [0, 1].
        generator: a CPU generator; the only source of randomness.

    Returns:
        Both, with the same shapes and ranges. The two are sampled on one grid, bilinearly, so they stay aligned.
    """
    size = image_BCHW.shape[0]
    scale = 1 - (1 - MIN_CROP) * torch.rand(size, generator=generator)
    shift = (torch.rand(size, 2, generator=generator) * 2 - 1) * (1 - scale)[:, None]
    mirror = torch.where(torch.rand(size, generator=generator) < 0.5, -1.0, 1.0)
    # Rows of the affine map from output to input coordinates, both in [-1, 1].
    zero = torch.zeros(size)
    theta = torch.stack([scale * mirror, zero, shift[:, 0], zero, scale, shift[:, 1]], dim=1).view(size, 2, 3)
    both = torch.cat([image_BCHW, alpha_B1HW], dim=1)
    grid = functional.affine_grid(theta.to(both), list(both.shape), align_corners=False)
    both = functional.grid_sample(both, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return both[:, :3], both[:, 3:]
