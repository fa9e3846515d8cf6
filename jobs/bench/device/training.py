"""Speed of training steps on one device, in one process, by phase of recipe `matting` and by batch.

    drawn people, repeated in batches -> Trainer, as the train job uses it -> milliseconds, kernels and memory of a step

The first half of the recipe's run trains on augmented images at half size, the next third at full size, and the end on
images at 160 pixels without augmentation.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from jobs.bench.device.timing import Kernels, kernels_of, peak_gigabytes
from jobs.bench.network import flops_of
from jobs.bench.workload import untrained_unet
from jobs.common import config
from matting.data.synthetic import draw_person
from matting.nn.schedule import Budget
from matting.nn.trainer import Batch, Trainer, TrainingConfig
from matting.nn.unet import UNetConfig

WARM_UP_STEPS = 3  # at most; where steps are long, one is enough
DRAWN = 16  # different people in a batch
NEVER, ALWAYS = 1e-9, 1.0  # fractions of the run; with 0, there would be no flips either
LONG = Budget(epochs=1e6)  # of whose first epochs the progress is between the two


@dataclass(frozen=True)
class Recipe(TrainingConfig, UNetConfig):
    """Everything that a recipe's file sets.

    Args:
        recipe: Name.
        size: Side of images in pixels.
        batch: Samples in a step of one worker.
        epochs: Number of epochs.
    """

    recipe: str = ""
    size: int = 160
    batch: int = 16
    epochs: int = 1

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        UNetConfig.__post_init__(self)

    @property
    def network(self) -> UNetConfig:
        """Architecture of the network."""
        return UNetConfig(**{field.name: getattr(self, field.name) for field in fields(UNetConfig)})

    @property
    def training(self) -> TrainingConfig:
        """Optimizer, losses and augmentation."""
        return TrainingConfig(**{field.name: getattr(self, field.name) for field in fields(TrainingConfig)})


class StepFigures(NamedTuple):
    """Figures of a training step."""

    ms: float
    kernels: Kernels
    flops: float  # of the network, forward and backward, over the batch
    gigabytes: float  # at the peak


def matting_recipe() -> Recipe:
    """Return the default recipe."""
    return config.parse(Recipe, ["--config", str(config.CONFIGS / "matting.yaml")])


def phases(recipe: Recipe) -> dict[str, tuple[TrainingConfig, int]]:
    """Return the configs of the three phases of a run, each held for a whole run, and their image sides."""
    augmented, training = recipe.augment_size or recipe.size, recipe.training
    half = replace(training, augment_fraction=ALWAYS, half_res_fraction=ALWAYS)
    full = replace(training, augment_fraction=ALWAYS, half_res_fraction=NEVER)
    plain = replace(training, augment_fraction=NEVER, half_res_fraction=NEVER)
    return {
        f"augmented at {augmented // 2}": (half, augmented // 2),
        f"augmented at {augmented}": (full, augmented),
        f"plain at {recipe.size}": (plain, recipe.size),
    }


def measure_step(
    recipe: Recipe, training: TrainingConfig, side: int, batch: int, device: torch.device, seconds: float
) -> StepFigures:
    """Return the figures of a step on a batch that is already in the host's memory.

    Args:
        recipe: Recipe of the network, and of the size at which images arrive.
        training: Config of the trainer, in one phase of the recipe.
        side: Side of the images that reach the network, in pixels, for the count of FLOPs.
        batch: Number of samples.
        device: Device to train on.
        seconds: Duration of the steps that count; but there is at least one.

    Raises:
        torch.OutOfMemoryError: The batch does not fit.
    """
    trainer = Trainer(untrained_unet(recipe.network), training, device)
    batches = endless_batches(recipe.size, batch)
    trainer.epochs_done = 1
    trainer.train_epoch(itertools.islice(batches, WARM_UP_STEPS), replace(LONG, seconds=seconds))
    # An epoch ends with a wait for the device, so that its own clock has all work.
    epoch = trainer.train_epoch(batches, replace(LONG, seconds=trainer.seconds + seconds))
    kernels = kernels_of(lambda: trainer.train_epoch(itertools.islice(batches, 1), LONG), device)
    flops = batch * flops_of(untrained_unet(recipe.network), side)[1]
    return StepFigures(1000 * epoch.seconds / epoch.steps, kernels, flops, peak_gigabytes(device))


def endless_batches(size: int, count: int) -> Iterator[Batch]:
    """Yield the same batch of drawn people without end."""
    people: list[Any] = [draw_person(0, number, size, size) for number in range(min(DRAWN, count))]
    chosen = np.arange(count) % len(people)
    images_NHWC, alphas_NHW = (np.stack([person[part] for person in people]) for part in range(2))
    batch = {
        "key": np.array([f"{number}" for number in range(count)], object),
        "image": images_NHWC[chosen],
        "alpha": alphas_NHW[chosen],
    }
    return itertools.repeat(batch)
