"""Predictions on sick machines and of poisonous photos: assignments whose networks break, or whose decoder dies.

Ray's workers import these classes, so they cannot live in a test module.
"""

import os
import signal
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import ray
import torch

from jobs.prediction.blocks import PredictionWork
from matting.data import images
from matting.data.images import Pixels
from matting.inference.device_predictor import DevicePredictor, PhotoBatch
from matting.inference.network import SmallAlphas
from tests.support.predictions import FakeGpuWork

HEALTHY_CALLS = 39
CUDA_ERROR = "CUDA error: an illegal memory access was encountered"

_decode = images.decode_photo


class BreakingNetwork:
    """Network that fails after some calls, like one on a broken device.

    Args:
        network: Healthy network.
        error: Error that every later call raises.
        healthy_calls: Number of calls that succeed.
    """

    def __init__(self, network: SmallAlphas, error: Exception, healthy_calls: int) -> None:
        self.size, self.aspects = network.size, network.aspects
        self._network, self._error, self._left = network, error, healthy_calls

    def small_alphas(self, squashed_BHWC: Pixels) -> Pixels:
        """Predict alphas, or raise the error."""
        self._left -= 1
        if self._left < 0:
            raise self._error
        return self._network.small_alphas(squashed_BHWC)


class BreakingPredictor(DevicePredictor):
    """Predictor of batches that fails after two calls, like one on a broken device."""

    healthy_calls = 2

    def alphas(self, batch: PhotoBatch) -> Pixels:
        """Predict alphas, or raise a CUDA error."""
        self.healthy_calls -= 1
        if self.healthy_calls < 0:
            raise RuntimeError(CUDA_ERROR)
        return super().alphas(batch)


class SickDeviceWork(PredictionWork):
    """Prediction whose device breaks in every process."""

    def network(self, device: torch.device) -> SmallAlphas:
        """Return a network that raises a CUDA error from its 40th call on."""
        return BreakingNetwork(super().network(device), RuntimeError(CUDA_ERROR), HEALTHY_CALLS)


class SickNodeWork(FakeGpuWork):
    """Prediction whose device breaks on one node: the first that loads the network."""

    def network(self, device: torch.device) -> SmallAlphas:
        """Return a network that raises a CUDA error from its third call on, if this node is the sick one."""
        healthy = super().network(device)
        return BreakingNetwork(healthy, RuntimeError(CUDA_ERROR), 2) if self._is_sick() else healthy

    def device_predictor(self, device: torch.device) -> DevicePredictor:
        """Return a predictor that raises a CUDA error from its third call on, if this node is the sick one."""
        predictor = super().device_predictor(device)
        if self._is_sick():
            predictor.__class__ = BreakingPredictor
        return predictor

    def _is_sick(self) -> bool:
        node, sick = ray.get_runtime_context().get_node_id(), Path(f"{self.output}.sick")
        with suppress(FileExistsError), sick.open("x") as file:
            file.write(node)
        while not (text := sick.read_text()):
            time.sleep(0.01)
        return text == node


class UnforeseenErrorWork(PredictionWork):
    """Prediction whose network always raises an error that is neither the device's nor the photo's."""

    def network(self, device: torch.device) -> SmallAlphas:
        """Return a network that raises a ValueError."""
        return BreakingNetwork(super().network(device), ValueError("unforeseen"), 0)


class PoisonWork(PredictionWork):
    """Prediction in which a file that ends with the name of a signal kills the process that decodes it.

    A file that ends with "HANG" or "MEMORY" never comes to an end. Each try but of the latter adds a byte to the file
    <output>.deaths.
    """

    def network(self, device: torch.device) -> SmallAlphas:
        """Return the network, after a change of this process's decoder."""
        images.decode_photo = partial(decode_poison, deaths=f"{self.output}.deaths")
        return super().network(device)


def decode_poison(data: bytes, min_side: int, max_pixels: int, *, deaths: str) -> images.DecodedPhoto:
    """Decode a photo, or do what the end of its file says."""
    end = data.rpartition(b"\0")[2]
    if end == b"MEMORY":
        large = b"x" * 1_500_000_000
        time.sleep(len(large))
    if end in (b"SIGSEGV", b"SIGKILL", b"HANG"):
        with open(deaths, "ab") as file:  # noqa: PTH123 - append
            file.write(b"x")
        if end == b"HANG":
            time.sleep(1000)
        os.kill(os.getpid(), signal.Signals[end.decode()])
    return _decode(data, min_side, max_pixels)
