"""Ray tasks of a prediction: due photos are cut into blocks, and each block is handled on any free core.

    due photos: columns of `photos.SCHEMA`, outputs -> blocks: the same columns and `block`, each block's number
    block -> fetch, decode, network, encode, put, ledger part -> `RESULT_SCHEMA`

Without GPUs, a task does all of this on one core, and only keys and numbers pass between processes. With GPUs, the
network is an actor on each GPU, to which tasks send squashed photos, so that decoding and encoding scale separately.
Ray's processes keep the network in this module from one task to the next.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import ray
import torch

from jobs.prediction.precision import require_format
from matting.data.images import Pixels
from matting.inference.network import Network, SmallAlphas
from matting.inference.predictor import Predictor
from matting.nn import checkpoint
from matting.nn.checkpoint import Checkpoint, CheckpointError
from matting.nn.precision import micro_batch_size
from matting.results.pipeline import PhotoPipeline, PredictionSettings, Stage

BLOCK_PHOTOS = 256  # some seconds of a core's time, which a crash costs, and after which a ledger part is written
BLOCK_BYTES = (
    64_000_000  # limit for a block's input files: large photos make smaller blocks, whose outputs fit into memory
)
LEAST_PHOTOS = 16  # in the last blocks: each costs a task and a ledger part

# Figures of a whole block: when its task began and ended, in seconds since the epoch, and the seconds of each stage.
BLOCK_FIELDS = {"began": pa.float64(), "ended": pa.float64(), **dict.fromkeys(get_args(Stage), pa.float64())}

RESULT_SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "error": pa.string(),
        "confidence": pa.float64(),
        "read": pa.int64(),  # bytes
        "written": pa.int64(),
        "block": pa.struct(BLOCK_FIELDS),  # in the block's first row, else null
    }
)


@dataclass(frozen=True)
class PredictionWork:
    """Everything that a prediction task needs, apart from its photos.

    Args:
        checkpoint: URI of the checkpoint folder.
        model: Identity of that checkpoint when the run began.
        output: URI of the output folder.
        settings: What to make of each photo.
        run: Name of the run.
    """

    checkpoint: str
    model: str
    output: str
    settings: PredictionSettings
    run: str

    def load(self) -> Checkpoint:
        """Load the checkpoint.

        Raises:
            CheckpointError: It is no longer the one that the run began with.
        """
        loaded = checkpoint.load(self.checkpoint)
        if loaded.identity != self.model:
            raise CheckpointError(f"{self.checkpoint} was replaced while it was in use; run again.")
        return loaded

    def network(self, device: torch.device) -> SmallAlphas:
        """Return the checkpoint's network on a device, in the run's number format.

        Raises:
            CheckpointError: The checkpoint was replaced since the run began.
            UnsupportedFormatError: The device cannot compute that format.
        """
        require_format(self.settings.precision, device)
        return Network(self.load(), device, self.settings.precision)


def cut_into_blocks(due: pa.Table, tasks: int) -> Iterator[pa.Table]:
    """Cut the due photos into numbered blocks of a bounded number of photos and of bytes.

    The last blocks become smaller and smaller, so that all tasks end at about the same time.
    """
    sizes = due["size"].to_pylist()
    start = number = 0
    while start < len(due):
        most = min(BLOCK_PHOTOS, max(LEAST_PHOTOS, (len(due) - start) // (2 * tasks)))
        end, size = start, 0
        while end < min(len(due), start + most) and (end == start or size + sizes[end] <= BLOCK_BYTES):
            size += sizes[end]
            end += 1
        yield with_block_number(due.slice(start, end - start), number)
        start, number = end, number + 1


def with_block_number(block: pa.Table, number: int) -> pa.Table:
    """Return the block with its number as a column."""
    return block.append_column("block", pa.array(np.full(len(block), number)))


def handle_block(block: pa.Table, work: PredictionWork, networks: tuple[Any, ...]) -> pa.Table:
    """Predict a block of photos and write its outputs and its ledger part: one Ray task.

    Args:
        block: Photos, with columns of `photos.SCHEMA`, outputs and block.
        work: The task's assignment.
        networks: Actors of GpuNetwork that predict; if there are none, the task predicts itself.

    Returns:
        A row for each photo, in the columns of RESULT_SCHEMA.
    """
    began = time.time()
    number = block["block"][0].as_py()
    rows, seconds = pipeline_for(work, networks[number % len(networks)] if networks else None).handle(block, number)
    rows[0]["block"] = {"began": began, "ended": time.time(), **seconds}
    return pa.Table.from_pylist(rows, RESULT_SCHEMA)


@lru_cache
def pipeline_for(work: PredictionWork, gpu: Any) -> PhotoPipeline:
    """Return the pipeline of a run: made once in each of Ray's processes, which run one task after another."""
    network = RemoteNetwork(work.load(), gpu) if gpu else work.network(torch.device("cpu"))
    predictor = Predictor(network, work.settings.refine)
    together = micro_batch_size(torch.device("cuda" if gpu else "cpu"), work.settings.precision)
    return PhotoPipeline(work.output, work.settings, work.run, work.model, predictor, together)


def start_gpu_networks(work: PredictionWork, count: int) -> tuple[Any, ...]:
    """Start actors of GpuNetwork, each on a GPU of its own; a dead one is restarted, and its calls are repeated."""
    actor_class: Any = ray.remote(GpuNetwork)
    # Two calls at a time: while one task's photos travel, another task's are predicted.
    options = {"num_gpus": 1, "num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "max_concurrency": 2}
    return tuple(actor_class.options(**options).remote(work) for _ in range(count))


class GpuNetwork:
    """Network for many tasks: an actor of Ray."""

    def __init__(self, work: PredictionWork) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = work.network(device)

    def small_alphas(self, squashed_BHWC: Pixels) -> Pixels:
        """Predict alphas of squashed photos: uint8 (B, H, W, 3) -> uint8 (B, H, W)."""
        return self._network.small_alphas(squashed_BHWC)


class RemoteNetwork:
    """Network of a GpuNetwork actor, called from another process."""

    def __init__(self, loaded: Checkpoint, actor: Any) -> None:
        self.size, self.aspects = loaded.size, loaded.aspects
        self._actor = actor

    def small_alphas(self, squashed_BHWC: Pixels) -> Pixels:
        """Predict alphas of squashed photos: uint8 (B, H, W, 3) -> uint8 (B, H, W)."""
        alphas: Pixels = ray.get(self._actor.small_alphas.remote(squashed_BHWC))
        return alphas
