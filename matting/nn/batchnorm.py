"""BatchNorm that does not count its batches, and BatchNorm synchronized over data-parallel workers, on CPUs too."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional


def synchronize_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """Replace every BatchNorm of the model by one whose statistics are over the batches of all workers.

    N workers with batch B then train as one worker with batch N·B does. On CUDA, the replacement is torch's own
    SyncBatchNorm; torch has none for the CPU, where it is :class:`CPUSyncBatchNorm`. Names and shapes of parameters and
    buffers do not change.
    """
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]  # torch's
        return converted
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, CPUSyncBatchNorm.like(child))
    return model


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm that leaves its count of batches as it is.

    Only statistics without momentum need the count, and a GPU would start one more kernel a layer for it.
    """

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Normalize the features; in training mode, update the running statistics."""
        return functional.batch_norm(
            features_BCHW,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum or 0.0,
            self.eps,
        )


class CPUSyncBatchNorm(BatchNorm):
    """BatchNorm over the batches of all workers.

    Workers exchange each channel's statistics once in the forward pass and once in the backward pass, as in torch's
    SyncBatchNorm; the passes over the features are torch's own.
    """

    @classmethod
    def like(cls, original: nn.BatchNorm2d) -> "CPUSyncBatchNorm":
        """Return a replacement that shares the original's parameters and buffers (the same tensors, not copies)."""
        twin = cls(original.num_features, eps=original.eps, momentum=original.momentum)
        twin.weight, twin.bias = original.weight, original.bias
        twin.running_mean, twin.running_var = original.running_mean, original.running_var
        twin.num_batches_tracked = original.num_batches_tracked
        return twin.train(original.training)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Normalize the features; in training mode, update the running statistics."""
        if not self.training:
            return super().forward(features_BCHW)
        with torch.no_grad():
            mean, variance, count = statistics_over_workers(features_BCHW)
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.momentum is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp_min(1), self.momentum)  # unbiased, as torch's
        normalized: Tensor = _Normalize.apply(  # type: ignore[no-untyped-call]  # torch has no types there
            features_BCHW, self.weight, self.bias, mean, variance, count, self.eps
        )
        return normalized


def statistics_over_workers(features_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each channel's mean (C) and biased variance (C), and the number of values a channel (), over all workers.

    All are float32. The parts are joined by their means and variances (Chan, Golub, LeVeque: Updating formulae and a
    pairwise algorithm for computing sample variances, 1979), since a mean of squares less a squared mean has few digits
    left where the mean is large.
    """
    channels = features_BCHW.shape[1]
    unused = torch.zeros(2, channels)  # running statistics: as they are float32, the results are so too
    own_mean, own_variance = torch.batch_norm_update_stats(features_BCHW, unused[0], unused[1], 0.0)
    own = torch.cat([own_mean, own_variance, torch.full((1,), features_BCHW.numel() / channels)])
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    means, variances, counts = torch.split(torch.stack(parts), [channels, channels, 1], dim=1)
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    variance = (counts * (variances + (means - mean).square())).sum(0) / count
    return mean, variance, count


class _Normalize(torch.autograd.Function):
    """The function weight * (features - mean) / sqrt(variance + eps) + bias, where mean and variance depend on the
    features of all workers."""

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
        # A private operator of torch, the backward pass of its own BatchNorm; tests compare the sum with autograd's.
        direct, weight_gradient, bias_gradient = torch.ops.aten.native_batch_norm_backward(
            gradient, features, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        # Every worker's loss depends on every worker's features, by way of mean and variance.
        sums = torch.stack([weight_gradient, bias_gradient])
        dist.all_reduce(sums)
        by_variance, by_mean = -sums * weight * torch.rsqrt(variance + ctx.eps) / count
        indirect = functional.batch_norm(features, mean, variance, by_variance, by_mean, eps=ctx.eps)
        return direct + indirect, weight_gradient, bias_gradient, None, None, None, None
