"""What training minimises: named terms over the network's output and its target.

pred_rgba_BCHW, true_rgba_BCHW, both in [-1, 1]  ->  a scalar

Terms know tensors only: no model, no optimizer, no workers.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Reduction = Literal["sum", "mean"]


def rgba_target(image_BCHW: Tensor, alpha_B1HW: Tensor) -> Tensor:
    """What the network should answer: the image premultiplied by alpha (on black) and alpha, from [0, 1] to [-1, 1]."""
    return torch.cat([image_BCHW * alpha_B1HW, alpha_B1HW], dim=1) * 2 - 1


def mse(pred_rgba_BCHW: Tensor, true_rgba_BCHW: Tensor, reduction: Reduction) -> Tensor:
    """Squared error over the four channels, in float32.

    ``mean`` divides by everything (batch, channels, pixels); ``sum`` by nothing, as the seed's recipe recommends.
    """
    return functional.mse_loss(pred_rgba_BCHW.float(), true_rgba_BCHW.float(), reduction=reduction)
