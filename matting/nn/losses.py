"""Loss terms of training, as functions of the network's output and its target.

    mse             pred_rgba_BCHW, true_rgba_BCHW, both in [-1, 1]   -> scalar
    l1              pred_alpha_B1HW, true_alpha_B1HW, both in [0, 1]  -> scalar
    cross_entropy   pred_alpha_B1HW, true_alpha_B1HW, both in [0, 1]  -> scalar
    laplacian       pred_alpha_B1HW, true_alpha_B1HW, both in [0, 1]  -> scalar

:class:`matting.nn.trainer.TrainingConfig` declares their weights, and the trainer adds them up. A new term is a
function here, a weight there, and a line in ``Trainer._loss``.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Reduction = Literal["sum", "mean"]

LAPLACIAN_LEVELS = 4


def rgba_target(image_BCHW: Tensor, alpha_B1HW: Tensor) -> Tensor:
    """Return the network's target, true_rgba_BCHW in [-1, 1]: the image premultiplied by alpha (on black), and alpha.

    Args:
        image_BCHW: RGB image in [0, 1].
        alpha_B1HW: True alpha in [0, 1].
    """
    return torch.cat([image_BCHW * alpha_B1HW, alpha_B1HW], dim=1) * 2 - 1


def mse(pred_rgba_BCHW: Tensor, true_rgba_BCHW: Tensor, reduction: Reduction) -> Tensor:
    """Return the squared error over the four channels, in float32.

    Args:
        pred_rgba_BCHW: Output of the network, in [-1, 1].
        true_rgba_BCHW: Target, in [-1, 1].
        reduction: "mean" over batch, channels and pixels; or "sum", which the published baseline recommends.
    """
    return functional.mse_loss(pred_rgba_BCHW.float(), true_rgba_BCHW.float(), reduction=reduction)


def l1(pred_alpha_B1HW: Tensor, true_alpha_B1HW: Tensor) -> Tensor:
    """Return the mean absolute error of alpha, in float32."""
    return functional.l1_loss(pred_alpha_B1HW.float(), true_alpha_B1HW.float())


def cross_entropy(pred_alpha_B1HW: Tensor, true_alpha_B1HW: Tensor) -> Tensor:
    """Return the mean cross entropy in nats, in float32, of alpha as the probability that a pixel shows the person.

    Its gradient through a tanh is the error itself, while the gradients of the other terms vanish as the network gets
    certain, right or wrong. Its minimum is the expected alpha, which leaves doubtful pixels gray; that of l1 is the
    median.
    """
    return functional.binary_cross_entropy(pred_alpha_B1HW.float(), true_alpha_B1HW.float())


def laplacian(pred_alpha_B1HW: Tensor, true_alpha_B1HW: Tensor) -> Tensor:
    """Return the weighted sum of the mean absolute errors of the levels of a Laplacian pyramid, in float32.

    From the finest, the four levels have the weights 1, 2, 4 and 8. Hou and Liu (Context-Aware Image Matting, 2019) use
    the same weights on sums of absolute errors, with four times fewer pixels on each level. The filter is a box.
    """
    # The pyramid is linear: the pyramid of the difference is the difference of the pyramids.
    rest = pred_alpha_B1HW.float() - true_alpha_B1HW.float()
    levels = []
    for level in range(LAPLACIAN_LEVELS):
        coarser = functional.avg_pool2d(rest, 2)
        detail = rest - functional.interpolate(coarser, size=rest.shape[-2:], mode="bilinear")
        levels.append((2**level / detail.numel(), torch.linalg.vector_norm(detail, 1)))
        rest = coarser
    return weighted_sum(levels)


def weighted_sum(terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """Return the sum of scalars () times their weights; at least one."""
    (weight, first), *others = terms
    total = first * weight
    for weight, term in others:
        total = torch.add(total, term, alpha=weight)
    return total
