"""Isolation of photos that kill the process that handles them.

    block -> halves, each handled in a child process
             a half whose child dies, takes too long or needs too much memory -> its halves, and so on
             a single photo whose child dies                                  -> failed, with the reason

One child handles piece after piece until it dies. A photo among 256 costs eight children, and the others are done.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import psutil  # type: ignore[import-untyped]  # psutil has no types
import pyarrow as pa

from jobs.common.machine import usable_cores
from jobs.prediction.blocks import PredictionWork
from jobs.prediction.precision import UnsupportedFormatError
from matting.data.images import Pixels
from matting.inference.device_errors import DeviceError
from matting.inference.device_predictor import PhotoBatch
from matting.nn.checkpoint import CheckpointError
from matting.results.cutouts import BadBackground
from matting.results.outcomes import Row, Status, new_row, without_outputs
from matting.results.output_names import BadKey
from matting.results.outputs import table_path
from matting.results.pipeline import output_path
from matting.storage import store
from matting.storage.errors import StorageError
from matting.storage.uri import join_uri

START_SECONDS = 300  # time limit for a child to import torch and load the checkpoint
POLL_SECONDS = 0.1
MIN_MEMORY = 2_000_000_000  # bytes that a child may need at least; torch alone takes a third of a gigabyte

Compute = Callable[[PhotoBatch], Pixels]

# A forked child would share locks and CUDA's state with its parent, which has threads.
_SPAWN = multiprocessing.get_context("spawn")


class ChildDiedError(Exception):
    """Death of a child, by itself or because it exceeded a limit. The message is a reason for the ledger."""


def handle(
    work: PredictionWork,
    block: pa.Table,
    number: int,
    photo_seconds: float,
    compute: Compute | None,
    max_memory: int | None = None,
) -> tuple[list[Row], dict[str, float]]:
    """Predict a block in child processes and write its outputs, but no ledger part.

    Args:
        work: The run.
        block: Photos, with columns of `photos.SCHEMA`.
        number: Number of the block.
        photo_seconds: Time after which a photo that comes no further is given up, in seconds.
        compute: Function that computes batches on a GPU, which children call through this process; None for their own
            network.
        max_memory: Memory that a child may need, in bytes; by default this node's, divided by its cores.

    Returns:
        As :meth:`PhotoPipeline.make_outputs`.

    Raises:
        DeviceError, StorageError, CheckpointError, UnsupportedFormatError, BadBackground: As without isolation.
    """
    rows, seconds = list[Row](), Counter[str]()
    discard(work, block, f"{number:06d}")  # what an earlier try may have left
    pieces = deque(halves(block))
    child: Child | None = None
    try:
        while pieces:
            piece = pieces.popleft()
            part = f"{number:06d}-{block['key'].index(piece['key'][0]).as_py():03d}-{len(piece)}"
            try:
                child = child or Child(work, photo_seconds, compute, max_memory or default_memory())
            except ChildDiedError as error:  # before it saw a photo
                reason = f"a process of its own died at its start: {error}"
                left = [photo for rest in [piece, *pieces] for photo in rest.to_pylist()]
                return rows + [row_without_outputs(work, photo, "transient", reason) for photo in left], dict(seconds)
            try:
                piece_rows, piece_seconds = child.handle(piece, part)
            except ChildDiedError as error:
                child = None
                discard(work, piece, part)
                if len(piece) > 1:
                    pieces.extendleft(reversed(halves(piece)))
                else:
                    rows.append(row_without_outputs(work, piece.to_pylist()[0], "failed", str(error)))
            else:
                rows += piece_rows
                seconds.update(piece_seconds)
    finally:
        if child:
            child.close()
    return rows, dict(seconds)


def halves(photos: pa.Table) -> list[pa.Table]:
    """Cut photos into two halves; a single photo stays whole."""
    middle = len(photos) // 2
    return [half for half in (photos.slice(0, middle), photos.slice(middle)) if len(half)]


def discard(work: PredictionWork, photos: pa.Table, part: str) -> None:
    """Remove the outputs that a dead process may have left of these photos, unless a later one overwrites them."""
    if work.settings.sink == "table":
        store.delete(join_uri(work.output, table_path(work.run, part)))
    elif len(photos) == 1:
        for kind in work.settings.write:
            try:
                path = output_path(work.output, work.settings, kind, photos["key"][0].as_py())
            except BadKey:
                continue
            store.delete(join_uri(work.output, path))


def row_without_outputs(work: PredictionWork, photo: Row, status: Status, reason: str) -> Row:
    """Return the ledger row of a photo that could not be handled, and why."""
    row = new_row(photo, work.model, str(work.settings), work.run)
    return {**without_outputs(row, status, reason), "finished_at": datetime.now(UTC)}


def default_memory() -> int:
    """Return the memory that one process may need, in bytes: its share of this machine's, or of its container's."""
    total: int = psutil.virtual_memory().total
    try:
        with open("/sys/fs/cgroup/memory.max") as file:  # noqa: PTH123 - a file of the kernel
            total = min(total, int(file.read()))
    except (OSError, ValueError):  # no such controller, or "max"
        pass
    return max(MIN_MEMORY, total // usable_cores())


class Child:
    """A process that handles pieces of a block, as its parent sees it.

    Args:
        work: The run.
        photo_seconds: Time without progress after which the child is killed.
        compute: Function that the child calls through this process; None for the child's own network.
        max_memory: Resident memory above which the child is killed, in bytes.

    Raises:
        ChildDiedError: The child died before it was ready.
    """

    def __init__(self, work: PredictionWork, photo_seconds: float, compute: Compute | None, max_memory: int) -> None:
        self._photo_seconds, self._compute, self._max_memory = photo_seconds, compute, max_memory
        self._connection, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=serve, args=(theirs, work, compute is not None), daemon=True)
        self._process.start()
        theirs.close()
        self._result(START_SECONDS)

    def handle(self, piece: pa.Table, part: str) -> tuple[list[Row], dict[str, float]]:
        """Predict a piece; see :meth:`PhotoPipeline.make_outputs`.

        Raises:
            ChildDiedError: The child died, or was killed because it exceeded a limit.
        """
        self._connection.send((piece, part))
        found: tuple[list[Row], dict[str, float]] = self._result(self._photo_seconds)
        return found

    def close(self) -> None:
        """End the child."""
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _result(self, seconds: float) -> Any:
        """Return the child's next result. `seconds` is the time without progress after which it is killed."""
        while True:
            kind, content = self._message(seconds)
            if kind == "batch":
                assert self._compute
                self._connection.send(self._compute(content))
            elif kind == "error":
                self.close()
                raise content
            elif kind == "result":
                return content

    def _message(self, seconds: float) -> tuple[str, Any]:
        began = time.monotonic()
        while not self._connection.poll(POLL_SECONDS):
            if time.monotonic() - began > seconds:
                self.close()
                raise ChildDiedError(f"took more than {seconds:g} s")
            if self._memory() > self._max_memory:
                self.close()
                raise ChildDiedError(f"needed more than {self._max_memory / 1e6:,.0f} MB of memory")
        try:
            message: tuple[str, Any] = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._death() from error
        return message

    def _memory(self) -> int:
        try:
            used: int = psutil.Process(self._process.pid).memory_info().rss
        except psutil.Error:
            return 0
        return used

    def _death(self) -> ChildDiedError:
        self._connection.close()
        self._process.join()
        code = self._process.exitcode or 0
        if code < 0:
            return ChildDiedError(f"killed its process: {signal.Signals(-code).name}")
        return ChildDiedError(f"ended its process with exit code {code}")


