"""Throughput of the network alone, with nothing else running: the upper limit of both jobs.

    forward_rate, eager_rate, train_step_rate   checkpoint -> photos/s or samples/s
    matmul_flops, count_flops                   -> FLOP/s of this machine, FLOPs of the network

The benchmark calls these functions in fresh processes.
"""

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from jobs.bench.timing import calls_per_second
from matting.data.images import Pixels
from matting.inference.network import Network
from matting.nn import checkpoint
from matting.nn.precision import NumberFormat, micro_batch_size
from matting.nn.trainer import Trainer, TrainingConfig
from matting.nn.unet import UNet

EAGER_BATCH = 32
TRAIN_BATCH = 8


def default_device() -> torch.device:
    """Return the device on which the jobs would compute on this machine."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def forward_rate(uri: str, threads: int, seconds: float, number_format: NumberFormat) -> float:
    """Return photos/s of the network as predict runs it, on uint8 images of the network's own size."""
    torch.set_num_threads(threads)
    loaded = checkpoint.load(uri)
    batch = micro_batch_size(default_device(), number_format)
    network = Network(loaded, default_device(), number_format)
    return batch * calls_per_second([lambda: network.small_alphas(random_images(batch, loaded.size))], seconds)


def eager_rate(uri: str, threads: int, seconds: float) -> float:
    """Return photos/s of the network without any preparation: eager float32 PyTorch, BatchNorms not folded, batches."""
    torch.set_num_threads(threads)
    loaded = checkpoint.load(uri)
    model = loaded.model.to(default_device())
    image_BCHW = torch.rand(EAGER_BATCH, 3, loaded.size, loaded.size, device=default_device())

    def predict_batch() -> None:
        with torch.inference_mode():
            model(image_BCHW).cpu()

    return EAGER_BATCH * calls_per_second([predict_batch], seconds)


def train_step_rate(uri: str, threads: int, seconds: float) -> float:
    """Return samples/s of training steps on one batch that is already in memory."""
    torch.set_num_threads(threads)
    loaded = checkpoint.load(uri)
    trainer = baseline_trainer(loaded.model)
    batch = {
        "key": np.array(["noise"] * TRAIN_BATCH, object),
        "image": random_images(TRAIN_BATCH, loaded.size),
        "alpha": random_images(TRAIN_BATCH, loaded.size)[..., 0],
    }
    return TRAIN_BATCH * calls_per_second([lambda: trainer.train_epoch([batch])], seconds)


def matmul_flops(threads: int, seconds: float, number_format: NumberFormat) -> float:
    """Return the FLOP/s (for int8, operations per second) of products of large square matrices."""
    torch.set_num_threads(threads)
    side = 8192 if default_device().type == "cuda" else 2048
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[number_format]
    matrix = (100 * torch.rand(side, side, device=default_device())).to(dtype)
    # The public torch.mm would keep the sums of an int8 product in 8 bits. test_benchmark.py fails if the name goes.
    multiply = torch._int_mm if number_format == "int8" else torch.mm
    return 2 * side**3 * calls_per_second([lambda: multiply(matrix, matrix)[0, 0].item()], seconds)


def count_flops(uri: str) -> tuple[float, float]:
    """Return the FLOPs of one photo's forward pass and of one sample's training step, by PyTorch's counter."""
    loaded = checkpoint.load(uri)
    image_BCHW = torch.rand(1, 3, loaded.size, loaded.size)
    counts = []
    for backward in (False, True):
        with FlopCounterMode(display=False) as counter:
            rgba = loaded.model(image_BCHW)
            if backward:
                rgba.sum().backward()
        counts.append(float(counter.get_total_flops()))
    return counts[0], counts[1]


def random_images(count: int, size: int) -> Pixels:
    """Return uint8 noise images (count, size, size, 3), always the same ones."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def baseline_trainer(model: UNet) -> Trainer:
    """Return a trainer of this network by the baseline's recipe."""
    return Trainer(model, TrainingConfig(), default_device())
