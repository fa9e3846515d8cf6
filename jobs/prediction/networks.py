"""Networks on GPUs: an actor on each GPU, which the tasks of all nodes call."""

import os
import platform
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from jobs.common.devices import NoGpuError
from jobs.prediction.blocks import PredictionWork
from jobs.prediction.coordinator import BrokenDevice, excluded_nodes
from matting.data.images import Pixels
from matting.inference.device_errors import DeviceError, is_device_error
from matting.inference.network import SmallAlphas
from matting.nn.checkpoint import Checkpoint


def start_gpu_networks(
    work: PredictionWork, count: int, coordinator: Any, selector: dict[str, str] | None
) -> tuple[Any, ...]:
    """Start actors of GpuNetwork, each on a GPU of its own; a dead one is restarted, and its calls are repeated.

    Args:
        work: The run.
        count: Number of actors.
        coordinator: Handle of the run's coordinator.
        selector: Labels of the nodes that may be used; None for all.
    """
    actor_class: Any = ray.remote(GpuNetwork)
    # Two calls at a time: while one task's photos travel, another task's are predicted.
    options: dict[str, Any] = {
        "num_gpus": 1,
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": -1,
        "max_concurrency": 2,
    }
    if selector:
        options["label_selector"] = selector
    return tuple(actor_class.options(**options).remote(work, coordinator) for _ in range(count))


class GpuNetwork:
    """Network for many tasks: an actor of Ray.

    After an error of its device it reports that, fails the call, and ends its process before the next call. Ray then
    restarts the actor and repeats the call.
    """

    def __init__(self, work: PredictionWork, coordinator: Any) -> None:
        self._coordinator, self._node = coordinator, ray.get_runtime_context().get_node_id()
        self._ends, self._excluded = False, False
        self._place = (platform.node(), "CPU")
        self._network: SmallAlphas | None = None
        self._failure: DeviceError | None = None
        if self._node in excluded_nodes(ray.get(coordinator.broken.remote())):
            self._excluded, self._failure = True, DeviceError(f"node {platform.node()} gets no more work")
            return
        try:
            device = work.gpu()
            if device.type == "cuda":
                self._place = (platform.node(), torch.cuda.get_device_name(device))
            self._network = work.network(device)
        except Exception as error:
            if not (isinstance(error, NoGpuError) or is_device_error(error)):
                raise
            self._failure = self._report(error)

    def place(self) -> tuple[str, str]:
        """Return the names of the actor's node and device."""
        return self._place

    def small_alphas(self, squashed_BHWC: Pixels) -> Pixels:
        """Predict alphas of squashed photos: uint8 (B, H, W, 3) -> uint8 (B, H, W).

        Raises:
            DeviceError: The device is broken.
        """
        if self._ends:
            os._exit(1)
        if self._network is None:
            assert self._failure
            self._ends = not self._excluded
            raise self._failure
        try:
            return self._network.small_alphas(squashed_BHWC)
        except Exception as error:
            if not is_device_error(error):
                raise
            if self._ends:  # the other call has reported it
                raise DeviceError.of(error) from error
            self._ends = True
            raise self._report(error) from error

    def _report(self, error: Exception) -> DeviceError:
        failure = DeviceError.of(error)
        ray.get(self._coordinator.report_broken.remote(BrokenDevice(self._node, *self._place, str(failure))))
        return failure


class RemoteNetwork:
    """Network of a GpuNetwork actor, called from another process."""

    def __init__(self, loaded: Checkpoint, actor: Any) -> None:
        self.size, self.aspects = loaded.size, loaded.aspects
        self._actor = actor

    def small_alphas(self, squashed_BHWC: Pixels) -> Pixels:
        """Predict alphas of squashed photos: uint8 (B, H, W, 3) -> uint8 (B, H, W).

        Raises:
            DeviceError: The device is broken, or the actor cannot run any more.
        """
        try:
            alphas: Pixels = ray.get(self._actor.small_alphas.remote(squashed_BHWC))
        except RayTaskError as error:
            if isinstance(error.cause, DeviceError):
                raise error.cause from error
            raise
        except RayError as error:
            raise DeviceError.of(error) from error
        return alphas
