"""Counts of a prediction that outlive its processes: how often each block has begun, and which devices are broken.

One actor on the driver's node, which every task calls once for its block. Ray repeats a task whose process dies, for
ever and without a word; the count tells the new process that an earlier one has died.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import ray

from jobs.common import cluster

MAX_BROKEN = 2  # broken devices or processes of a node, after which it gets no more work in this run


class Begun(NamedTuple):
    """Answer to a task that begins a block.

    Attributes:
        tries: How often the block has begun, with this time.
        is_excluded: Whether the task's node gets no more work.
    """

    tries: int
    is_excluded: bool


class BrokenDevice(NamedTuple):
    """Report of a device that fails.

    Attributes:
        node: Ray's identity of the node.
        host: Name of the node.
        device: Name of the device.
        reason: Message of the device's error.
    """

    node: str
    host: str
    device: str
    reason: str

    def __str__(self) -> str:
        return f"{self.device} of node {self.host}: {self.reason}"


def excluded_nodes(broken: Sequence[BrokenDevice]) -> list[str]:
    """Return the identities of nodes that get no more work, sorted."""
    counts = Counter(device.node for device in broken)
    return sorted(node for node, count in counts.items() if count >= MAX_BROKEN)


class Coordinator:
    """Counts of one run: an actor of Ray."""

    def __init__(self) -> None:
        self._tries = Counter[int]()
        self._broken: list[BrokenDevice] = []

    def begin(self, block: int, node: str) -> Begun:
        """Count that a task on a node begins a block."""
        if node in excluded_nodes(self._broken):
            return Begun(self._tries[block], True)
        self._tries[block] += 1
        return Begun(self._tries[block], False)

    def forget(self, block: int) -> None:
        """Forget the tries of a block that a task gave back."""
        self._tries.pop(block, None)

    def report_broken(self, broken: BrokenDevice) -> None:
        """Count a broken device."""
        self._broken.append(broken)

    def broken(self) -> list[BrokenDevice]:
        """Return all reports of broken devices, in order."""
        return self._broken


def start_coordinator() -> Any:
    """Start a coordinator on this process's node, and return its handle."""
    actor_class: Any = ray.remote(Coordinator)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": cluster.here()}
    return actor_class.options(**options).remote()
