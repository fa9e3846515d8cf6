"""What the hardware asks of a network: the number format and the batches it is fast in, and batch statistics that hold
over workers.

Knows torch devices and torch.distributed; no training loop, no particular network.
"""

from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

Precision = Literal["auto", "fp32", "bf16"]  # in training
Format = Literal["fp32", "bf16", "int8"]


def autocast_dtype(device: torch.device, precision: Precision) -> torch.dtype | None:
    """The number format for convolutions on this device: bfloat16, or None for plain float32.

    "auto" takes bfloat16 where the hardware multiplies it faster than float32.
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


def fastest_format(device: torch.device) -> Format:
    """In which a network predicts fastest there: 8-bit integers, on CPUs with instructions for them."""
    capabilities = torch.cpu.get_capabilities()
    if device.type == "cpu" and any(capabilities.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8")):
        return "int8"
    return fastest_float(device)


def fastest_float(device: torch.device) -> Format:
    """Of the floating-point formats."""
    return "bf16" if autocast_dtype(device, "auto") else "fp32"


def pictures_at_once(device: torch.device, number_format: Format | None = None) -> int:
    """How many pictures a network that predicts should see at once there, by default in the fastest format.

    On a CPU as many as have their features in the core's own cache, the second level's: of those that were measured,
    four in float32, or in bfloat16 or int8 with 1 MiB of it; eight in bfloat16 with 2 MiB.
    """
    if device.type == "cuda":
        return 32
    bytes_each = 4 if (number_format or fastest_format(device)) == "fp32" else 2
    cache: int = torch.cpu.get_capabilities().get("l2_cache_size", 0)
    return max(4, cache // (bytes_each << 17))


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
    """BatchNorm over the batches of all workers, with one exchange of each channel's statistics on the way there and
    one on the way back, as in torch's SyncBatchNorm; the passes over the features are torch's own."""

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
        with torch.no_grad():
            mean, variance, count = statistics_over_workers(features_BCHW)
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp_min(1), self.momentum)  # unbiased, as torch's
        normalised: Tensor = _Normalise.apply(  # type: ignore[no-untyped-call]
            features_BCHW, self.weight, self.bias, mean, variance, count, self.eps
        )
        return normalised


def statistics_over_workers(features_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each channel's mean (C) and variance (C), and how many values they are of (), over the features of all workers;
    float32.

    Parts are joined by their means and variances (Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm for
    computing sample variances, 1979), since a mean of squares less a squared mean has few digits left where the mean is
    large.
    """
    channels = features_BCHW.shape[1]
    unused = torch.zeros(2, channels)  # running statistics, whose float32 makes the others float32
    own_mean, own_variance = torch.batch_norm_update_stats(features_BCHW, unused[0], unused[1], 0.0)
    own = torch.cat([own_mean, own_variance, torch.full((1,), features_BCHW.numel() / channels)])
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    means, variances, counts = torch.split(torch.stack(parts), [channels, channels, 1], dim=1)
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    variance = (counts * (variances + (means - mean).square())).sum(0) / count
    return mean, variance, count


class _Normalise(torch.autograd.Function):
    """Features -> weight * (features - mean) / sqrt(variance + eps) + bias, where mean and variance are functions of
    the features of all workers."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(features, weight, mean, variance, count)
        ctx.eps = eps
        return functional.batch_norm(features, mean, variance, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, mean, variance, count = ctx.saved_tensors
        direct, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, features, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        # Every worker's loss depends on every worker's features, by way of mean and variance.
        sums = torch.stack([of_weight, of_bias])
        dist.all_reduce(sums)
        by_variance, by_mean = -sums * weight * torch.rsqrt(variance + ctx.eps) / count
        indirect = functional.batch_norm(features, mean, variance, by_variance, by_mean, eps=ctx.eps)
        return direct + indirect, of_weight, of_bias, None, None, None, None
