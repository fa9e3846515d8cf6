"""The training step, operation by operation: their number, and that none makes the host wait for a GPU."""

import math
from collections import Counter
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from jobs.common.config import parse
from jobs.training.config import TrainConfig, presets
from matting.nn import steps
from matting.nn.augment_draws import Randomness
from matting.nn.steps import StepLog
from matting.nn.trainer import Batch, Trainer
from matting.nn.unet import UNet
from tests.support.host_reads import NoHostReads, without_values
from tests.support.training import new_trainer, person_batch

CPU, META = torch.device("cpu"), torch.device("meta")
BATCH, SIZE = 16, 160
# Half of the 866 operations that a step with augmentation dispatched, and of the 714 of a step without, when each
# operation had its own random numbers and its own check.
MOST_OPERATIONS = {0.0: 433, 0.9: 357}


def noise_batch(count: int, size: int) -> Batch:
    generator = np.random.default_rng(0)
    return {
        "key": np.array([f"noise-{number}" for number in range(count)], object),
        "image": generator.integers(0, 256, (count, size, size, 3), np.uint8),
        "alpha": generator.integers(0, 256, (count, size, size), np.uint8),
    }


def recipe_trainer(photos: int = 0, device: torch.device = CPU) -> Trainer:
    options = parse(TrainConfig, ["--data=x", "--recipe=matting", "--precision=bf16"], presets)
    torch.manual_seed(0)
    backgrounds = noise_batch(photos, SIZE)["image"] if photos else None
    return Trainer(UNet(options.network()), options.training(), device, backgrounds)


class Operations(TorchDispatchMode):
    """Counter of the dispatched operations."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[operation.name().removeprefix("aten::").partition(".")[0]] += 1
        return operation(*args, **(kwargs or {}))


def operations_of(trainer: Trainer, progress: float, count: int) -> Operations:
    """Return the operations of this many steps at this part of a run, without the read of their results."""
    batch, randomness, log = noise_batch(BATCH, SIZE), Randomness.seeded(0, CPU), StepLog(CPU, 0, 1)
    trainer._step(batch, randomness, progress, log)
    with Operations() as operations:
        for _ in range(count):
            trainer._step(batch, randomness, progress, log)
    return operations


@pytest.mark.parametrize("progress", MOST_OPERATIONS)
def test_a_step_dispatches_half_the_operations_it_did(progress: float) -> None:
    assert operations_of(recipe_trainer(), progress, 1).counts.total() <= MOST_OPERATIONS[progress]


@pytest.mark.parametrize("progress", MOST_OPERATIONS)
def test_only_images_alphas_and_random_numbers_go_to_the_device(progress: float) -> None:
    # Host arrays become tensors by `to_device` alone, which pins them for CUDA.
    assert operations_of(recipe_trainer(photos=3), progress, 1).counts["lift_fresh"] == 3


def test_losses_are_read_once_in_25_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "CHECK_SECONDS", math.inf)
    trainer, read = new_trainer(), []
    batches = [person_batch(0, 1)] * 60
    with Operations() as operations:
        trainer.train_epoch(batches, on_step=lambda _: read.append(operations.counts["_fused_adamw_"] // 2))
    assert read == [1] + [26] * 25 + [51] * 25 + [60] * 9


# The step on a device without values ----------------------------------------------------------------------------------


@pytest.mark.parametrize("progress", MOST_OPERATIONS)
def test_host_reads_nothing_of_a_step(progress: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("augment_draws", "trainer"):
        monkeypatch.setattr(f"matting.nn.{module}.to_device", without_values)
    # What torch offers on CUDA, and not on meta: the fused optimizer, autocast, generators.
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: ["meta"])
    monkeypatch.setattr(Trainer, "_autocast", lambda _: nullcontext())
    randomness = Randomness(np.random.default_rng(0), None)  # type: ignore[arg-type]
    trainer, log = recipe_trainer(photos=3, device=META), StepLog(META, 0, 1)
    with NoHostReads() as watch:
        for _ in range(2):
            trainer._step(noise_batch(BATCH, SIZE), randomness, progress, log)
        assert watch.operations > 400
        with pytest.raises(AssertionError, match="copies to another device"):  # as every 25 steps
            log.read()
