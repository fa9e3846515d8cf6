"""Clusters of several nodes on this machine, whose nodes can be killed: what `ray.cluster_utils.Cluster` is told."""

from typing import Any

from tests import jobs

# A head without cores, which notices soon that a node has died.
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
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",  # when it counts on a node that has just died
}


def processes_of(node: Any) -> list[int]:
    """The raylet of a node, and all that runs below it."""
    raylet = node.all_processes["raylet"][0].process.pid
    return [raylet, *jobs.descendants(raylet)]
