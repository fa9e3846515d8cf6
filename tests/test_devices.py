"""devices: number formats, and BatchNorm over several processes against torch's own over the joined batch."""

import math
import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from matting.checkpoint import Checkpoint
from matting.devices import (
    CPUSyncBatchNorm,
    Format,
    autocast_dtype,
    fastest_format,
    pictures_at_once,
    synchronise_batchnorm,
)
from matting.predictor import Network
from matting.unet import UNet, UNetConfig
from tests.test_training import in_two_processes

CPU = torch.device("cpu")
CHANNELS = 3
SHARES = (slice(0, 2), slice(2, 6))  # of six pictures, unevenly


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_asked_for_precision_is_given(device: str) -> None:
    assert autocast_dtype(torch.device(device), "fp32") is None
    assert autocast_dtype(torch.device(device), "bf16") == torch.bfloat16


def fewest_seconds(*calls: Callable[[], object]) -> list[float]:
    """Of CPU time, which other processes disturb less than time; in turn."""
    fewest = [math.inf] * len(calls)
    for _ in range(20):
        for place, call in enumerate(calls):
            began = time.process_time()
            call()
            fewest[place] = min(fewest[place], time.process_time() - began)
    return fewest


on_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="elsewhere auto is float32, unmeasured"
)


@on_x86
def test_auto_is_the_format_in_which_this_processor_multiplies_faster() -> None:
    matrices = [torch.rand(512, 512).to(dtype) for dtype in (torch.float32, torch.bfloat16)]
    float32, bfloat16 = fewest_seconds(*(partial(torch.mm, matrix, matrix) for matrix in matrices))
    assert autocast_dtype(CPU, "auto") == (torch.bfloat16 if bfloat16 < float32 else None)


@on_x86
def test_a_network_predicts_in_the_format_in_which_it_is_fastest_here() -> None:
    model = UNet(UNetConfig(width=32, depth=2)).eval()
    squashed = np.zeros((8, 96, 96, 3), np.uint8)
    formats = get_args(Format)
    networks = [Network(Checkpoint(model, 96, {}, {}, ""), number_format=each) for each in formats]
    seconds = fewest_seconds(*(partial(network.small_alphas, squashed) for network in networks))
    assert fastest_format(CPU) == formats[seconds.index(min(seconds))]


AMD = {"cpu_name": "AMD Zen 4", "avx512_vnni": True, "avx512_bf16": True, "l2_cache_size": 1 << 20}
AMX = {"cpu_name": "Intel Xeon", "amx_int8": True, "avx512_bf16": True, "amx_bf16": True, "l2_cache_size": 2 << 20}
INTEL = {"cpu_name": "Intel Xeon", "avx512_bf16": True, "l2_cache_size": 2 << 20}
OLD_INTEL = {"cpu_name": "Intel Xeon", "l2_cache_size": 256 << 10}


