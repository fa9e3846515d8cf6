"""Options for `ray.cluster_utils.Cluster`: clusters of several nodes on this machine, whose nodes can be killed."""

from typing import Any

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
