"""The predict job's own pipeline in a plain loop, without Ray: the throughput that the job could have at most.

folder of photos -> blocks -> fetch, decode, squash, network, refine, encode, write, ledger part, in each process
"""

from collections.abc import Callable
from functools import partial
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import torch

from jobs.bench.processes import run_fresh
from jobs.bench.timing import rate_of_calls
from jobs.common.cluster import MALLOC
from jobs.common.machine import usable_cores
from matting.data.photos import find_photos
from matting.inference.network import Network
from matting.inference.predictor import Predictor, Refine
from matting.nn import checkpoint
from matting.nn.precision import NumberFormat, micro_batch_size
from matting.results.pipeline import PhotoPipeline, PredictionSettings

BLOCK_PHOTOS = 256  # as many as the job gives to a task


class LoopRates:
    """Rates of the loop on all cores, measured several times around a job that they are compared with.

    A machine's speed drifts while a job runs for minutes; the mean of before and after follows it.

    Args:
        folder: URI of a folder of photos.
        uri: URI of a checkpoint folder.
        refine: Method of enlarging alphas.
        precision: Number format of the network.
        seconds: Duration of one measurement.
    """

    def __init__(self, folder: str, uri: str, refine: Refine, precision: NumberFormat, seconds: float) -> None:
        self._arguments = (folder, uri, refine, precision, seconds)
        self._measured: list[np.ndarray] = []

    def measure(self) -> None:
        """Run the loop once, with one process a core, under the same settings of malloc as the job's tasks."""
        measured = run_fresh(loop_rate, *self._arguments, processes=usable_cores(), environment=MALLOC)
        self._measured.append(measured)

    @property
    def photos_per_second(self) -> float:
        """Mean of all measurements."""
        return float(np.mean([photos for photos, _ in self._measured]))

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds of a photo, the mean of all measurements."""
        return float(np.mean([1000 * cores / photos for photos, cores in self._measured]))


def loop_rate(folder: str, uri: str, refine: Refine, precision: NumberFormat, seconds: float) -> np.ndarray:
    """Return the photos/s and the used cores of one process with one thread that handles one block after another.

    Arguments are those of :class:`LoopRates`.
    """
    torch.set_num_threads(1)
    with TemporaryDirectory() as output:
        size, calls = block_calls(folder, uri, refine, precision, output)
        rate = rate_of_calls(calls, seconds)
    return np.array([size * rate.per_second, rate.cores])


def block_calls(
    folder: str, uri: str, refine: Refine, precision: NumberFormat, output: str
) -> tuple[int, list[Callable[[], object]]]:
    """Return the number of photos of a block, and functions that each handle a block of the folder.

    Args:
        folder, uri, refine, precision: As for :class:`LoopRates`.
        output: URI of the folder for mattes and ledger parts.
    """
    settings = PredictionSettings(("alpha",), "png", refine, "files", precision)
    photos = find_photos(folder).table
    photos = photos.append_column("outputs", pa.nulls(len(photos), pa.list_(pa.string())))
    size = min(BLOCK_PHOTOS, len(photos))
    blocks = [photos.slice(start, size) for start in range(0, len(photos) - size + 1, size)]
    loaded, device = checkpoint.load(uri), torch.device("cpu")
    predictor = Predictor(Network(loaded, device, precision), refine)
    micro_batch = micro_batch_size(device, precision)
    pipeline = PhotoPipeline(output, settings, "loop", loaded.identity, predictor, micro_batch)
    return size, [partial(pipeline.handle, block, number) for number, block in enumerate(blocks)]
