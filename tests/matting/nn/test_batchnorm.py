"""batchnorm: several processes against torch's own BatchNorm over the joined batch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from matting.nn.batchnorm import CPUSyncBatchNorm, synchronize_batchnorm
from matting.nn.unet import UNet, UNetConfig
from tests.support.workers import in_two_processes

CPU = torch.device("cpu")
CHANNELS = 3
SHARDS = (slice(0, 2), slice(2, 6))  # of six images, unequal


def features_and_gradient() -> tuple[Tensor, Tensor]:
    """Return features of six images, no channel of mean 0 and variance 1, and the gradient of their normalized ones."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(6, CHANNELS, 4, 5, generator=generator)
    gradient = torch.randn(6, CHANNELS, 4, 5, generator=generator)
    return features * torch.tensor([0.5, 1, 5]).view(-1, 1, 1) + torch.tensor([-2.0, 1, 4]).view(-1, 1, 1), gradient


def torch_batchnorm() -> nn.BatchNorm2d:
    """Return torch's BatchNorm as after some training."""
    norm = nn.BatchNorm2d(CHANNELS, eps=1e-3, momentum=0.3)
    norm.load_state_dict(
        {
            "weight": torch.tensor([1.0, 2, -0.5]),
            "bias": torch.tensor([0.0, 1, -1]),
            "running_mean": torch.tensor([0.5, -1, 2]),
            "running_var": torch.tensor([1.0, 0.5, 3]),
            "num_batches_tracked": torch.tensor(7),
        }
    )
    return norm


def two_steps(norm: nn.BatchNorm2d, shard: slice) -> dict[str, Any]:
    """Return outputs, gradients and statistics of two training steps on a shard; the second has the images reversed."""
    features, gradient = features_and_gradient()
    results: dict[str, Any] = {"outputs": [], "gradients": []}
    for each in (features, features.flip(0) + 1):
        leaf = each[shard].clone().requires_grad_()
        output = norm(leaf)
        output.backward(gradient[shard])
        results["outputs"].append(output.detach())
        results["gradients"].append(leaf.grad)
    return {
        **results,
        "weight_gradient": norm.weight.grad,
        "bias_gradient": norm.bias.grad,
        "statistics": {name: values for name, values in norm.named_buffers() if "running" in name},
    }


def check_joined_batch(workers: list[dict[str, Any]], shards: tuple[slice, ...]) -> None:
    expected = two_steps(torch_batchnorm(), slice(None))
    close = {"rtol": 1e-4, "atol": 1e-4}
    for worker, shard in zip(workers, shards, strict=True):
        for name in ("outputs", "gradients"):
            for found, joined in zip(worker[name], expected[name], strict=True):
                torch.testing.assert_close(found, joined[shard], **close)
        torch.testing.assert_close(worker["statistics"], expected["statistics"], **close)
    for name in ("weight_gradient", "bias_gradient"):  # each worker has its own part, which DDP averages
        torch.testing.assert_close(sum(worker[name] for worker in workers), expected[name], **close)


@pytest.fixture
def group_of_one(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
def test_one_worker_equals_torch_batchnorm() -> None:
    check_joined_batch([two_steps(CPUSyncBatchNorm.like(torch_batchnorm()), slice(None))], (slice(None),))


def two_steps_on_a_shard(rank: int, folder: str) -> None:
    torch.save(two_steps(CPUSyncBatchNorm.like(torch_batchnorm()), SHARDS[rank]), f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_two_workers_equal_the_joined_batch(tmp_path: Path) -> None:
    check_joined_batch(in_two_processes(two_steps_on_a_shard, tmp_path), SHARDS)


def test_eval_mode_equals_torch_batchnorm() -> None:
    features, _ = features_and_gradient()
    norm = CPUSyncBatchNorm.like(torch_batchnorm().eval())
    assert not norm.training
    assert torch.equal(norm(features), torch_batchnorm().eval()(features))
    torch.testing.assert_close(norm.state_dict(), torch_batchnorm().state_dict(), rtol=0, atol=0)


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("training", [True, False])
def test_bfloat16_features_have_float32_statistics(training: bool) -> None:
    features, _ = features_and_gradient()
    features = features.bfloat16()
    norm = CPUSyncBatchNorm.like(torch_batchnorm()).train(training)
    output = norm(features)
    assert output.dtype == torch.bfloat16
    expected = torch_batchnorm().train(training)
    torch.testing.assert_close(output.float(), expected(features.float()), rtol=2**-8, atol=2**-8)
    torch.testing.assert_close(norm.running_var, expected.running_var)


def test_conversion_keeps_names_and_tensors() -> None:
    model = UNet(UNetConfig(width=2))
    before = model.state_dict(keep_vars=True)
    parameters = list(model.parameters())
    synchronized = synchronize_batchnorm(model, CPU)
    after = synchronized.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert all(found is kept for found, kept in zip(synchronized.parameters(), parameters, strict=True))
    norms = [module for module in synchronized.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 18
    assert all(isinstance(norm, CPUSyncBatchNorm) for norm in norms)
