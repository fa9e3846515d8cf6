"""Questions to the nodes of a joined cluster, each answered by a task that is pinned to its node."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.common import cluster
from jobs.common.cluster import ClusterError

ANSWER_SECONDS = 300  # time limit for all nodes' answers: a process that imports torch takes a few seconds to start

Answer = TypeVar("Answer")


def nodes_with(*kinds: str) -> list[dict[str, Any]]:
    """Return Ray's descriptions of the nodes that have resources of one of these kinds: "CPU" or "GPU"."""
    return [node for node in cluster.alive_nodes() if any(node["Resources"].get(kind, 0) > 0 for kind in kinds)]


def ask_nodes(
    question: Callable[..., Answer], arguments: tuple[Any, ...], nodes: Iterable[dict[str, Any]], ends: bool = False
) -> dict[str, Answer]:
    """Call a function on nodes of the joined cluster, on all of them at the same time.

    The tasks hold no resources, so that they run on a busy node too.

    Args:
        question: Function to call.
        arguments: Arguments of the function.
        nodes: Ray's descriptions of the nodes.
        ends: Whether each process ends after its answer, so that it holds no memory of a GPU.

    Returns:
        Answers by name of the node; without nodes that have gone meanwhile.

    Raises:
        ClusterError: A node does not answer, and has not gone either.
    """
    task = ray.remote(num_cpus=0, max_calls=int(ends))(question)
    asked = [
        (node, task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)))
        for node in nodes
    ]
    answers = [(node, pinned.remote(*arguments)) for node, pinned in asked]
    found: dict[str, Answer] = {}
    for node, answer in answers:
        identity, name = node["NodeID"], f"node {node['NodeManagerAddress']}"
        try:
            found[name if name not in found else f"{name} ({identity[:8]})"] = ray.get(answer, timeout=ANSWER_SECONDS)
        except (GetTimeoutError, RayError) as error:
            if any(other["NodeID"] == identity for other in cluster.alive_nodes()):
                raise ClusterError(
                    f"{name} does not run a task of this job within {ANSWER_SECONDS} s. Find the reason in its Ray "
                    f"logs, or remove it. {error}"
                ) from error
    return found
