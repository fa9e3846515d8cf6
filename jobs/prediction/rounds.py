"""Rounds of a prediction: Ray tasks over all blocks, then over those that were given back, on the nodes that are left.

blocks -> tasks -> rows of `RESULT_SCHEMA`, block by block; blocks of broken devices -> the next round
"""

import math
from collections.abc import Generator, Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ExecutionResources

from jobs.common import cluster
from jobs.common.cluster import Resources
from jobs.prediction.blocks import RETURNED, PredictionWork
from jobs.prediction.coordinator import BrokenDevice, excluded_nodes, start_coordinator
from jobs.prediction.gpus import GpuNetworks
from jobs.prediction.handler import handle_block
from matting.messages import first_few

CPUS_BESIDE_GPU = 0.5  # CPUs of a task that waits for a GPU half of the time
WAITING_TASKS = 1 / 8  # of each core, to begin where another one ends; each takes 200 MB
LONG_RUN_BLOCKS = 8  # a core; in a shorter run, a further process takes longer to start than it saves
CORES_OF_A_GPU = 40  # that a GPU can keep busy with decoding and encoding, as estimated in matting/README.md


class NoDeviceLeftError(Exception):
    """No node is left whose devices work. The message names the broken ones and their errors."""


def tasks_at_a_time(found: Resources, workers: int | None) -> int:
    """Return the number of tasks that compute at a time: one for each core, or more where tasks wait for GPUs."""
    return workers or max(1, int(found.cores / CPUS_BESIDE_GPU) if found.gpus else found.cores)


def cpus_of_a_task(found: Resources, workers: int | None, blocks: int) -> float:
    """Return the number of CPUs that Ray reserves for a task.

    In a long run on CPUs it is less than one, so that nodes have some tasks that wait for a turn on their cores.

    Args:
        found: The cluster.
        workers: Number of tasks at a time; None for one on each core.
        blocks: Number of blocks to handle.
    """
    if found.gpus:
        return CPUS_BESIDE_GPU
    if workers or blocks < LONG_RUN_BLOCKS * found.cores:
        return 1
    # The largest node decides, else a small one would give large ones too many waiting tasks.
    cores = max(1, *(int(node["Resources"].get("CPU", 0)) for node in cluster.alive_nodes()))
    waiting = math.ceil(cores * WAITING_TASKS)
    return math.floor(10_000 * cores / (cores + waiting)) / 10_000  # Ray counts CPUs in parts of 10,000


def handle_in_rounds(
    work: PredictionWork, blocks: list[pa.Table], found: Resources, workers: int | None, photo_seconds: float
) -> Generator[list[dict[str, Any]], None, None]:
    """Handle all blocks, and yield the rows of each.

    Args:
        work: The tasks' assignment.
        blocks: Blocks in the order of their numbers, from 0.
        found: The cluster.
        workers: Number of tasks at a time; None for one on each core.
        photo_seconds: Time after which a photo that comes no further is given up, in seconds.

    Raises:
        NoDeviceLeftError: All devices are broken.
        RayError, StorageError, CheckpointError, UnsupportedFormatError: A block could not be handled.
    """
    coordinator = start_coordinator()
    left, broken = list(range(len(blocks))), list[BrokenDevice]()
    try:
        with GpuNetworks(work, coordinator) if found.gpus else nullcontext() as networks:
            while left:
                if networks:
                    networks.begin_round()
                returned = dict[int, str]()
                for rows in handle_round(
                    work, [blocks[number] for number in left], found, workers, photo_seconds, coordinator, broken
                ):
                    if rows[0]["status"] != RETURNED:
                        yield rows
                        continue
                    number = rows[0]["block"]["number"]
                    returned[number] = rows[0]["error"]
                    require_a_device(ray.get(coordinator.broken.remote()), found)
                before, broken = broken, ray.get(coordinator.broken.remote())
                for device in broken[len(before) :]:
                    print(f"Broken: {device}. Its photos are handled elsewhere.", flush=True)
                left = sorted(returned)
                if left and len(broken) == len(before) and not ray.get(coordinator.is_round_over.remote()):
                    raise NoDeviceLeftError(
                        f"{len(left):,} blocks came back, though no device is broken: {returned[left[0]]}."
                    )
    finally:
        ray.kill(coordinator)


def handle_round(
    work: PredictionWork,
    blocks: list[pa.Table],
    found: Resources,
    workers: int | None,
    photo_seconds: float,
    coordinator: Any,
    broken: list[BrokenDevice],
) -> Generator[list[dict[str, Any]], None, None]:
    """Handle blocks on all nodes but the excluded ones, and yield the rows of each, or its single returned row.

    Args:
        work, blocks, found, workers, photo_seconds: As for :func:`handle_in_rounds`.
        coordinator: Handle of the run's coordinator.
        broken: Devices that broke in earlier rounds.
    """
    selector = not_on(excluded_nodes(broken))
    cpus = cpus_of_a_task(found, workers, len(blocks))
    at_a_time = workers or (max(1, round(found.cores / cpus)) if found.is_own else None)
    dataset: ray.data.Dataset = ray.data.from_arrow(blocks)
    context = dataset.context
    context.enable_progress_bars = context.print_on_execution_start = False
    context.raise_original_map_exception = True
    if found.gpus and not found.is_own:
        # Without it, Ray Data asks an autoscaler for more CPUs, and GPU nodes come for the sake of their cores.
        context.execution_options.resource_limits = ExecutionResources.for_limits(cpu=cores_for_gpus(broken, found))
    options: dict[str, Any] = {"label_selector": selector} if selector else {}
    dataset = dataset.map_batches(
        partial(handle_block, work=work, coordinator=coordinator, on_gpus=found.gpus > 0, photo_seconds=photo_seconds),
        batch_size=None,
        batch_format="pyarrow",
        # Nodes may join another's cluster later; without a limit, tasks run on them too.
        compute=ray.data.TaskPoolStrategy(size=at_a_time),
        num_cpus=cpus,
        **options,
    )
    batches: Iterable[Any] = dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    for batch in batches:
        yield batch.to_pylist()


def not_on(nodes: list[str]) -> dict[str, str] | None:
    """Return the label selector of all nodes but these; None for all nodes."""
    return {"ray.io/node-id": f"!in({','.join(nodes)})"} if nodes else None


def usable_nodes(broken: list[BrokenDevice], found: Resources) -> list[dict[str, Any]]:
    """Return Ray's descriptions of the nodes that may run the network."""
    kind, excluded = "GPU" if found.gpus else "CPU", excluded_nodes(broken)
    nodes = [node for node in cluster.alive_nodes() if node["NodeID"] not in excluded]
    return [node for node in nodes if node["Resources"].get(kind, 0) > 0]


def cores_for_gpus(broken: list[BrokenDevice], found: Resources) -> float:
    """Return the number of cores that tasks may hold: no more than the cluster has, nor than its GPUs keep busy."""
    gpus: float = sum(node["Resources"]["GPU"] for node in usable_nodes(broken, found))
    return max(1.0, min(cluster.resources().get("CPU", 0), CORES_OF_A_GPU * gpus))


def require_a_device(broken: list[BrokenDevice], found: Resources) -> None:
    """Check that a node is left.

    Raises:
        NoDeviceLeftError: There is none.
    """
    if not usable_nodes(broken, found):
        reports = first_few(list(dict.fromkeys(map(str, broken))))
        raise NoDeviceLeftError(f"No node is left whose devices work. {reports}. Repair or replace them.")
