"""Blocks of a prediction, and its tasks' assignment: due photos are cut into blocks, each for one Ray task.

    due photos: columns of `photos.SCHEMA`, outputs -> blocks: the same columns and `block`, each block's number
    block -> fetch, decode, network, encode, put, ledger part -> `RESULT_SCHEMA`

Without GPUs, a task does all of this on one core, and only keys and numbers pass between processes. With GPUs, an actor
on each GPU squashes, predicts and refines whole blocks of decoded photos, which tasks send to it.
See jobs/prediction/handler.py for the tasks and jobs/prediction/networks.py for the actors.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import get_args

import numpy as np
import pyarrow as pa
import torch

from jobs.common.devices import promised_gpu
from jobs.common.visibility import Token
from jobs.prediction.precision import require_format
from matting.data.images import MAX_PIXELS, Pixels
from matting.inference.device_predictor import DevicePredictor, PackingPredictor, PhotoBatch
from matting.inference.network import Network, SmallAlphas
from matting.inference.predictor import Predictor
from matting.nn import checkpoint
from matting.nn.checkpoint import Checkpoint, CheckpointError
from matting.nn.precision import micro_batch_size
from matting.results.pipeline import PhotoPipeline, PredictionSettings, Stage
from matting.storage.lease import Fence

BLOCK_PHOTOS = 256  # some seconds of a core's time, which a crash costs, and after which a ledger part is written
BLOCK_BYTES = (
    64_000_000  # limit for a block's input files: large photos make smaller blocks, whose outputs fit into memory
)
BATCH_BYTES = 128_000_000  # of decoded photos and their alphas, after which a task sends them to a GPU
GPU_MICRO_BATCH = 64  # images in a forward pass on a GPU; the last one of a block is padded
LEAST_PHOTOS = 16  # in the last blocks: each costs a task and a ledger part

RETURNED = "returned"  # status of the single row of a block that a task gives back, since its node is sick

# Facts about a whole block: its number, the names of its node and device, when its task began and ended, in seconds
# since the epoch, and the seconds of each stage.
BLOCK_FIELDS = {
    "number": pa.int64(),
    "node": pa.string(),
    "device": pa.string(),
    "began": pa.float64(),
    "ended": pa.float64(),
    **dict.fromkeys(get_args(Stage), pa.float64()),
}

RESULT_SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "status": pa.string(),  # `outcomes.Status`, or RETURNED
        "error": pa.string(),
        "warning": pa.string(),
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
        max_pixels: Number of pixels above which a photo fails, undecoded.
        fence: Proof of the job's lease of the output folder; None in a test.
        token: Proof that all nodes see the same files; None on a cluster of one machine.
    """

    checkpoint: str
    model: str
    output: str
    settings: PredictionSettings
    run: str
    max_pixels: int = MAX_PIXELS
    fence: Fence | None = None
    token: Token | None = None

    def load(self) -> Checkpoint:
        """Load the checkpoint.

        Raises:
            CheckpointError: It is no longer the one that the run began with.
        """
        loaded = checkpoint.load(self.checkpoint)
        if loaded.identity != self.model:
            raise CheckpointError(f"{self.checkpoint} was replaced while it was in use; run again.")
        return loaded

    def gpu(self) -> torch.device:
        """Return the GPU that Ray has given to this process.

        Raises:
            NoGpuError: torch cannot compute on it.
        """
        return promised_gpu()

    def network(self, device: torch.device) -> SmallAlphas:
        """Return the checkpoint's network on a device, in the run's number format.

        Raises:
            CheckpointError: The checkpoint was replaced since the run began.
            UnsupportedFormatError: The device cannot compute that format.
        """
        require_format(self.settings.precision, device)
        return Network(self.load(), device, self.settings.precision)

    def device_predictor(self, device: torch.device) -> DevicePredictor:
        """Return the predictor of whole batches on a GPU.

        Raises:
            CheckpointError, UnsupportedFormatError: As for :meth:`network`.
        """
        require_format(self.settings.precision, device)
        network = Network(self.load(), device, self.settings.precision, GPU_MICRO_BATCH)
        return DevicePredictor(network, self.settings.refine, device)

    def pipeline(self, compute: Callable[[PhotoBatch], Pixels] | None = None) -> PhotoPipeline:
        """Return the pipeline of the run.

        Args:
            compute: Function that computes alphas of a batch on a GPU; None to predict in this process, on the CPU.

        Raises:
            CheckpointError, UnsupportedFormatError: As for :meth:`network`.
        """
        common = (self.output, self.settings, self.run, self.model)
        if compute:
            remote = PackingPredictor(self.load().size, compute)
            return PhotoPipeline(*common, remote, BLOCK_PHOTOS, self.max_pixels, BATCH_BYTES)
        cpu = torch.device("cpu")
        together = micro_batch_size(cpu, self.settings.precision)
        predictor = Predictor(self.network(cpu), self.settings.refine)
        return PhotoPipeline(*common, predictor, together, self.max_pixels)


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


def block_number(block: pa.Table) -> int:
    """Return the number of a block that :func:`cut_into_blocks` made."""
    return int(block["block"][0].as_py())
