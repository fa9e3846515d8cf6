"""Study: what a block of photos costs beside a GPU in CPU time, and on it in operations, without a GPU.

    OMP_NUM_THREADS=1 python -m tests.studies.gpu_block

The CPU part is the pipeline of a task whose alphas come at no cost. The GPU part is counted on tensors without values,
for a network of recipe `matting` at 160 pixels.
"""

import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import torch
from torch.utils.flop_counter import FlopCounterMode

from jobs.bench.workload import untrained_unet
from matting.data import images
from matting.data.images import Pixels
from matting.data.photos import find_photos
from matting.data.synthetic import draw_person
from matting.inference import device_predictor
from matting.inference.device_predictor import DevicePredictor, PackingPredictor, PhotoBatch
from matting.inference.network import Network
from matting.inference.predictor import Refine
from matting.nn.checkpoint import Checkpoint
from matting.nn.unet import UNetConfig
from matting.results.pipeline import PhotoPipeline, PredictionSettings
from tests.support.host_reads import NoHostReads, without_values

PHOTOS = 256
MATTING = UNetConfig(width=32, depth=4, max_width=128, skip="add", unshuffle=2, alpha_clip=0.05)
SIDE = 160


def cpu_milliseconds(folder: Path, width: int, height: int) -> tuple[float, PhotoBatch]:
    """Return the CPU time of a task for a photo, the least of four blocks, and the last batch that it sends."""
    people = [draw_person(3, number, width, height) for number in range(8)]
    for number in range(PHOTOS):
        (folder / f"{number:04d}.jpg").write_bytes(images.encode_jpeg(people[number % 8][0]))
    alphas = np.concatenate([people[number % 8][1].reshape(-1) for number in range(PHOTOS)])
    batches = list[PhotoBatch]()

    def compute(batch: PhotoBatch) -> Pixels:
        batches.append(batch)
        return alphas[: batch.sizes_N2.prod(1).sum()]

    photos = find_photos(str(folder)).table
    photos = photos.append_column("outputs", pa.nulls(len(photos), pa.list_(pa.string())))
    settings = PredictionSettings(("alpha",), "png", "guided", "files", "bf16")
    predictor = PackingPredictor(SIDE, compute)
    pipeline = PhotoPipeline(f"{folder}-out", settings, "run", "model", predictor, PHOTOS, max_bytes=128_000_000)
    seconds = []
    for _ in range(4):
        began = time.process_time()
        pipeline.handle(photos, 0)
        seconds.append(time.process_time() - began)
    return 1000 * min(seconds) / PHOTOS, batches[-1]


def count_work(batch: PhotoBatch, refine: Refine) -> str:
    """Return the number of operations of one pass over a batch, and the GFLOP of a photo by kind."""
    network = Network(
        Checkpoint(untrained_unet(MATTING, 0), SIDE, {}, {}, "model"), number_format="bf16", micro_batch=64
    )
    network._network.to("meta")
    predictor = DevicePredictor(network, refine, torch.device("meta"))
    with (
        mock.patch.object(device_predictor, "upload", without_values),
        mock.patch.object(device_predictor, "download", lambda found: np.zeros(found.shape, np.uint8)),
        FlopCounterMode(display=False) as flops,
        NoHostReads() as watch,
    ):
        predictor.alphas(batch)
    counts = {
        kind: f"{1e-9 * count / len(batch.sizes_N2):.2f}" for kind, count in flops.get_flop_counts()["Global"].items()
    }
    return f"{watch.operations} operations for {len(batch.sizes_N2)} photos; GFLOP a photo: {counts}"


def main() -> None:
    """Print the costs of photos of two sizes."""
    torch.set_num_threads(1)
    for width, height in ((178, 218), (600, 800)):
        with tempfile.TemporaryDirectory() as root:
            folder = Path(root, "photos")
            folder.mkdir()
            milliseconds, batch = cpu_milliseconds(folder, width, height)
        sent = batch.pixels.nbytes / len(batch.sizes_N2) / 1000
        back = width * height / 1000
        print(f"{width}×{height}: {milliseconds:.2f} CPU-ms a photo, {sent:.0f} kB to the GPU, {back:.0f} kB back")
        for refine in ("none", "guided"):
            print(f"    {refine}: {count_work(batch, refine)}")


if __name__ == "__main__":
    main()
