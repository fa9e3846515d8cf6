"""Exponential moving average (EMA) of a network's weights, with a decay that warms up over the first steps."""

from functools import partial

from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from matting.nn.unet import UNet


def averaged_model(model: UNet, decay: float) -> AveragedModel:
    """Return a copy of the model whose weights and buffers become the moving average of the original's.

    Call ``update_parameters(model)`` on it after each step; its ``module`` is the averaged network.

    Args:
        model: Network to average.
        decay: Decay per step in [0, 1], as :func:`update_ema` uses it.
    """
    return AveragedModel(model, multi_avg_fn=partial(update_ema, decay), use_buffers=True)


def update_ema(decay: float, averages: list[Tensor], values: list[Tensor], updates: Tensor | int) -> None:
    """Move the averages towards the values, in place.

    The decay of update n is ``min(decay, (1 + n) / (10 + n))``, so that the initial weights are soon forgotten.

    Args:
        decay: Decay that is reached after the warm-up, in [0, 1].
        averages: Averaged tensors, all of one dtype.
        values: Current tensors, in the same order.
        updates: Number of updates so far.
    """
    if averages[0].is_floating_point():
        warmed_up = min(decay, (1 + int(updates)) / (10 + int(updates)))
        get_ema_multi_avg_fn(warmed_up)(averages, values, updates)  # type: ignore[no-untyped-call]  # torch has no types
        return
    # torch would round the average of an integer buffer, such as BatchNorm's count of batches, and so fall behind.
    for average, value in zip(averages, values, strict=True):
        average.copy_(value)
