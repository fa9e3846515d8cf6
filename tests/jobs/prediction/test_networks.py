"""The actor on a GPU, in this process: a GPU that is not there, and one whose memory does not suffice."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from jobs.prediction.blocks import PredictionWork
from jobs.prediction.coordinator import start_coordinator
from jobs.prediction.networks import GpuNetwork
from matting.data.images import Pixels
from matting.inference.device_errors import DeviceError
from matting.inference.device_predictor import DevicePredictor, PhotoBatch
from matting.nn import checkpoint
from matting.results.pipeline import PredictionSettings
from tests.support.predictions import FakeGpuWork, new_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


def make_work(tmp_path: Path, work_class: type[PredictionWork]) -> PredictionWork:
    trained = new_checkpoint(tmp_path / "trained", seed=0)
    settings = PredictionSettings(("alpha",), "png", "guided", "files", "fp32")
    return work_class(trained, checkpoint.load(trained).identity, str(tmp_path / "out"), settings, "run")


@pytest.fixture
def coordinator() -> Any:
    return start_coordinator()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpu_that_is_not_there_is_reported(tmp_path: Path, coordinator: Any) -> None:
    network = GpuNetwork(make_work(tmp_path, PredictionWork), coordinator)
    with pytest.raises(DeviceError, match="was given a GPU and cannot use it"):
        network.place()
    (broken,) = ray.get(coordinator.broken.remote())
    assert "was given a GPU and cannot use it" in broken.reason


class FullPredictor(DevicePredictor):
    """Predictor on a device without memory, which counts how often it is tried."""

    tried = 0

    def _alphas(self, *_: object) -> Pixels:
        self.tried += 1
        raise torch.OutOfMemoryError("CUDA out of memory")


class FullGpuWork(FakeGpuWork):
    """Work whose networks run on a device without memory."""

    def device_predictor(self, device: torch.device) -> DevicePredictor:
        predictor = super().device_predictor(device)
        predictor.__class__ = FullPredictor
        return predictor


def test_full_gpu_is_tried_twice_and_reported_once(tmp_path: Path, coordinator: Any) -> None:
    network = GpuNetwork(make_work(tmp_path, FullGpuWork), coordinator)
    batch = PhotoBatch(np.zeros(3 * 8 * 6, np.uint8), np.array([[8, 6]]), np.array([[8, 6]]))
    for _ in range(2):
        with pytest.raises(DeviceError, match="out of memory"):
            network.alphas(batch)
    assert network._predictor.tried == 2
    assert len(ray.get(coordinator.broken.remote())) == 1
