"""Devices of a prediction: whether its network runs on GPUs."""

from dataclasses import replace
from typing import Literal

from jobs.common import cluster
from jobs.common.cluster import Resources
from jobs.common.devices import require_gpus

DeviceOption = Literal["auto", "cpu", "gpu"]


def start_prediction_cluster(device: DeviceOption, workers: int | None) -> Resources:
    """Join or start the cluster, and wait until a task, and a network on a GPU if there are any, can start.

    Args:
        device: Devices to predict on; "auto" takes GPUs if the cluster has any.
        workers: Number of tasks at a time; None for one on each core.

    Returns:
        The cluster; without GPUs if the network runs on CPUs.

    Raises:
        ClusterError: The cluster is too small, or a node cannot use its GPUs.
    """
    what = "Predicting tasks"
    found = cluster.start(workers or 1, 0, int(device == "gpu"), what, free_cpus=1)
    if device == "cpu" or not found.gpus:
        return replace(found, gpus=0)
    require_gpus(found.is_own)
    if not found.is_own:
        cluster.wait_until_free(1, 0, 1, what)
    return found
