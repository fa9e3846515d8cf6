"""What the hardware asks of a network: the number format it is fast in, and batch statistics that hold over workers.

Knows torch devices and torch.distributed; no training loop, no particular network.
"""

from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

Precision = Literal["auto", "fp32", "bf16"]


def autocast_dtype(device: torch.device, precision: Precision) -> torch.dtype | None:
    """The number format for convolutions on this device: bfloat16, or None for plain float32.

    "auto" takes bfloat16 where the hardware multiplies it natively: elsewhere it is emulated, and slower than float32.
    """
    if precision == "auto":
        return torch.bfloat16 if _has_bf16(device) else None
    return torch.bfloat16 if precision == "bf16" else None


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """The array as a tensor there; to a GPU from pinned memory, so that the copy does not hold up what follows."""
    # A copy, if need be: arrays out of an object store are read-only, which torch tensors cannot be.
    tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def synchronise_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """Replace every BatchNorm so that its statistics are those of the batches of all workers together.

    With it, N workers with batch B train as one worker with batch N·B does. torch's own on CUDA; torch has none for the
    CPU, so there it is :class:`CPUSyncBatchNorm`. The names and shapes of parameters and buffers stay as they are.
    """
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, CPUSyncBatchNorm.like(child))
    return model


class CPUSyncBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the batches of all workers: sums travel, one division at the end, as in torch's SyncBatchNorm."""

    @classmethod
    def like(cls, original: nn.BatchNorm2d) -> "CPUSyncBatchNorm":
        """One with the original's own parameters and buffers (the same tensors, not copies)."""
        twin = cls(original.num_features, eps=original.eps, momentum=original.momentum)
        twin.weight, twin.bias = original.weight, original.bias
        twin.running_mean, twin.running_var = original.running_mean, original.running_var
        twin.num_batches_tracked = original.num_batches_tracked
        return twin.train(original.training)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        if not self.training:
            return super().forward(features_BCHW)
        x = features_BCHW.float()
        own_count = torch.full((1,), x.numel() / x.shape[1])
        sums = sum_with_gradient(torch.cat([x.sum((0, 2, 3)), own_count]))
        count = sums[-1]
        mean = sums[:-1] / count
        # A second exchange, since a mean of squares less a squared mean has few digits left where the mean is large.
        centred = x - mean[:, None, None]
        variance = sum_with_gradient((centred * centred).sum((0, 2, 3))) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp_min(1), self.momentum)  # unbiased, as torch's
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias[:, None, None], centred, scale[:, None, None]).to(features_BCHW.dtype)


def sum_with_gradient(values: Tensor) -> Tensor:
    """The values summed over all workers; gradients flow back to every worker's."""
    summed: Tensor = _SumOverWorkers.apply(values)  # type: ignore[no-untyped-call]
    return summed


class _SumOverWorkers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:  # noqa: ARG004
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:  # noqa: ARG004
        # Every worker's loss depends on every worker's values.
        summed = gradient.clone()
        dist.all_reduce(summed)
        return summed
