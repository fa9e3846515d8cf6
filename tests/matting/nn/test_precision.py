"""precision: number formats and batch sizes by device."""

import math
import platform
import time
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import numpy as np
import pytest
import torch

from matting.inference.network import Network
from matting.nn.checkpoint import Checkpoint
from matting.nn.precision import (
    NumberFormat,
    autocast_dtype,
    fastest_float,
    fastest_number_format,
    micro_batch_size,
    supported_formats,
    to_device,
)
from matting.nn.unet import UNet, UNetConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_explicit_precision_decides_the_dtype(device: str) -> None:
    assert autocast_dtype(torch.device(device), "fp32") is None
    assert autocast_dtype(torch.device(device), "bf16") == torch.bfloat16


def fewest_seconds(*calls: Callable[[], object]) -> list[float]:
    """Return the least CPU time of each call, which other processes disturb less than wall time; calls take turns."""
    fewest = [math.inf] * len(calls)
    for _ in range(20):
        for place, call in enumerate(calls):
            began = time.process_time()
            call()
            fewest[place] = min(fewest[place], time.process_time() - began)
    return fewest


on_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="on other processors auto is float32, unmeasured"
)


@on_x86
def test_auto_precision_multiplies_fastest_here() -> None:
    matrices = [torch.rand(512, 512).to(dtype) for dtype in (torch.float32, torch.bfloat16)]
    float32, bfloat16 = fewest_seconds(*(partial(torch.mm, matrix, matrix) for matrix in matrices))
    assert autocast_dtype(CPU, "auto") == (torch.bfloat16 if bfloat16 < float32 else None)


@pytest.mark.slow
@on_x86
def test_fastest_format_predicts_fastest_here() -> None:
    model = UNet(UNetConfig(width=32, depth=2)).eval()
    squashed = np.zeros((8, 96, 96, 3), np.uint8)
    formats = get_args(NumberFormat)
    networks = [Network(Checkpoint(model, 96, {}, {}, ""), number_format=each) for each in formats]
    seconds = fewest_seconds(*(partial(network.small_alphas, squashed) for network in networks))
    assert fastest_number_format(CPU) == formats[seconds.index(min(seconds))]


AMD = {"cpu_name": "AMD Zen 4", "avx512_vnni": True, "avx512_bf16": True, "l2_cache_size": 1 << 20}
AMX = {"cpu_name": "Intel Xeon", "amx_int8": True, "avx512_bf16": True, "amx_bf16": True, "l2_cache_size": 2 << 20}
INTEL = {"cpu_name": "Intel Xeon", "avx512_bf16": True, "l2_cache_size": 2 << 20}
OLD_INTEL = {"cpu_name": "Intel Xeon", "l2_cache_size": 256 << 10}


@pytest.mark.parametrize(
    ("processor", "number_format", "images"),
    [
        (AMD, None, 4),
        (AMD, "fp32", 4),
        (AMX, None, 8),
        (AMX, "bf16", 8),
        (AMX, "fp32", 4),
        (INTEL, None, 4),
        (OLD_INTEL, None, 4),
        ({}, None, 4),  # a processor of which torch reports nothing
    ],
)
def test_micro_batch_fits_the_cache(
    monkeypatch: pytest.MonkeyPatch, processor: dict[str, Any], number_format: NumberFormat | None, images: int
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    assert micro_batch_size(CPU, number_format) == images


@pytest.mark.parametrize(
    ("processor", "device", "formats"),
    [
        (AMD, "cpu", ("int8", "bf16", "fp32")),
        (AMX, "cpu", ("int8", "bf16", "fp32")),
        (INTEL, "cpu", ("fp32",)),
        ({"cpu_name": "Intel Core", "avx_vnni": True}, "cpu", ("int8", "fp32")),
        ({"cpu_name": "AMD", "avx512_bf16": True}, "cpu", ("bf16", "fp32")),
        (AMD, "cuda", ("fp32",)),  # a GPU that only emulates bfloat16
        ({}, "cpu", ("fp32",)),
    ],
)
def test_supported_formats_follow_the_instructions(
    monkeypatch: pytest.MonkeyPatch, processor: dict[str, Any], device: str, formats: tuple[NumberFormat, ...]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert supported_formats(torch.device(device)) == formats
    assert fastest_number_format(torch.device(device)) == formats[0]
    assert fastest_float(torch.device(device)) == next(each for each in formats if each != "int8")


def test_read_only_array_becomes_a_tensor() -> None:
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    array.flags.writeable = False
    assert to_device(array, CPU).tolist() == [[0, 1, 2], [3, 4, 5]]
