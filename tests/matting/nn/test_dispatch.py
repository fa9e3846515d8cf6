"""The training step, operation by operation: how many, and none that makes the host wait for a GPU."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jobs.common.config import parse
from jobs.training.config import TrainConfig, presets
from matting.nn import augment_draws, losses, steps
from matting.nn.augment import augment, random_flip
from matting.nn.augment_draws import Randomness
from matting.nn.steps import StepLog
from matting.nn.trainer import Batch, Trainer
from matting.nn.unet import UNet, alpha_of
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


def recipe_trainer(photos: int = 0) -> Trainer:
    options = parse(TrainConfig, ["--data=x", "--recipe=matting", "--precision=bf16"], presets)
    torch.manual_seed(0)
    backgrounds = noise_batch(photos, SIZE)["image"] if photos else None
    return Trainer(UNet(options.network()), options.training(), CPU, backgrounds)


class Operations(TorchDispatchMode):
    """Counter of the dispatched operations, and of the boolean masks among their indices."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.masks = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation.name().removeprefix("aten::").partition(".")[0]
        self.counts[name] += 1
        if name.startswith("index"):
            self.masks += any(
                leaf.dtype == torch.bool for leaf in tree_leaves(args[1]) if isinstance(leaf, torch.Tensor)
            )
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


# Operations that return what only the device knows: a number, or as many rows as it finds. The host waits for them.
WAITING = {"_local_scalar_dense", "is_nonzero", "equal", "item", "masked_select", "nonzero", "unique_dim", "_unique2"}


@pytest.mark.parametrize("progress", MOST_OPERATIONS)
def test_a_step_reads_nothing_from_the_device(progress: float) -> None:
    operations = operations_of(recipe_trainer(photos=3), progress, 1)
    assert WAITING.isdisjoint(operations.counts), operations.counts
    assert operations.masks == 0
    # Host arrays become tensors by `to_device` alone, which pins them for CUDA: images, alphas and random numbers.
    assert operations.counts["lift_fresh"] == 3


def test_losses_are_read_once_in_25_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "CHECK_SECONDS", math.inf)
    trainer, read = new_trainer(), []
    batches = [person_batch(0, 1)] * 60
    with Operations() as operations:
        trainer.train_epoch(batches, on_step=lambda _: read.append(operations.counts["_fused_adamw_"] // 2))
    assert read == [1] + [26] * 25 + [51] * 25 + [60] * 9


# On meta tensors, a read or a tensor that was left on the CPU raises (fake CUDA tensors need a build with CUDA) -------


def test_a_step_stays_on_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment_draws, "to_device", lambda array, _: torch.from_numpy(array).to(META))
    options = parse(TrainConfig, ["--data=x", "--recipe=matting"], presets)
    network = UNet(options.network()).to(META)
    images, alphas = torch.rand(64, 3, 64, 64, device=META), torch.rand(64, 1, 64, 64, device=META)
    photos = torch.zeros(5, 3, 64, 64, dtype=torch.uint8, device=META)
    randomness = Randomness(np.random.default_rng(0), None)  # type: ignore[arg-type]  # no generators for meta tensors
    image, alpha = random_flip(*augment(images, alphas, 32, randomness, photos), randomness.host)
    pred, target = network(image), losses.rgba_target(image, alpha)
    squared = losses.mse(pred, target, "mean")
    skipped = StepLog(META, 0, 1).add(np.array(["key"]), squared.detach(), 4)
    loss = losses.weighted_sum([(0.5, squared), (1.0, losses.laplacian(alpha_of(pred), alpha))])
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    assert {tensor.device.type for tensor in (*gradients, skipped)} == {"meta"}
    with pytest.raises(RuntimeError, match="device"):  # such a mistake
        augment(images, torch.rand(64, 1, 64, 64), 32, randomness)
