"""Networks on all GPUs that the run may use, while the cluster grows and shrinks.

    every second: a free GPU         -> an actor of GpuNetwork, pinned to its node
                  an actor is ready  -> the coordinator gives it to tasks
                  an actor is lost   -> its GPU is free again, if its node is there
                  a node has joined  -> the round ends, and the next one uses the node's cores too

Ray's own restarts are off: the restart of an actor whose node is gone waits for a GPU for ever, and its callers too.
"""

import threading
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.common import cluster
from jobs.prediction.blocks import PredictionWork
from jobs.prediction.coordinator import BrokenDevice, PlacedNetwork, excluded_nodes
from jobs.prediction.networks import GpuNetwork, died
from matting.inference.device_errors import DeviceError

WATCH_SECONDS = 1.0


@dataclass
class _Started:
    """An actor, its node, and the answer that it owes: the names of its node and device."""

    actor: Any
    node: dict[str, Any]
    answer: Any
    is_ready: bool = False


class GpuNetworks:
    """Supervisor of the actors on GPUs: a thread of the driver, inside a ``with`` block.

    Args:
        work: The run.
        coordinator: Handle of the run's coordinator.
    """

    def __init__(self, work: PredictionWork, coordinator: Any) -> None:
        self._work, self._coordinator = work, coordinator
        self._started = dict[str, _Started]()
        self._count = 0
        self._nodes = node_ids()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "GpuNetworks":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for started in self._started.values():
            ray.kill(started.actor)

    def begin_round(self) -> None:
        """Begin a round of all nodes that there are now."""
        self._nodes = node_ids()
        ray.get(self._coordinator.begin_round.remote())

    def update(self) -> None:
        """Drop lost actors, hand out those that are ready, and start one on each free GPU."""
        for identity in ray.get(self._coordinator.lost_networks.remote()):
            self._drop(identity)
        for identity, started in list(self._started.items()):
            if ray.wait([started.answer], timeout=0)[0]:
                self._take_answer(identity, started)
        excluded = excluded_nodes(ray.get(self._coordinator.broken.remote()))
        free = cluster.free_gpus()
        for node in cluster.alive_nodes():
            if node["NodeID"] not in excluded:
                self._start(node, free.get(node["NodeID"], 0))
        if node_ids() - self._nodes:
            ray.get(self._coordinator.end_round.remote())

    def _watch(self) -> None:
        try:
            while True:
                self.update()
                if self._ended.wait(WATCH_SECONDS):
                    return
        except Exception as error:  # any type: without this thread, tasks would wait in vain
            self._coordinator.fail.remote(RuntimeError(f"GPUs are watched no longer: {type(error).__name__}: {error}"))

    def _take_answer(self, identity: str, started: _Started) -> None:
        """Read an actor's answer: hand it out and ask again, or count it as lost."""
        try:
            host, device = ray.get(started.answer)
        except RayTaskError as error:
            if not isinstance(error.cause, DeviceError):  # the actor has reported its device
                self._coordinator.fail.remote(error.cause)
            ray.get(self._coordinator.lose_network.remote(identity, None))
        except RayError as error:
            broken = BrokenDevice(started.node["NodeID"], started.node["NodeManagerHostname"], "GPU", died(error))
            ray.get(self._coordinator.lose_network.remote(identity, broken))
        else:
            network = PlacedNetwork(identity, started.node["NodeID"], host, device, started.actor)
            self._coordinator.add_network.remote(network)
            started.is_ready, started.answer = True, started.actor.place.remote()

    def _start(self, node: dict[str, Any], free: int) -> None:
        """Start an actor on each free GPU of a node; those that have not answered yet may still count as free."""
        own = [started for started in self._started.values() if started.node["NodeID"] == node["NodeID"]]
        pending = sum(not started.is_ready for started in own)
        for _ in range(min(int(node["Resources"].get("GPU", 0)) - len(own), free - pending)):
            actor_class: Any = ray.remote(GpuNetwork)
            actor = actor_class.options(
                num_gpus=1,
                num_cpus=0,
                max_concurrency=2,  # one block's photos travel while another's are computed
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            ).remote(self._work, self._coordinator)
            self._count += 1
            self._started[str(self._count)] = _Started(actor, node, actor.place.remote())

    def _drop(self, identity: str) -> None:
        if started := self._started.pop(identity, None):
            ray.kill(started.actor)


def node_ids() -> set[str]:
    """Return the identities of the nodes that are alive."""
    return {node["NodeID"] for node in cluster.alive_nodes()}
