"""Narrow trainers, and batches of drawn people or noise to train them on."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from matting.data.synthetic import draw_person
from matting.nn.trainer import Batch, Trainer, TrainingConfig
from matting.nn.unet import UNet, UNetConfig

SIZE = 32


def new_trainer(backgrounds_NHWC: np.ndarray | None = None, **changes: Any) -> Trainer:
    """Return a trainer of a network of width 4, always with the same initial weights.

    Args:
        backgrounds_NHWC: Photos without people, uint8.
        changes: Fields of TrainingConfig.
    """
    torch.manual_seed(0)
    config = TrainingConfig(**{"precision": "fp32", **changes})
    return Trainer(UNet(UNetConfig(width=4)), config, torch.device("cpu"), backgrounds_NHWC)


def person_batch(*numbers: int) -> Batch:
    """Return a batch of drawn people, by their numbers."""
    drawn = [draw_person(0, number, SIZE, SIZE) for number in numbers]
    return {
        "key": np.array([f"person-{number}" for number in numbers], object),
        "image": np.stack([image for image, _ in drawn]),
        "alpha": np.stack([alpha for _, alpha in drawn]),
    }


def noise_batches(orders: Iterable[Sequence[int]], size: int = SIZE) -> list[Batch]:
    """Return batches of sixteen images of noise, by their numbers: in flat images, max-pooling has ties, which rounding
    errors break at random."""
    images = np.random.default_rng(0).integers(0, 256, (16, size, size, 4), np.uint8)
    return [
        {"key": np.array(order, str), "image": images[list(order), ..., :3], "alpha": images[list(order), ..., 3]}
        for order in orders
    ]