@pytest.mark.parametrize(
    ("processor", "number_format", "pictures"),
    [
        (AMD, None, 4),
        (AMD, "fp32", 4),
        (AMX, None, 8),
        (AMX, "bf16", 8),
        (AMX, "fp32", 4),
        (INTEL, None, 4),
        (OLD_INTEL, None, 4),
        ({}, None, 4),  # torch knows no more of it
    ],
)
def test_a_processor_gets_as_many_pictures_as_its_cache_holds(
    monkeypatch: pytest.MonkeyPatch, processor: dict[str, Any], number_format: Format | None, pictures: int
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    assert pictures_at_once(CPU, number_format) == pictures


@pytest.mark.parametrize(
    ("processor", "device", "number_format"),
    [
        (AMD, "cpu", "int8"),
        (AMX, "cpu", "int8"),
        (INTEL, "cpu", "fp32"),
        ({"cpu_name": "Intel Core", "avx_vnni": True}, "cpu", "int8"),
        ({"cpu_name": "AMD", "avx512_bf16": True}, "cpu", "bf16"),
        (AMD, "cuda", "fp32"),  # as this machine has no GPU that could multiply bfloat16
        ({}, "cpu", "fp32"),
    ],
)
def test_a_network_predicts_in_8_bits_where_there_are_instructions_for_that(
    monkeypatch: pytest.MonkeyPatch, processor: dict[str, Any], device: str, number_format: Format
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert fastest_format(torch.device(device)) == number_format


# BatchNorm -----------------------------------------------------------------------------------------------------------


def pictures() -> tuple[Tensor, Tensor]:
    """Six pictures, no channel of mean 0 and variance 1, and the gradient that comes back to their normalised ones."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(6, CHANNELS, 4, 5, generator=generator)
    gradient = torch.randn(6, CHANNELS, 4, 5, generator=generator)
    return features * torch.tensor([0.5, 1, 5]).view(-1, 1, 1) + torch.tensor([-2.0, 1, 4]).view(-1, 1, 1), gradient


def original() -> nn.BatchNorm2d:
    """torch's own, some way into training."""
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


def two_steps(norm: nn.BatchNorm2d, share: slice) -> dict[str, Any]:
    """Outputs, gradients and statistics after two training steps, the second on the pictures upside down."""
    features, gradient = pictures()
    results: dict[str, Any] = {"outputs": [], "gradients": []}
    for picture in (features, features.flip(0) + 1):
        leaf = picture[share].clone().requires_grad_()
        output = norm(leaf)
        output.backward(gradient[share])
        results["outputs"].append(output.detach())
        results["gradients"].append(leaf.grad)
    return {
        **results,
        "weight_gradient": norm.weight.grad,
        "bias_gradient": norm.bias.grad,
        "statistics": dict(norm.named_buffers()),
    }


def assert_as_the_joined_batch(workers: list[dict[str, Any]], shares: tuple[slice, ...]) -> None:
    expected = two_steps(original(), slice(None))
    close = {"rtol": 1e-4, "atol": 1e-4}
    for worker, share in zip(workers, shares, strict=True):
        for what in ("outputs", "gradients"):
            for found, joined in zip(worker[what], expected[what], strict=True):
                torch.testing.assert_close(found, joined[share], **close)
        torch.testing.assert_close(worker["statistics"], expected["statistics"], **close)
    for what in ("weight_gradient", "bias_gradient"):  # each worker has its pictures' share, as DDP wants it
        torch.testing.assert_close(sum(worker[what] for worker in workers), expected[what], **close)


@pytest.fixture
def group_of_one(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
def test_alone_it_is_torchs() -> None:
    assert_as_the_joined_batch([two_steps(CPUSyncBatchNorm.like(original()), slice(None))], (slice(None),))


def two_steps_of_a_share(rank: int, folder: str) -> None:
    torch.save(two_steps(CPUSyncBatchNorm.like(original()), SHARES[rank]), f"{folder}/{rank}.pt")


def test_two_workers_are_as_one_with_the_joined_batch(tmp_path: Path) -> None:
    assert_as_the_joined_batch(in_two_processes(two_steps_of_a_share, tmp_path), SHARES)


def test_in_eval_mode_it_is_torchs_and_needs_no_other_worker() -> None:
    features, _ = pictures()
    norm = CPUSyncBatchNorm.like(original().eval())
    assert not norm.training
    assert torch.equal(norm(features), original().eval()(features))
    torch.testing.assert_close(norm.state_dict(), original().state_dict(), rtol=0, atol=0)


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("training", [True, False])
def test_bfloat16_stays_bfloat16_with_statistics_in_float32(training: bool) -> None:
    features, _ = pictures()
    features = features.bfloat16()
    norm = CPUSyncBatchNorm.like(original()).train(training)
    output = norm(features)
    assert output.dtype == torch.bfloat16
    expected = original().train(training)
    torch.testing.assert_close(output.float(), expected(features.float()), rtol=2**-8, atol=2**-8)
    torch.testing.assert_close(norm.running_var, expected.running_var)


def test_synchronising_replaces_every_batchnorm_and_keeps_names_and_tensors() -> None:
    model = UNet(UNetConfig(width=2))
    before = model.state_dict(keep_vars=True)
    parameters = list(model.parameters())
    synchronised = synchronise_batchnorm(model, CPU)
    after = synchronised.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert all(found is kept for found, kept in zip(synchronised.parameters(), parameters, strict=True))
    norms = [module for module in synchronised.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 18
    assert all(isinstance(norm, CPUSyncBatchNorm) for norm in norms)
