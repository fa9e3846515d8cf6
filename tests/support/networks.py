"""Small networks for tests: one of each kind, trained on drawn people or as if it were."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from matting.data.synthetic import draw_person
from matting.nn.checkpoint import Checkpoint
from matting.nn.precision import fastest_number_format
from matting.nn.trainer import Trainer, TrainingConfig
from matting.nn.unet import UNet, UNetConfig

UNET_CONFIGS = {
    "layer": UNetConfig(width=8),
    "block": UNetConfig(width=8, relu="block"),
    "light": UNetConfig(width=8, depth=2, skip="add", unshuffle=2, alpha_clip=0.05),
}

int8_is_fast = pytest.mark.skipif(
    fastest_number_format(torch.device("cpu")) != "int8", reason="this processor has no instructions for 8-bit integers"
)


def unet_with_random_batchnorm(name: str) -> UNet:
    """Return the network of UNET_CONFIGS with statistics in every BatchNorm, as after training."""
    torch.manual_seed(0)
    model = UNet(UNET_CONFIGS[name]).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data = torch.rand_like(tensor) + 0.5
    return model


def checkpoint_of_eight_people(config: UNetConfig, size: int, steps: int, learning_rate: float) -> Checkpoint:
    """Train a network until it knows eight people: its alphas reach from 0 to 255."""
    drawn = [draw_person(0, number, size, size) for number in range(8)]
    batch = {
        "key": np.array([f"person-{number}" for number in range(8)], object),
        "image": np.stack([image for image, _ in drawn]),
        "alpha": np.stack([alpha for _, alpha in drawn]),
    }
    torch.manual_seed(0)
    training = TrainingConfig(precision="fp32", learning_rate=learning_rate)
    trainer = Trainer(UNet(replace(config)), training, torch.device("cpu"))
    for _ in range(steps):
        trainer.train_epoch([batch])
    return Checkpoint(trainer.model.eval(), size, {}, {}, "identity")
