"""Handling of one block in a Ray task: in the task's process at first, and in a child process after one has died.

first try          in this process; a watchdog ends it if no photo comes further for --photo-timeout seconds
later tries        an earlier process died: jobs/prediction/isolation.py finds the photo that killed it
broken device      the block is given back; if the device is this process's, it ends before its next block
excluded node      the block is given back
ended round        the block is given back, for a round on more nodes
"""

import faulthandler
import os
import platform
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import lru_cache
from typing import Any

import pyarrow as pa
import ray

from jobs.common.machine import usable_cores
from jobs.common.visibility import require_visible
from jobs.prediction import isolation
from jobs.prediction.blocks import RESULT_SCHEMA, RETURNED, PredictionWork, block_number
from jobs.prediction.coordinator import BrokenDevice
from jobs.prediction.networks import RemoteNetworks
from jobs.prediction.turns import turn_on_a_core
from matting.inference.device_errors import DeviceError
from matting.results.outcomes import Row, record
from matting.results.pipeline import OnProgress, PhotoPipeline
from matting.storage.errors import TransientStorageError

MAX_TRIES = 10  # of a block; then its photos are booked as transient


def handle_block(
    block: pa.Table, work: PredictionWork, coordinator: Any, on_gpus: bool, photo_seconds: float
) -> pa.Table:
    """Predict a block of photos and write its outputs and its ledger part: one Ray task.

    Args:
        block: Photos, with columns of `photos.SCHEMA`, outputs and block.
        work: The task's assignment.
        coordinator: Handle of the run's coordinator.
        on_gpus: Whether networks on GPUs predict, which the coordinator hands out; else this process does.
        photo_seconds: Time after which a photo that comes no further is given up, in seconds.

    Returns:
        A row for each photo, in the columns of RESULT_SCHEMA; or a single row of the status RETURNED.
    """
    return handler_for(work, coordinator, on_gpus, photo_seconds).handle(block)


@lru_cache
def handler_for(work: PredictionWork, coordinator: Any, on_gpus: bool, photo_seconds: float) -> "BlockHandler":
    """Return the handler of a run: made once in each of Ray's processes, which run one task after another."""
    return BlockHandler(work, coordinator, on_gpus, photo_seconds)


class BlockHandler:
    """Handles blocks, one after another.

    Args:
        work: The run.
        coordinator: Handle of its coordinator.
        on_gpus: Whether networks on GPUs predict; else this process does.
        photo_seconds: Time after which a photo that comes no further is given up, in seconds.
    """

    def __init__(self, work: PredictionWork, coordinator: Any, on_gpus: bool, photo_seconds: float) -> None:
        self._work, self._coordinator = work, coordinator
        self._networks = RemoteNetworks(coordinator) if on_gpus else None
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
        if begun.is_round_over:
            return self._give_back(number, "nodes have joined")
        try:
            with self._turn():
                began = time.time()
                if self._networks:
                    self._place = self._networks.take(number)
                rows, seconds = self._handle(block, number, begun.tries)
        except DeviceError as error:
            ray.get(self._coordinator.give_back.remote(number))
            if not self._networks:  # networks on GPUs are reported already
                self._is_broken = True
                broken = BrokenDevice(self._node, *self._place, str(error))
                ray.get(self._coordinator.report_broken.remote(broken))
            return self._give_back(number, str(error))
        finally:
            if self._networks:
                self._coordinator.finish.remote(number)
        host, device = self._place
        figures = {"number": number, "node": host, "device": device, "began": began, "ended": time.time()}
        rows[0]["block"] = {**figures, **seconds}
        return pa.Table.from_pylist(rows, RESULT_SCHEMA)

    def _turn(self) -> AbstractContextManager[None]:
        # On GPUs, tasks take no turns: one that waits for a GPU would hold a core. Two tasks share a core instead.
        return nullcontext() if self._networks else turn_on_a_core(self._work.run, usable_cores())

    def _handle(self, block: pa.Table, number: int, tries: int) -> tuple[list[Row], dict[str, float]]:
        if tries == 1:
            pipeline = self._pipeline or self._load()
            with ends_if_stuck(self._photo_seconds) as on_progress:
                return pipeline.handle(block, number, on_progress)
        if tries <= MAX_TRIES:
            rows, seconds = isolation.handle(self._work, block, number, self._photo_seconds, self._compute())
        else:
            reason, seconds = f"the process that handled its block died {tries - 1} times", {}
            photos = block.to_pylist()
            rows = [isolation.row_without_outputs(self._work, photo, "transient", reason) for photo in photos]
        began = time.perf_counter()
        record(self._work.output, self._work.run, number, block, rows)
        return rows, {**seconds, "ledger": time.perf_counter() - began}

    def _load(self) -> PhotoPipeline:
        self._pipeline = self._work.pipeline(self._compute())
        return self._pipeline

    def _compute(self) -> isolation.Compute | None:
        return self._networks.alphas if self._networks else None

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
