"""Exponential moving average (EMA) of a network's weights, with a decay that warms up over the first steps."""

import copy

import torch
from torch import Tensor

from matting.nn.unet import UNet


class MovingAverage:
    """A copy of a network, whose weights and statistics follow the original's.

    Args:
        original: Network to average.
        decay: Decay per step in [0, 1], which is reached after the warm-up.

    ``model`` is the averaged network. Integer buffers stay as they are: training does not change them.
    """

    def __init__(self, original: UNet, decay: float) -> None:
        self.model = copy.deepcopy(original)
        self._decay = decay
        self._averages, self._values = _float_tensors(self.model), _float_tensors(original)

    def update(self, updates: int) -> None:
        """Move the averages towards the original's current weights.

        The decay is ``min(decay, (1 + updates) / (10 + updates))``, so that the initial weights are soon forgotten.

        Args:
            updates: Number of updates so far; with 0, the averages become the current weights.
        """
        decay = min(self._decay, (1 + updates) / (10 + updates)) if updates else 0.0
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, self._values, 1 - decay)


def _float_tensors(model: UNet) -> list[Tensor]:
    return [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
