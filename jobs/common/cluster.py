"""The Ray cluster that a job runs on: the one of RAY_ADDRESS, or one of this machine alone.

join     connect to the cluster of RAY_ADDRESS, if there is one
require  check that it is large enough; if it has an autoscaler, wait until it has grown
start    join or start a cluster, require what the job needs, and return its cores and GPUs
"""

import logging
import math
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import services
from ray._private.state import available_resources_per_node
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.common.machine import usable_cores

FREE_SECONDS = 3.0  # time until what has ended no longer counts as held
JOIN_SECONDS = 25  # time limit for joining a cluster, which takes a second or two
CONNECT_SECONDS = 10  # time limit for a connection to its port
GROWTH_MINUTES = 15  # time limit for a cluster to grow: a GPU node needs five minutes, its packages included

# Ray inspects its own processes and log files up to ten times a second, each time at the cost of a network thread that
# others wait for. Nobody reads the results on a cluster of one machine.
QUIET_RAY = {
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    "LOG_NAME_UPDATE_INTERVAL_S": "60",
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",  # number of files from which that interval applies
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing about a laptop's runs leaves it
}

# Thresholds of glibc's malloc, in bytes, for all workers. By default a photo's arrays go back to the system when they
# are freed, and a moment later the next photo's arrays are faulted in page by page. Joined clusters get the same values
# from runtime_env.yaml.
MALLOC = {
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),  # freed memory that a process keeps
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # size above which a block goes back at once
}

NODE_GROUP = "ray.io/node-group"  # Ray's label of nodes that an autoscaler starts and ends

_seconds = 0.0  # spent in join and start by this process
_has_started = False


class ClusterError(Exception):
    """A cluster that cannot run the job. The message says what it has, what the job needs, and what to do."""


@dataclass(frozen=True)
class Resources:
    """Size of the cluster that a job runs on.

    Args:
        is_own: Whether it was started by this process, on this machine alone; others may grow.
        cores: Number of CPU cores.
        gpus: Number of GPUs.
        seconds: Time that it took to join or start it, in seconds.
    """

    is_own: bool
    cores: int
    gpus: int
    seconds: float


def is_own() -> bool:
    """Return whether :func:`start` would start a cluster on this machine, since there is none to join."""
    return "RAY_ADDRESS" not in os.environ and not ray.is_initialized()


def has_started() -> bool:
    """Return whether :func:`start` has succeeded in this process: from then on, the job works."""
    return _has_started


def join() -> None:
    """Connect to the cluster of RAY_ADDRESS, if that is set and this process is not connected yet.

    Raises:
        ClusterError: RAY_ADDRESS is not the address of a cluster.
    """
    global _seconds
    began = time.monotonic()
    if "RAY_ADDRESS" in os.environ and not ray.is_initialized():
        watchdog = threading.Timer(JOIN_SECONDS, give_up_joining)
        watchdog.daemon = True
        watchdog.start()
        try:
            check_port(os.environ["RAY_ADDRESS"])
            ray.init(logging_level=logging.ERROR, log_to_driver=False)
        except (OSError, ValueError, RuntimeError, RayError) as error:
            raise ClusterError(cannot_join(str(error).strip().splitlines()[0])) from error
        finally:
            watchdog.cancel()
    _seconds += time.monotonic() - began


def check_port(address: str) -> None:
    """Check that something listens at a cluster's address: without it, Ray would try for minutes, with many warnings.

    Args:
        address: Host and port, perhaps with a scheme; or "auto", for a cluster that runs on this machine.

    Raises:
        OSError: Nothing does, or there is no cluster.
        ValueError: Ray does not know this form of an address.
    """
    if address == "auto":
        address = services.canonicalize_bootstrap_address(address) or ""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit() and "://" not in host:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
        except OSError as error:
            raise ConnectionError(f"Nothing answers at {host}:{port} ({error}).") from error


def give_up_joining() -> None:
    """End this process, which hangs in :func:`join`: Ray's code there cannot be interrupted."""
    reason = f"There was no answer of a Ray cluster within {JOIN_SECONDS} s."
    print(f"error: {cannot_join(reason)}", file=sys.stderr, flush=True)
    os._exit(2)


def cannot_join(reason: str) -> str:
    """Return the message of a failure to join, with its reason."""
    return (
        f"Cannot join the cluster of RAY_ADDRESS={os.environ['RAY_ADDRESS']}: {reason} Start the cluster, or correct "
        "the address. With the address of a dashboard, use `ray job submit`; or unset it, to work on this machine."
    )


