"""Networks on GPUs: the actor that holds one, and the tasks' way to it.

    task: decoded photos of a block, one buffer -> object store -> GpuNetwork: squash, network, refine -> alphas -> task

Which actors there are is the business of jobs/prediction/gpus.py; which task gets which one, of the coordinator.
"""

import platform
import time
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from jobs.common.devices import NoGpuError
from jobs.prediction.blocks import PredictionWork
from jobs.prediction.coordinator import BrokenDevice, PlacedNetwork
from matting.data.images import Pixels
from matting.inference.device_errors import DeviceError, is_device_error
from matting.inference.device_predictor import DevicePredictor, PhotoBatch

WAIT_SECONDS = 300  # for a network, after which a task gives its block back
POLL_SECONDS = 0.2


class GpuNetwork:
    """Network on a GPU, for many tasks: an actor of Ray that is replaced after an error of its device."""

    def __init__(self, work: PredictionWork, coordinator: Any) -> None:
        self._coordinator, self._node = coordinator, ray.get_runtime_context().get_node_id()
        self._place = (platform.node(), "GPU")
        self._predictor: DevicePredictor | None = None
        self._failure: Exception | None = None
        try:
            device = work.gpu()
            name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
            self._place = (platform.node(), name)
            torch.backends.cudnn.benchmark = True  # micro-batches have few shapes
            self._predictor = work.device_predictor(device)
        except Exception as error:
            is_device = isinstance(error, NoGpuError) or is_device_error(error)
            self._failure = self._report(error) if is_device else error

    def place(self) -> tuple[str, str]:
        """Return the names of the actor's node and device.

        Raises:
            DeviceError: The device is broken.
            CheckpointError, UnsupportedFormatError: The network cannot be loaded.
        """
        if self._failure:
            raise self._failure
        return self._place

    def alphas(self, batch: PhotoBatch) -> Pixels:
        """Predict the alphas of a batch; see :meth:`DevicePredictor.alphas`.

        Raises:
            DeviceError: The device is broken, or has too little memory.
        """
        if self._failure:
            raise self._failure
        assert self._predictor
        try:
            return self._predictor.alphas(batch)
        except Exception as error:
            if not is_device_error(error):
                raise
            # Two calls may fail at the same time; one of them reports it.
            self._failure = self._failure or self._report(error)
            raise self._failure from error

    def _report(self, error: Exception) -> DeviceError:
        failure = DeviceError.of(error)
        ray.get(self._coordinator.report_broken.remote(BrokenDevice(self._node, *self._place, str(failure))))
        return failure


class RemoteNetworks:
    """Networks on GPUs as a task sees them: one at a time, which the coordinator chooses.

    Args:
        coordinator: Handle of the run's coordinator.
    """

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator
        self._taken: PlacedNetwork | None = None

    def take(self, block: int) -> tuple[str, str]:
        """Wait for a network for a block, and return the names of its node and device.

        Raises:
            DeviceError: There was none for some minutes.
            Exception: The networks cannot be loaded; the error says why.
        """
        deadline = time.monotonic() + WAIT_SECONDS
        while not (found := ray.get(self._coordinator.take_network.remote(block))):
            if time.monotonic() > deadline:
                raise DeviceError(f"no GPU computed the network for {WAIT_SECONDS} s")
            time.sleep(POLL_SECONDS)
        if isinstance(found, Exception):
            raise found
        self._taken = found
        return found.host, found.device

    def alphas(self, batch: PhotoBatch) -> Pixels:
        """Predict the alphas of a batch on the network that was taken; see :meth:`DevicePredictor.alphas`.

        Raises:
            DeviceError: The device is broken, or its process or node has ended.
        """
        assert self._taken
        try:
            alphas: Pixels = ray.get(self._taken.actor.alphas.remote(batch))
        except RayTaskError as error:
            if not isinstance(error.cause, DeviceError):
                raise
            self._lose(None)  # the actor has reported its device
            raise error.cause from error
        except RayError as error:
            self._lose(BrokenDevice(self._taken.node, self._taken.host, self._taken.device, died(error)))
            raise DeviceError.of(error) from error
        return alphas

    def _lose(self, broken: BrokenDevice | None) -> None:
        assert self._taken
        ray.get(self._coordinator.lose_network.remote(self._taken.identity, broken))


def died(error: Exception) -> str:
    """Return why a GPU's process or node ended, from Ray's error, in one line."""
    return f"its process ended: {type(error).__name__}: {str(error).splitlines()[0]}"