# In the child ---------------------------------------------------------------------------------------------------------


def serve(connection: Connection, work: PredictionWork, is_remote: bool) -> None:
    """Handle pieces until the parent closes the connection: the main function of a child.

    Args:
        connection: Connection to the parent.
        work: The run.
        is_remote: Whether batches are computed through the parent.
    """
    threading.Thread(target=end_with, args=[os.getppid()], daemon=True).start()
    try:
        pipeline = work.pipeline(partial(ask_parent, connection) if is_remote else None)
        connection.send(("result", None))
        while True:
            piece, part = connection.recv()
            result = pipeline.make_outputs(piece, part, lambda: connection.send(("progress", None)))
            connection.send(("result", result))
    except (EOFError, BrokenPipeError):  # the parent is done, or dead
        return
    except (DeviceError, StorageError, CheckpointError, UnsupportedFormatError, BadBackground) as error:
        connection.send(("error", error))
    except Exception as error:  # of any type, which might not survive pickling
        connection.send(("error", RuntimeError(f"{type(error).__name__}: {error}")))


def end_with(parent: int) -> None:
    """End this process when its parent has ended."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def ask_parent(connection: Connection, batch: PhotoBatch) -> Pixels:
    """Compute the alphas of a batch on a device that the parent can reach."""
    connection.send(("batch", batch))
    alphas: Pixels = connection.recv()
    return alphas
