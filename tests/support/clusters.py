"""Clusters of several nodes on this machine, whose nodes can be killed or have a disk of their own."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from tests.support import jobs

# A head without cores, which notices a dead node within two seconds.
HEAD = {
    "num_cpus": 0,
    "object_store_memory": 200_000_000,
    "include_dashboard": False,
    "_system_config": {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 500,
        "health_check_failure_threshold": 4,
    },
}
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",  # when Ray Train still counts on a node that has just died
}


def processes_of(node: Any) -> list[int]:
    """Return the processes of a node: its raylet and all below it."""
    raylet = node.all_processes["raylet"][0].process.pid
    return [raylet, *jobs.descendants(raylet)]


def can_mount() -> bool:
    """Return whether this user may mount a file system in a namespace of its own."""
    try:
        command = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


@contextmanager
def apart_from(folder: Path, cluster: Cluster) -> Iterator[None]:
    """Run a node of two cores, which sees an empty disk of its own in place of a folder, until the body ends."""
    start = f"{sys.executable} -m ray.scripts.scripts start --address={cluster.address} --num-cpus=2 --block"
    options = "--object-store-memory=80000000 --disable-usage-stats"
    script = f"mount -t tmpfs tmpfs '{folder}' && exec {start} {options}"
    nodes = len(alive_node_ids(cluster))
    command = ["unshare", "--mount", "sh", "-c", script]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL) as process:
        try:
            while len(alive_node_ids(cluster)) <= nodes:
                assert process.poll() is None
                time.sleep(0.1)
            yield
        finally:
            jobs.kill([process.pid, *jobs.descendants(process.pid)])
    while len(alive_node_ids(cluster)) > nodes:
        time.sleep(0.1)


def alive_node_ids(cluster: Cluster) -> list[str]:
    """Return the nodes that the head counts as alive."""
    return [node["NodeID"] for node in cluster.global_state.node_table() if node["Alive"]]
