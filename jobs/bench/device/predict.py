"""Speed of predicting on one device by stage, in one process: what the actor of a GPU does, and the tasks beside it.

    drawn people -> JPEG -> decoded batch -> upload -> squash -> network -> interpolate or refine -> download

Photos of a batch have one size. Their network is untrained, so the share of photos that gets a second pass is chance;
the mattes that tasks encode are the drawn ones.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from jobs.bench.device.timing import Kernels, kernels_of, ms_per_call, peak_gigabytes
from jobs.bench.network import flops_of
from jobs.bench.workload import untrained_unet
from matting.data import images
from matting.data.images import Pixels
from matting.data.photos import find_photos
from matting.data.synthetic import draw_person
from matting.inference.batched import guided_batch, squash_batch, upsample_batch, whole_area
from matting.inference.device_predictor import (
    MAX_PIXELS_TOGETHER,
    DevicePredictor,
    PackingPredictor,
    PhotoBatch,
    download,
    upload,
)
from matting.inference.input_shapes import input_shape
from matting.inference.network import Network
from matting.inference.predictor import Refine
from matting.nn.checkpoint import Checkpoint
from matting.nn.precision import fastest_float
from matting.nn.unet import UNetConfig
from matting.results.pipeline import PhotoPipeline, PredictionSettings

DRAWN = 16  # different people in a batch
MICRO_BATCH = 64  # images of a forward pass, as in the job's actors on GPUs


@dataclass(frozen=True)
class DrawnBatch:
    """Photos of people, as files and as a task sends them to a GPU.

    Args:
        files: Contents of the files.
        alphas: Their alphas behind each other, uint8.
        batch: The decoded photos.
    """

    files: list[bytes]
    alphas: Pixels
    batch: PhotoBatch


class PredictFigures(NamedTuple):
    """Figures of predicting a batch."""

    stage_ms: dict[str, float]
    ms: float  # of the whole predictor
    kernels: Kernels  # of the whole predictor
    network_flops: float
    gigabytes: float  # at the peak


def draw_batch(width: int, height: int, count: int, size: int) -> DrawnBatch:
    """Draw a batch of photos for a network of this size, at most as many as the predictor takes in one group."""
    count = min(count, MAX_PIXELS_TOGETHER // (width * height))
    people = list(islice(cycle([draw_person(0, number, width, height) for number in range(min(DRAWN, count))]), count))
    encoded = {id(image): images.encode_jpeg(image, quality=90) for image, _ in people}
    files = [encoded[id(image)] for image, _ in people]
    batches = list[PhotoBatch]()

    def keep(batch: PhotoBatch) -> Pixels:
        batches.append(batch)
        return np.zeros(batch.sizes_N2.prod(1).sum(), np.uint8)

    packing = PackingPredictor(size, keep)
    decoded = [images.decode_photo(file, packing.min_side).image_HWC for file in files]
    packing.timed_alphas(decoded, [(width, height)] * count, lambda _: nullcontext())
    return DrawnBatch(files, np.concatenate([alpha.reshape(-1) for _, alpha in people]), batches[0])


def measure_batch(
    photos: DrawnBatch, config: UNetConfig, size: int, refine: Refine, device: torch.device, seconds: float
) -> PredictFigures:
    """Return the figures of predicting a batch on a device.

    Args:
        photos: The batch.
        config: Architecture of the network.
        size: Side of the network's square input, in pixels.
        refine: Way from small alphas to the photos' sizes.
        device: Device to predict on.
        seconds: Duration of everything.

    Raises:
        torch.OutOfMemoryError: The batch does not fit.
    """
    torch.backends.cudnn.benchmark = True  # as in the job's actors
    loaded = Checkpoint(untrained_unet(config), size, {}, {}, "")
    network = Network(loaded, device, fastest_float(device), MICRO_BATCH)
    predictor = DevicePredictor(network, refine, device)
    calls = device_stages(photos.batch, network, refine, device)
    share = seconds / (len(calls) + 2)
    with torch.inference_mode():
        stage_ms = {stage: ms_per_call(call, device, share) for stage, call in calls.items()}
    flops = len(photos.files) * flops_of(loaded.model, size)[0]
    ms = ms_per_call(lambda: predictor.alphas(photos.batch), device, share)
    kernels = kernels_of(lambda: predictor.alphas(photos.batch), device)
    return PredictFigures(stage_ms, ms, kernels, flops, peak_gigabytes(device))


def device_stages(
    batch: PhotoBatch, network: Network, refine: Refine, device: torch.device
) -> dict[str, Callable[[], object]]:
    """Return a function for each stage of a pass over whole photos, which works on the results of those before it."""
    (height, width), alpha_shape = batch.shapes_N2[0].tolist(), batch.sizes_N2[0].tolist()
    pixels = upload(batch.pixels, device).view(-1, height, width, 3)
    like = torch.zeros(len(batch.sizes_N2), device=device)
    source, target = whole_area((height, width), like), whole_area(alpha_shape, like)
    shape = input_shape(alpha_shape[1] / alpha_shape[0], network.size, network.aspects)
    squashed = squash_batch(pixels, source, *shape)
    small = network.alphas_on_device(squashed, 1)
    alpha = upsample_batch(small, target)
    enlarge = {
        "interpolate": lambda: upsample_batch(small, target),
        "refine": lambda: guided_batch(small, pixels, source, target),
    }
    last = "interpolate" if refine == "none" else "refine"
    return {
        "upload": lambda: upload(batch.pixels, device),
        "squash": lambda: squash_batch(pixels, source, *shape),
        "network": lambda: network.alphas_on_device(squashed, 1),
        last: enlarge[last],
        "download": lambda: download(alpha),
    }


def measure_task(photos: DrawnBatch, size: int, seconds: float) -> float:
    """Return the CPU milliseconds of a photo in a task beside a GPU: all but what the GPU does.

    Args:
        photos: Photos of one block.
        size: Side of the network's square input, in pixels.
        seconds: Duration of the measurement.
    """
    torch.set_num_threads(1)
    settings = PredictionSettings(("alpha",), "png", "guided", "files", "bf16")
    with TemporaryDirectory() as root:
        folder, output = Path(root, "photos"), Path(root, "output")
        folder.mkdir()
        for number, file in enumerate(photos.files):
            (folder / f"{number:04d}.jpg").write_bytes(file)
        found = find_photos(str(folder)).table
        found = found.append_column("outputs", pa.nulls(len(found), pa.list_(pa.string())))
        predictor = PackingPredictor(size, lambda batch: photos.alphas[: batch.sizes_N2.prod(1).sum()])
        pipeline = PhotoPipeline(str(output), settings, "run", "model", predictor, len(photos.files))
        pipeline.handle(found, 0)
        began, done = time.process_time(), 0
        while time.process_time() - began < seconds or not done:
            pipeline.handle(found, 0)
            done += 1
        return 1000 * (time.process_time() - began) / (done * len(photos.files))
