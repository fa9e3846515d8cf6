"""What training minimises: named terms over the network's output and its target.

    mse             pred_rgba_BCHW, true_rgba_BCHW, both in [-1, 1]   -> a scalar
    l1              pred_alpha_B1HW, true_alpha_B1HW, both in [0, 1]  -> a scalar
    cross_entropy   the same                                          -> a scalar
    laplacian       the same                                          -> a scalar

Terms know tensors only: no model, no optimizer, no workers.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Reduction = Literal["sum", "mean"]

LAPLACIAN_LEVELS = 4


def rgba_target(image_BCHW: Tensor, alpha_B1HW: Tensor) -> Tensor:
    """What the network should answer: the image premultiplied by alpha (on black) and alpha, from [0, 1] to [-1, 1]."""
    return torch.cat([image_BCHW * alpha_B1HW, alpha_B1HW], dim=1) * 2 - 1


def mse(pred_rgba_BCHW: Tensor, true_rgba_BCHW: Tensor, reduction: Reduction) -> Tensor:
    """Squared error over the four channels, in float32.

    ``mean`` divides by everything (batch, channels, pixels); ``sum`` by nothing, as the seed's recipe recommends.
    """
    return functional.mse_loss(pred_rgba_BCHW.float(), true_rgba_BCHW.float(), reduction=reduction)


def l1(pred_alpha_B1HW: Tensor, true_alpha_B1HW: Tensor) -> Tensor:
    """Mean absolute error, in float32."""
    return functional.l1_loss(pred_alpha_B1HW.float(), true_alpha_B1HW.float())


def cross_entropy(pred_alpha_B1HW: Tensor, true_alpha_B1HW: Tensor) -> Tensor:
    """Mean cross entropy in nats, in float32, of alpha as the share of pixels that show the person.

    Through a tanh its gradient is the error itself, where that of the other terms vanishes as certainty grows,
    right or wrong. It is least at the expected alpha, so that what is in doubt stays grey; l1 is so at the median.
    """
    return functional.binary_cross_entropy(pred_alpha_B1HW.float(), true_alpha_B1HW.float())


def laplacian(pred_alpha_B1HW: Tensor, true_alpha_B1HW: Tensor) -> Tensor:
    """Mean absolute error of each level of a Laplacian pyramid, coarser levels weighted 2, 4, 8 times as much.

    The loss of Hou and Liu (Context-Aware Image Matting, 2019), whose levels' sums of absolute errors are weighted so
    with four times fewer pixels each; with the box for its filter.
    """
    # The pyramid is linear: that of the difference is the difference of the pyramids.
    rest = pred_alpha_B1HW.float() - true_alpha_B1HW.float()
    total = rest.new_zeros(())
    for level in range(LAPLACIAN_LEVELS):
        coarser = functional.avg_pool2d(rest, 2)
        detail = rest - functional.interpolate(coarser, size=rest.shape[-2:], mode="bilinear")
        total = total + 2**level * detail.abs().mean()
        rest = coarser
    return total
