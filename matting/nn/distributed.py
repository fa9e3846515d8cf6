"""Collectives over the workers of a data-parallel run; without a process group, there is one worker."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of workers; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this worker's rank, from 0; 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


def sum_over_workers(values: list[float], device: torch.device) -> list[float]:
    """Return each value summed over all workers, in float64.

    Args:
        values: This worker's values; every worker has equally many.
        device: Device that the process group communicates from.
    """
    if world_size() == 1:
        return values
    summed = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(summed)
    return [float(value) for value in summed.tolist()]


def average_over_workers(tensors: list[Tensor]) -> None:
    """Replace each tensor by its mean over all workers, in place, in one exchange without a wait of the host.

    Args:
        tensors: Tensors of one dtype on the device that the process group communicates from; the same on every worker.
    """
    if world_size() == 1:
        return
    joined = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(joined)
    means = torch.split(joined / world_size(), [tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [mean.view(tensor.shape) for mean, tensor in zip(means, tensors, strict=True)])


def gather_over_workers(rows: list[Any]) -> list[Any]:
    """Return the rows of all workers in order of rank, on every worker; each may have any number of them."""
    if world_size() == 1:
        return rows
    gathered: list[list[Any]] = [[] for _ in range(world_size())]
    dist.all_gather_object(gathered, rows)
    return [row for part in gathered for row in part]
