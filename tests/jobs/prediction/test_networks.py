"""Networks on GPUs: a GPU that is not there, one without enough memory, and a cluster that grows and shrinks."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from jobs.prediction.blocks import PredictionWork
from jobs.prediction.coordinator import start_coordinator
from jobs.prediction.gpus import GpuNetworks
from jobs.prediction.networks import GpuNetwork, RemoteNetworks
from matting.data import images
from matting.data.images import Pixels
from matting.inference.device_errors import DeviceError
from matting.inference.device_predictor import DevicePredictor, PhotoBatch
from matting.nn import checkpoint
from matting.results.pipeline import PredictionSettings
from tests.support import jobs
from tests.support.clusters import ENVIRONMENT, HEAD, processes_of
from tests.support.predictions import FakeGpuWork, draw_photo, new_checkpoint

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


# Networks of a cluster that grows and shrinks -------------------------------------------------------------------------


def wait_for_networks(coordinator: Any, supervisor: GpuNetworks, count: int, without: str = "") -> set[str]:
    """Update the supervisor until the coordinator offers so many networks, and return their identities."""
    while True:
        supervisor.update()
        networks = {ray.get(coordinator.take_network.remote(block)) for block in range(2 * count)} - {None}
        identities = {network.identity for network in networks}
        if len(identities) == count and without not in identities:
            return identities
        time.sleep(0.1)


def follow_gpus(folder: Path) -> None:
    """Start a cluster in this process, let it grow and shrink, and check which networks its tasks get."""
    work = make_work(folder, FakeGpuWork)
    photo = images.decode_image(draw_photo(0))
    batch = PhotoBatch(photo.reshape(-1), np.array([photo.shape[:2]]), np.array([photo.shape[:2]]))
    cluster = Cluster(initialize_head=True, head_node_args=HEAD)
    ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
    coordinator = start_coordinator()
    supervisor, task = GpuNetworks(work, coordinator), RemoteNetworks(coordinator)

    assert ray.get(coordinator.take_network.remote(0)) is None
    cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=80_000_000)
    (first,) = wait_for_networks(coordinator, supervisor, 1)
    assert ray.get(coordinator.is_round_over.remote()), "a node has joined"
    supervisor.begin_round()
    task.take(7)
    alpha = task.alphas(batch)
    assert alpha.shape == (photo.shape[0] * photo.shape[1],)

    ray.kill(ray.get(coordinator.take_network.remote(0)).actor)
    with pytest.raises(DeviceError, match="ActorDied"):
        task.alphas(batch)
    wait_for_networks(coordinator, supervisor, 1, without=first)
    task.take(7)
    np.testing.assert_array_equal(task.alphas(batch), alpha)
    assert len(ray.get(coordinator.broken.remote())) == 1
    assert not ray.get(coordinator.is_round_over.remote())

    second = cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=80_000_000)
    wait_for_networks(coordinator, supervisor, 2)
    jobs.kill(processes_of(second))
    wait_for_networks(coordinator, supervisor, 1)
    task.take(7)
    np.testing.assert_array_equal(task.alphas(batch), alpha)
    ray.shutdown()
    cluster.shutdown()


FOLLOW_GPUS = """
import sys
from pathlib import Path
from tests.jobs.prediction.test_networks import follow_gpus

follow_gpus(Path(sys.argv[1]))
"""


def test_networks_follow_the_gpus_of_the_cluster(tmp_path: Path) -> None:
    # This process is connected to another cluster.
    command = [sys.executable, "-c", FOLLOW_GPUS, str(tmp_path)]
    subprocess.run(command, env={**os.environ, **ENVIRONMENT}, check=True)