def start(
    cpus: float, reading: float, gpus: float, what: str, spare: int = 1, free_cpus: float | None = None
) -> Resources:
    """Join the cluster of RAY_ADDRESS, or start one on this machine; check that the job fits, and wait until it can.

    Args:
        cpus: Number of cores that the job holds while it runs.
        reading: Number of further cores for one reading task, without which the job would wait forever.
        gpus: Number of GPUs that the job holds, each together with one of the cores.
        what: Name of the workers or tasks, for the error message.
        spare: Number of logical cores that a cluster of this machine has beyond the real ones, for reading while
            workers hold all of those.
        free_cpus: Number of cores that must be free for the job to start; ``cpus`` by default.

    Raises:
        ClusterError: The job does not fit.
    """
    global _seconds, _has_started
    own, cores = is_own(), usable_cores()
    join()
    began = time.monotonic()
    if own and cpus <= cores:
        start_own(cores + spare)
    require(cpus, reading, gpus, what)
    if not own:
        wait_until_free(cpus if free_cpus is None else free_cpus, reading, gpus, what)
    found = resources()
    _seconds += time.monotonic() - began
    _has_started = True
    return Resources(own, cores if own else int(found["CPU"]), int(found.get("GPU", 0)), _seconds)


def start_own(cores: int) -> None:
    """Start a cluster of this machine alone, with so many logical cores."""
    for name, value in {**QUIET_RAY, **MALLOC}.items():
        os.environ.setdefault(name, value)
    ray.init(
        address="local",  # not the cluster that somebody else started on this machine
        num_cpus=cores,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )


def require(cpus: float, reading: float, gpus: float, what: str) -> None:
    """Check that a job fits into the cluster, or into this machine if there is none. Arguments are those of start.

    If the cluster has an autoscaler, it is asked to grow, and this function waits for it.

    Raises:
        ClusterError: The job does not fit.
    """
    found = resources() if ray.is_initialized() else {"CPU": float(usable_cores())}
    if cpus + reading <= found.get("CPU", 0) and gpus <= found.get("GPU", 0):
        return
    shortage = (
        f"{what} need {cpus:g} CPUs, {reading:g} for reading and {gpus:g} GPUs; the cluster has "
        f"{found.get('CPU', 0):g} CPUs and {found.get('GPU', 0):g} GPUs."
    )
    if not (ray.is_initialized() and any(NODE_GROUP in node["Labels"] for node in alive_nodes())):
        raise ClusterError(f"{shortage} Ask for fewer, or add nodes.")
    print(f"{shortage} Waiting for it to grow, at most {GROWTH_MINUTES} minutes.", flush=True)
    grow(cpus, reading, gpus, shortage)


def grow(cpus: float, reading: float, gpus: float, shortage: str) -> None:
    """Wait until the autoscaler has added the nodes that the job needs.

    Raises:
        ClusterError: The nodes did not come in time; the message begins with ``shortage``.
    """
    group = reserve(cpus, reading, gpus)
    try:
        if not group.wait(60 * GROWTH_MINUTES):
            raise ClusterError(
                f"{shortage} In {GROWTH_MINUTES} minutes it did not grow to that. `ray status` on its head says what "
                "it waits for, and monitor.log among Ray's logs there why a node did not start."
            )
    finally:
        remove_placement_group(group)


def wait_until_free(cpus: float, reading: float, gpus: float, what: str) -> None:
    """Wait until the cluster has so much free for a job that fits into it; print once what is missing.

    Arguments are those of :func:`start`.
    """
    deadline = time.monotonic() + FREE_SECONDS
    while True:
        free = free_resources()
        if cpus + reading <= free.get("CPU", 0) and gpus <= free.get("GPU", 0):
            return
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    found = resources()
    print(
        f"{what} wait for {cpus:g} CPUs, {reading:g} for reading and {gpus:g} GPUs: other jobs hold the cluster. Free "
        f"are {free.get('CPU', 0):g} of {found.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} of "
        f"{found.get('GPU', 0):g} GPUs.",
        flush=True,
    )
    group = reserve(cpus, reading, gpus)
    try:
        while not group.wait(60):
            pass
    finally:
        remove_placement_group(group)


def reserve(cpus: float, reading: float, gpus: float) -> PlacementGroup:
    """Ask for room for a job. While it is pending, it is demand to the autoscaler; it ends with this process."""
    bundles = [{"CPU": 1.0, "GPU": 1.0}] * int(gpus) + [{"CPU": 1.0}] * max(0, math.ceil(cpus - gpus))
    if reading:
        bundles.append({"CPU": reading})
    group: PlacementGroup = placement_group(bundles)  # Ray does not annotate it
    return group


def free_resources() -> dict[str, float]:
    """Return the resources of the cluster that no task and no actor holds, such as {"CPU": 2.0, "GPU": 1.0}."""
    found: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]  # Ray does not annotate it
    return found


def free_gpus() -> dict[str, int]:
    """Return the number of GPUs that no task and no actor holds, by Ray's identity of the node."""
    free = available_resources_per_node()  # type: ignore[no-untyped-call]  # Ray does not annotate it
    return {node: int(found.get("GPU", 0)) for node, found in free.items()}


def resources() -> dict[str, float]:
    """Return the total resources of the cluster, such as {"CPU": 8.0, "GPU": 1.0}, whether they are free or not."""
    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray does not annotate it
    return found


def alive_nodes() -> list[dict[str, Any]]:
    """Return Ray's descriptions of the cluster's nodes, without those that have ended."""
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]  # Ray does not annotate it


def here() -> NodeAffinitySchedulingStrategy:
    """Return the strategy that places an actor on this process's node, so that no other node's death ends it."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
