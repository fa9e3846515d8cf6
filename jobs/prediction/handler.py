"""Handling of one block in a Ray task: in the task's process at first, and in a child process after one has died.

first try          in this process; a watchdog ends it if no photo comes further for --photo-timeout seconds
later tries        an earlier process died: jobs/prediction/isolation.py finds the photo that killed it
broken device      the block is given back, and the process ends before its next block
excluded node      the block is given back
"""

import faulthandler
import os
import platform
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import lru_cache
from typing import Any, NamedTuple

import pyarrow as pa
import ray
import torch

from jobs.common.machine import usable_cores
from jobs.common.visibility import require_visible
from jobs.prediction import isolation
from jobs.prediction.blocks import RESULT_SCHEMA, RETURNED, PredictionWork, block_number
from jobs.prediction.coordinator import BrokenDevice
from jobs.prediction.networks import RemoteNetwork
from jobs.prediction.turns import turn_on_a_core
from matting.inference.device_errors import DeviceError
from matting.inference.network import SmallAlphas
from matting.results.outcomes import Row, record
from matting.results.pipeline import OnProgress, PhotoPipeline
from matting.storage.errors import TransientStorageError

MAX_TRIES = 10  # of a block; then its photos are booked as transient


class RunActors(NamedTuple):
    """Handles of the actors that tasks call: the coordinator, and networks on GPUs, if there are any."""

    coordinator: Any
    networks: tuple[Any, ...]


def handle_block(block: pa.Table, work: PredictionWork, actors: RunActors, photo_seconds: float) -> pa.Table:
    """Predict a block of photos and write its outputs and its ledger part: one Ray task.

    Args:
        block: Photos, with columns of `photos.SCHEMA`, outputs and block.
        work: The task's assignment.
        actors: Actors of the run.
        photo_seconds: Time after which a photo that comes no further is given up, in seconds.

    Returns:
        A row for each photo, in the columns of RESULT_SCHEMA; or a single row of the status RETURNED.
    """
    networks = actors.networks
    network = networks[block_number(block) % len(networks)] if networks else None
    return handler_for(work, actors.coordinator, network, photo_seconds).handle(block)


@lru_cache
def handler_for(work: PredictionWork, coordinator: Any, network: Any, photo_seconds: float) -> "BlockHandler":
    """Return the handler of a run: made once in each of Ray's processes, which run one task after another."""
    return BlockHandler(work, coordinator, network, photo_seconds)


class BlockHandler:
    """Handles blocks, one after another.

    Args:
        work: The run.
        coordinator: Handle of its coordinator.
        network: Actor of GpuNetwork that predicts; None to predict in this process.
        photo_seconds: Time after which a photo that comes no further is given up, in seconds.
    """

    def __init__(self, work: PredictionWork, coordinator: Any, network: Any, photo_seconds: float) -> None:
        self._work, self._coordinator, self._network = work, coordinator, network
        self._photo_seconds = photo_seconds
        self._node = ray.get_runtime_context().get_node_id()
        self._pipeline: PhotoPipeline | None = None
        self._place = (platform.node(), "CPU")
        self._is_broken = False

    def handle(self, block: pa.Table) -> pa.Table:
        """Handle a block; see :func:`handle_block`."""
        if self._is_broken:
            os._exit(1)  # Ray repeats the task in another process
        number = block_number(block)
        require_visible(self._work.token)
        if self._work.fence:
            with suppress(TransientStorageError):  # then the block's photos become transient
                self._work.fence.check()
        begun = ray.get(self._coordinator.begin.remote(number, self._node))
        if begun.is_excluded:
            return self._give_back(number, f"node {platform.node()} gets no more work")
        try:
            with self._turn():
                began = time.time()
                rows, seconds = self._handle(block, number, begun.tries)
        except DeviceError as error:
            if not self._network:  # an actor of GpuNetwork reports its own device
                self._is_broken = True
                broken = BrokenDevice(self._node, *self._place, str(error))
                ray.get(self._coordinator.report_broken.remote(broken))
            return self._give_back(number, str(error))
        host, device = self._place
        figures = {"number": number, "node": host, "device": device, "began": began, "ended": time.time()}
        rows[0]["block"] = {**figures, **seconds}
        return pa.Table.from_pylist(rows, RESULT_SCHEMA)

    def _turn(self) -> AbstractContextManager[None]:
        return nullcontext() if self._network else turn_on_a_core(self._work.run, usable_cores())

    def _handle(self, block: pa.Table, number: int, tries: int) -> tuple[list[Row], dict[str, float]]:
        if tries == 1:
            pipeline = self._pipeline or self._load()
            with ends_if_stuck(self._photo_seconds) as on_progress:
                return pipeline.handle(block, number, on_progress)
        if tries <= MAX_TRIES:
            network = self._remote_network() if self._network else None
            rows, seconds = isolation.handle(self._work, block, number, self._photo_seconds, network)
        else:
            reason, seconds = f"the process that handled its block died {tries - 1} times", {}
            photos = block.to_pylist()
            rows = [isolation.row_without_outputs(self._work, photo, "transient", reason) for photo in photos]
        began = time.perf_counter()
        record(self._work.output, self._work.run, number, block, rows)
        return rows, {**seconds, "ledger": time.perf_counter() - began}

    def _load(self) -> PhotoPipeline:
        device = torch.device("cuda" if self._network else "cpu")
        network: SmallAlphas = self._remote_network() if self._network else self._work.network(device)
        self._pipeline = self._work.pipeline(network, device)
        return self._pipeline

    def _remote_network(self) -> RemoteNetwork:
        self._place = ray.get(self._network.place.remote())
        return RemoteNetwork(self._work.load(), self._network)

    def _give_back(self, number: int, reason: str) -> pa.Table:
        row = {"key": "", "status": RETURNED, "error": reason, "block": {"number": number}}
        return pa.Table.from_pylist([row], RESULT_SCHEMA)


@contextmanager
def ends_if_stuck(seconds: float) -> Iterator[OnProgress]:
    """End this process if it makes no progress for some seconds, inside a ``with`` block.

    The watchdog is a thread of C, so that code that holds Python's global lock cannot stop it.

    Yields:
        Function to call for every progress.
    """
    armed = 0.0

    def on_progress() -> None:
        nonlocal armed
        now = time.monotonic()
        if now - armed > seconds / 10:  # starting a thread for each photo would take time
            armed = now
            faulthandler.dump_traceback_later(seconds, exit=True, file=2)

    on_progress()
    try:
        yield on_progress
    finally:
        faulthandler.cancel_dump_traceback_later()
