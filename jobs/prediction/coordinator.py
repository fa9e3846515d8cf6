"""State of a prediction that outlives its processes: tries of each block, broken devices, and networks on GPUs.

One actor on the driver's node, which every task calls for its block. Ray repeats a task whose process dies, for
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
        is_round_over: Whether the block belongs to the next round, on more nodes.
    """

    tries: int
    is_excluded: bool
    is_round_over: bool


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


class PlacedNetwork(NamedTuple):
    """A network on a GPU.

    Attributes:
        identity: Name of the network, unique in its run.
        node: Ray's identity of the node.
        host: Name of the node.
        device: Name of the device.
        actor: Handle of its GpuNetwork.
    """

    identity: str
    node: str
    host: str
    device: str
    actor: Any


def excluded_nodes(broken: Sequence[BrokenDevice]) -> list[str]:
    """Return the identities of nodes that get no more work, sorted."""
    counts = Counter(device.node for device in broken)
    return sorted(node for node, count in counts.items() if count >= MAX_BROKEN)


class Coordinator:
    """State of one run: an actor of Ray."""

    def __init__(self) -> None:
        self._tries = Counter[int]()
        self._broken: list[BrokenDevice] = []
        self._networks = dict[str, PlacedNetwork]()
        self._lost = set[str]()
        self._assigned = dict[int, str]()  # blocks at networks
        self._failure: Exception | None = None
        self._is_round_over = False

    def begin(self, block: int, node: str) -> Begun:
        """Count that a task on a node begins a block."""
        is_excluded = node in excluded_nodes(self._broken)
        if not is_excluded and not self._is_round_over:
            self._tries[block] += 1
        return Begun(self._tries[block], is_excluded, self._is_round_over)

    def give_back(self, block: int) -> None:
        """Count the last try of a block as none, since its task gave it back; those that killed a process stay."""
        self._tries[block] = max(0, self._tries[block] - 1)

    def report_broken(self, broken: BrokenDevice) -> None:
        """Count a broken device."""
        self._broken.append(broken)

    def broken(self) -> list[BrokenDevice]:
        """Return all reports of broken devices, in order."""
        return self._broken

    def add_network(self, network: PlacedNetwork) -> None:
        """Offer a network to tasks, unless it is lost."""
        if network.identity not in self._lost:
            self._networks[network.identity] = network

    def take_network(self, block: int) -> PlacedNetwork | Exception | None:
        """Assign the network that has the fewest blocks to a block.

        Returns:
            The network; None if there is none yet; an error if there will be none.
        """
        self._assigned.pop(block, None)  # an earlier process of this block has died
        if self._failure or not self._networks:
            return self._failure
        loads = Counter(self._assigned.values())
        self._assigned[block] = min(self._networks, key=lambda identity: loads[identity])
        return self._networks[self._assigned[block]]

    def finish(self, block: int) -> None:
        """Forget which network a block is at."""
        self._assigned.pop(block, None)

    def lose_network(self, identity: str, broken: BrokenDevice | None) -> None:
        """Offer a network no longer, and count the end of its process once; None if it is counted already."""
        if identity not in self._lost and broken:
            self._broken.append(broken)
        self._lost.add(identity)
        self._networks.pop(identity, None)

    def lost_networks(self) -> list[str]:
        """Return the identities of all networks that were lost."""
        return sorted(self._lost)

    def fail(self, error: Exception) -> None:
        """Answer tasks that ask for a network with an error."""
        self._failure = self._failure or error

    def begin_round(self) -> None:
        """Let tasks begin blocks."""
        self._is_round_over = False

    def end_round(self) -> None:
        """Let tasks give back blocks that they have not begun."""
        self._is_round_over = True

    def is_round_over(self) -> bool:
        """Return whether tasks give back their blocks."""
        return self._is_round_over


def start_coordinator() -> Any:
    """Start a coordinator on this process's node, and return its handle."""
    actor_class: Any = ray.remote(Coordinator)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": cluster.here()}
    return actor_class.options(**options).remote()
