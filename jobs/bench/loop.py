"""The predict job's own pipeline in a plain loop, without Ray: the throughput that the job could have at most."""

from functools import partial
from tempfile import TemporaryDirectory

import pyarrow as pa
import torch

from jobs.bench.timing import calls_per_second
from matting.data.photos import find_photos
from matting.inference.network import Network
from matting.inference.predictor import Predictor, Refine
from matting.nn import checkpoint
from matting.nn.precision import NumberFormat, micro_batch_size
from matting.results.pipeline import PhotoPipeline, PredictionSettings

BLOCK_PHOTOS = 256  # as many as the job gives to a task


def loop_rate(folder: str, uri: str, refine: Refine, precision: NumberFormat, seconds: float) -> float:
    """Return the photos/s of one process with one thread that handles one block after another.

    Args:
        folder: URI of a folder of photos.
        uri: URI of a checkpoint folder.
        refine: Method of enlarging alphas.
        precision: Number format of the network.
        seconds: Duration of the measurement.
    """
    torch.set_num_threads(1)
    settings = PredictionSettings(("alpha",), "png", refine, "files", precision)
    photos = find_photos(folder).table
    photos = photos.append_column("outputs", pa.nulls(len(photos), pa.list_(pa.string())))
    blocks = [photos.slice(start, BLOCK_PHOTOS) for start in range(0, len(photos), BLOCK_PHOTOS)]
    loaded, device = checkpoint.load(uri), torch.device("cpu")
    predictor = Predictor(Network(loaded, device, precision), refine)
    micro_batch = micro_batch_size(device, precision)
    with TemporaryDirectory() as output:
        pipeline = PhotoPipeline(output, settings, "loop", loaded.identity, predictor, micro_batch)
        calls = [partial(pipeline.handle, block, number) for number, block in enumerate(blocks)]
        return len(photos) / len(blocks) * calls_per_second(calls, seconds)
