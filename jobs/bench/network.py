"""Throughput of the network alone, with nothing else running: the upper limit of both jobs.

    forward_rate, eager_rate, train_step_rate   checkpoint -> photos/s or samples/s
    matmul_flops, count_flops                   -> FLOP/s of this machine, FLOPs of the network

The benchmark calls these functions in fresh processes.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
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
    multiply = matmul(default_device(), number_format, matmul_side(default_device()))
    return 2 * matmul_side(default_device()) ** 3 * calls_per_second([lambda: multiply()[0, 0].item()], seconds)


def matmul_side(device: torch.device) -> int:
    """Return the side of square matrices whose product keeps the device busy."""
    return 8192 if device.type == "cuda" else 2048


def matmul(device: torch.device, number_format: NumberFormat, side: int) -> Callable[[], Tensor]:
    """Return a function that multiplies two square matrices of this side on the device."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[number_format]
    matrix = (100 * torch.rand(side, side, device=device)).to(dtype)
    # The public torch.mm would keep the sums of an int8 product in 8 bits. test_benchmark.py fails if the name goes.
    multiply = torch._int_mm if number_format == "int8" else torch.mm
    return lambda: multiply(matrix, matrix)


def count_flops(uri: str) -> tuple[float, float]:
    """Return the FLOPs of one photo's forward pass and of one sample's training step, by PyTorch's counter."""
    loaded = checkpoint.load(uri)
    return flops_of(loaded.model, loaded.size)


def flops_of(model: UNet, size: int) -> tuple[float, float]:
    """Return the FLOPs of one image of size × size: of the forward pass, and of a training step."""
    image_BCHW = torch.rand(1, 3, size, size)
    counts = []
    for backward in (False, True):
        with FlopCounterMode(display=False) as counter:
            rgba = model(image_BCHW)
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
