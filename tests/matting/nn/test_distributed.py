"""distributed: two workers train and validate as one."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from matting.nn.distributed import gather_over_workers, rank, sum_over_workers, world_size
from matting.nn.steps import NonFiniteLoss
from matting.nn.trainer import Trainer, TrainingConfig
from matting.nn.unet import UNet, UNetConfig
from tests.support.training import new_trainer, noise_batches, person_batch
from tests.support.workers import in_two_processes


def test_without_a_group_there_is_one_worker() -> None:
    assert (world_size(), rank()) == (1, 0)
    assert sum_over_workers([1.5, 2.0], torch.device("cpu")) == [1.5, 2.0]
    assert gather_over_workers(["a"]) == ["a"]


def train_on_sixteen(trainer: Trainer, numbers: slice) -> dict[str, Any]:
    """Train twenty steps on a part of sixteen pairs, which have another order in every step."""
    losses: list[float] = []
    start = torch.cat([tensor.detach().flatten() for tensor in trainer.model.parameters()])
    orders = [np.random.default_rng(step).permutation(16)[numbers] for step in range(20)]
    batches = noise_batches(orders)
    trainer.train_epoch(batches[:1], on_step=lambda step: losses.append(step.loss))
    gradient = torch.cat([moments["exp_avg"].flatten() for moments in trainer.state()["optimizer"]["state"].values()])
    trainer.train_epoch(batches[1:], on_step=lambda step: losses.append(step.loss))
    weights = torch.cat([tensor.detach().flatten() for tensor in trainer.model.parameters()])
    return {
        "losses": losses,
        "gradient": gradient,
        "update": weights - start,
        "statistics": running_statistics(trainer),
    }


def half_of_sixteen(rank: int, folder: str) -> None:
    results = {}
    for reduction in ("mean", "sum"):
        results[reduction] = train_on_sixteen(new_trainer(reduction=reduction), slice(8 * rank, 8 * rank + 8))
    torch.save(results, f"{folder}/{rank}.pt")


def batch_of_sixty_four(rank: int, folder: str) -> None:
    torch.manual_seed(0)
    trainer = Trainer(UNet(UNetConfig(width=4)), TrainingConfig(precision="fp32"), torch.device("cpu"), batch=64)
    trainer.train_epoch(noise_batches([range(8 * rank, 8 * rank + 8)] * 2))
    own = running_statistics(trainer)
    trainer.validate([])
    kernels = torch.cat([tensor.detach().flatten() for tensor in trainer.model.parameters()])
    torch.save({"own": own, "shared": running_statistics(trainer), "kernels": kernels}, f"{folder}/{rank}.pt")


def running_statistics(trainer: Trainer) -> torch.Tensor:
    return torch.cat([tensor.flatten() for name, tensor in trainer.model.named_buffers() if "running" in name])


@pytest.mark.slow
def test_large_batches_share_statistics_before_validation_only(tmp_path: Path) -> None:
    one, other = in_two_processes(batch_of_sixty_four, tmp_path)
    assert not torch.equal(one["own"], other["own"])
    assert torch.equal(one["kernels"], other["kernels"])
    for worker in (one, other):
        torch.testing.assert_close(worker["shared"], (one["own"] + other["own"]) / 2)


def relative_distance(found: Any, expected: Any) -> float:
    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    return float((found - expected).norm() / expected.norm())


@pytest.mark.slow
def test_two_workers_train_as_one(tmp_path: Path) -> None:
    workers = in_two_processes(half_of_sixteen, tmp_path)
    for reduction in ("mean", "sum"):
        alone = train_on_sixteen(new_trainer(reduction=reduction), slice(None))
        # Rounding errors, which Adam's division amplifies: the same batches, summed in another order.
        reordered = train_on_sixteen(new_trainer(reduction=reduction), slice(None, None, -1))
        for worker in workers:
            assert relative_distance(worker[reduction]["gradient"], alone["gradient"]) < 1e-4
            for name in ("losses", "update", "statistics"):
                noise = relative_distance(reordered[name], alone[name])
                assert relative_distance(worker[reduction][name], alone[name]) < 5 * noise, (reduction, name, noise)


def uneven_work(rank: int, folder: str) -> None:
    trainer = new_trainer()
    own = [person_batch(0, 1), person_batch(2)] if rank == 0 else []
    scores = trainer.validate(own)
    failure = ""
    with torch.no_grad():
        trainer.model.head[2].weight[:] = math.nan if rank == 1 else 0.1
    try:
        trainer.train_epoch([person_batch(3 + rank)])
    except NonFiniteLoss as error:
        failure = str(error)
    torch.save({"scores": [tuple(score) for score in scores], "failure": failure}, f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_workers_share_scores_and_stop_together(tmp_path: Path) -> None:
    workers = in_two_processes(uneven_work, tmp_path)
    alone = new_trainer().validate([person_batch(0, 1, 2)])
    for worker in workers:
        assert [key for key, *_ in worker["scores"]] == [score.key for score in alone]
        np.testing.assert_allclose(
            [values for _, *values in worker["scores"]], [values for _, *values in alone], rtol=1e-4
        )
        assert "person-4" in worker["failure"]
