"""Number formats and batch sizes that suit a device."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

TrainingPrecision = Literal["auto", "fp32", "bf16"]

NumberFormat = Literal["fp32", "bf16", "int8"]  # formats to predict in


def autocast_dtype(device: torch.device, precision: TrainingPrecision) -> torch.dtype | None:
    """Return the dtype of convolutions on this device: bfloat16, or None for float32.

    "auto" is bfloat16 where the hardware multiplies it faster than float32.
    """
    if precision == "auto":
        return torch.bfloat16 if _bf16_is_faster(device) else None
    return torch.bfloat16 if precision == "bf16" else None


def _bf16_is_faster(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    if capabilities.get("amx_bf16"):
        return True
    # With AVX-512 alone, AMD's processors multiply bfloat16 faster than float32, Intel's at half the rate.
    return bool(capabilities.get("avx512_bf16")) and "Intel" not in capabilities.get("cpu_name", "")


def supported_formats(device: torch.device) -> tuple[NumberFormat, ...]:
    """Return the number formats that a network should predict in on this device, fastest first.

    "fp32" is always among them; "bf16" where the hardware multiplies it faster than float32; "int8" on CPUs with
    instructions for products of 8-bit integers (VNNI, AMX).
    """
    formats: list[NumberFormat] = []
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        if any(capabilities.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8")):
            formats.append("int8")
    if _bf16_is_faster(device):
        formats.append("bf16")
    return (*formats, "fp32")


def fastest_number_format(device: torch.device) -> NumberFormat:
    """Return the number format in which a network predicts fastest on this device."""
    return supported_formats(device)[0]


def fastest_float(device: torch.device) -> NumberFormat:
    """Return the faster of the floating-point formats on this device."""
    return "bf16" if _bf16_is_faster(device) else "fp32"


def micro_batch_size(device: torch.device, number_format: NumberFormat | None = None) -> int:
    """Return the number of images that a network should predict in one call on this device.

    On a CPU, as many as keep their features in the core's second-level cache: of the sizes that were measured, four in
    float32, and in bfloat16 or int8 with 1 MiB of cache; eight in bfloat16 with 2 MiB.

    Args:
        device: Device to predict on.
        number_format: Format to predict in; by default the fastest.
    """
    if device.type == "cuda":
        return 32
    bytes_each = 4 if (number_format or fastest_number_format(device)) == "fp32" else 2
    cache: int = torch.cpu.get_capabilities().get("l2_cache_size", 0)
    return max(4, cache // (bytes_each << 17))


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Return the array as a tensor on the device; a GPU copies from pinned memory, in parallel with what follows."""
    # Arrays out of an object store are read-only, which torch tensors cannot be: those are copied.
    tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
