"""Two data-parallel workers: processes that share a gloo group."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def in_two_processes(work: Callable[[int, str], None], folder: Path) -> list[Any]:
    """Return what ``work(rank, folder)`` saves as ``<folder>/<rank>.pt`` in each of two workers.

    Args:
        work: Function of a module, so that a new process can import it.
        folder: Empty folder for the workers' files.
    """
    mp.start_processes(join_group, args=(work, str(folder)), nprocs=2, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def join_group(rank: int, work: Callable[[int, str], None], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    work(rank, folder)
    dist.destroy_process_group()
