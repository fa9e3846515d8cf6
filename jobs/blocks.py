"""A prediction's Ray tasks: due photos cut into blocks, and a block dealt with wherever there is a free core.

    due photos: `photos.SCHEMA`, outputs -> blocks: the same and `block`, a number each
    block -> fetch, decode, network, encode, put, ledger part -> `SAID`

Without GPUs a task does all of this itself, on one core: what passes between processes are keys and figures. With
GPUs, the network is an actor on each, to which tasks send photos squashed for it, so that decoding and encoding scale
apart from it. A module of its own, since Ray's processes keep their network in it from one task to the next.
"""

import ctypes
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import ray
import torch

from matting import checkpoint
from matting.checkpoint import CheckpointError
from matting.devices import pictures_at_once
from matting.images import Pixels
from matting.outputs import Outputs, Settings, Stage
from matting.predictor import Network, Predictor, SmallAlphas

BLOCK_PHOTOS = 256  # a few seconds of a core's time: what a crash costs, and how often a ledger part is written
BLOCK_BYTES = 64_000_000  # of input files: large photos make smaller blocks, whose outputs fit into memory
LEAST_PHOTOS = 16  # in the last blocks: each costs a task and a ledger part

# Options of glibc's mallopt, in bytes. By default a photo's arrays go back to the system when they are freed, and a
# moment later the next photo's are faulted in page by page.
MALLOPT = {
    -1: 64 << 20,  # M_TRIM_THRESHOLD: freed memory that a process keeps at most
    -3: 32 << 20,  # M_MMAP_THRESHOLD: whatever is larger goes back at once
}

# What a task says of its photos. What is of the whole block is said by its first row: when the task began and ended, in
# seconds since the epoch, and the seconds of each stage.
BLOCK = {"began": pa.float64(), "ended": pa.float64(), **dict.fromkeys(get_args(Stage), pa.float64())}
SAID = pa.schema(
    {
        "key": pa.string(),
        "error": pa.string(),
        "confidence": pa.float64(),
        "read": pa.int64(),  # bytes
        "written": pa.int64(),
        "block": pa.struct(BLOCK),
    }
)


@dataclass(frozen=True)
class Work:
    """What a task has to know."""

    checkpoint: str
    model: str
    output: str
    settings: Settings
    run: str

    def load(self) -> checkpoint.Checkpoint:
        """The checkpoint. Raises CheckpointError if it is no longer the one that the run began with."""
        loaded = checkpoint.load(self.checkpoint)
        if loaded.identity != self.model:
            raise CheckpointError(f"{self.checkpoint} was replaced while it was in use; run again.")
        return loaded

    def network(self, device: torch.device) -> SmallAlphas:
        """The checkpoint's network, made ready to predict there."""
        return Network(self.load(), device)


def blocks(due: pa.Table, tasks: int) -> Iterator[pa.Table]:
    """Cut what is due into numbered blocks, of a bounded count of photos and of bytes. The last ones are smaller and
    smaller, so that all tasks end at about the same time."""
    sizes = due["size"].to_pylist()
    start = number = 0
    while start < len(due):
        most = min(BLOCK_PHOTOS, max(LEAST_PHOTOS, (len(due) - start) // (2 * tasks)))
        end, size = start, 0
        while end < min(len(due), start + most) and (end == start or size + sizes[end] <= BLOCK_BYTES):
            size += sizes[end]
            end += 1
        yield numbered(due.slice(start, end - start), number)
        start, number = end, number + 1


def numbered(block: pa.Table, number: int) -> pa.Table:
    """With its number as a column."""
    return block.append_column("block", pa.array(np.full(len(block), number)))


def handle_block(block: pa.Table, work: Work, networks: tuple[Any, ...]) -> pa.Table:
    """One task: columns of `photos.SCHEMA`, outputs, block -> `SAID`.

    Args:
        block: the photos.
        work: what is to be done.
        networks: GpuNetwork actors that predict; none: the task does it itself.
    """
    began = time.time()
    number = block["block"][0].as_py()
    rows, seconds = outputs_of(work, networks[number % len(networks)] if networks else None).handle(block, number)
    rows[0]["block"] = {"began": began, "ended": time.time(), **seconds}
    return pa.Table.from_pylist(rows, SAID)


@lru_cache
def outputs_of(work: Work, gpu: Any) -> Outputs:
    """Made once in each of Ray's processes, which run one task after another."""
    keep_freed_memory()
    network = ElsewhereNetwork(work.load(), gpu) if gpu else work.network(torch.device("cpu"))
    predictor = Predictor(network, work.settings.refine)
    together = pictures_at_once(torch.device("cuda" if gpu else "cpu"))
    return Outputs(work.output, work.settings, work.run, work.model, predictor, together)


def keep_freed_memory() -> None:
    """Have this process keep some of what it frees for what it needs next, if its C library is glibc."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for option, size in MALLOPT.items():
            mallopt(option, size)


@ray.remote(num_gpus=1, num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=2)
class GpuNetwork:
    """A network on a GPU of its own, which serves many workers; while one's photos travel, another's are predicted."""

    def __init__(self, work: Work) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = work.network(device)

    def small_alphas(self, squashed_BHWC: Pixels) -> Pixels:
        """uint8 (B, H, W, 3) -> uint8 (B, H, W)."""
        return self._network.small_alphas(squashed_BHWC)


class ElsewhereNetwork:
    """A GpuNetwork, asked from another process."""

    def __init__(self, loaded: checkpoint.Checkpoint, actor: "ray.actor.ActorHandle[GpuNetwork]") -> None:
        self.size, self.aspects = loaded.size, loaded.aspects
        self._actor = actor

    def small_alphas(self, squashed_BHWC: Pixels) -> Pixels:
        """uint8 (B, H, W, 3) -> uint8 (B, H, W)."""
        alphas: Pixels = ray.get(self._actor.small_alphas.remote(squashed_BHWC))
        return alphas
