"""The cache of decoded pairs in Ray's object store, and the batches that workers take from it.

    cache_fits    number of rows, size    -> whether they fit, and a sentence for the console
    cache_rows    Rows                    -> CachedRows: references to blocks of decoded rows
    CachedPairs   epoch, worker, batch    -> numpy batches for matting.nn.trainer

A worker maps the blocks into its memory, and copies each row once: into its batch, which a GPU reads from pinned
memory. A thread does so ahead of the step, and goes on with the next epoch while the last one is validated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from queue import Queue
from threading import Event, Thread
from typing import TypeAlias

import numpy as np
import ray
import torch
from ray.exceptions import RayTaskError

from jobs.training.decode import READ_CPUS, TASK_ROWS, MailboxHandle, decode_columns
from jobs.training.streams import MIX_ROWS, epoch_order
from matting.data.rows import Rows
from matting.nn.distributed import rank, world_size

Batch: TypeAlias = dict[str, np.ndarray]

CACHE_SHARE = 0.5  # share of the object store that the cache may take; the rest is for other objects and other jobs
HELD_BLOCKS = 2 * MIX_ROWS // TASK_ROWS  # blocks that a worker keeps mapped: those of a mix, which may share their rows
BATCHES_AHEAD = 2


@dataclass(frozen=True)
class CachedRows:
    """Decoded rows in the object store: row i is row ``offsets[i]`` of the block ``refs[blocks[i]]``."""

    refs: "Sequence[ray.ObjectRef[dict[str, np.ndarray]]]"
    blocks: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.blocks)

    def batches(self, order: np.ndarray, size: int, equal: bool, pin: bool) -> Iterator[Batch]:
        """Yield the rows in this order, without the rejected ones: key (B), image (B, S, S, 3), alpha (B, S, S).

        Args:
            order: Numbers of the rows.
            size: Number of rows in a batch, rejected ones included. The last batch may be smaller.
            equal: Whether the number of batches follows from that of the rows alone, since all workers must take as
                many steps. In place of a batch of rejected rows only, another one is then repeated.
            pin: Whether to make the batches in pinned memory.
        """
        block = lru_cache(HELD_BLOCKS)(self._block)
        last: list[Batch] = []  # the last batch, once there is one
        owed = 0
        for start in range(0, len(order), size):
            if start % MIX_ROWS < size:
                self._fetch(order[start + MIX_ROWS : start + 2 * MIX_ROWS])
            places = [(block(self.blocks[row]), self.offsets[row]) for row in order[start : start + size]]
            kept = [(columns, offset) for columns, offset in places if not columns["error"][offset]]
            owed += equal and not kept
            if kept:
                last = [gather(kept, pin)]
                yield from last
        yield from owed * last

    def _block(self, block: int) -> dict[str, np.ndarray]:
        """Wait until a block is decoded, and return its columns, which lie in the object store."""
        try:
            columns: dict[str, np.ndarray] = ray.get(self.refs[block])
        except RayTaskError as error:
            raise error.cause from None  # its message is for the user
        return columns

    def _fetch(self, rows: np.ndarray) -> None:
        """Start to fetch the blocks of these rows from other nodes."""
        refs = [self.refs[block] for block in np.unique(self.blocks[rows])]
        if refs:
            ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=True)


def gather(places: Sequence[tuple[dict[str, np.ndarray], int]], pin: bool) -> Batch:
    """Return rows of several blocks as one batch.

    Args:
        places: Columns of a block, and the number of a row in it.
        pin: Whether to make the batch in pinned memory.
    """
    batch: Batch = {"key": np.array([columns["key"][offset] for columns, offset in places], object)}
    for name in ("image", "alpha"):
        shape = (len(places), *places[0][0][name].shape[1:])
        joined = torch.empty(shape, dtype=torch.uint8, pin_memory=pin).numpy()
        for row, (columns, offset) in zip(joined, places, strict=True):
            row[...] = columns[name][offset]
        batch[name] = joined
    return batch


@dataclass(frozen=True)
class CachedPairs:
    """Cached pairs for training and validation, as the workers read them.

    Args:
        train: Training rows.
        val: Validation rows.
        numbers: Numbers of the training rows that an epoch takes; a number may occur several times.
        seed: Random seed of the order.
        random_access: Whether rows from all over the dataset were read as fast as neighbours; see `epoch_order`.
    """

    train: CachedRows
    val: CachedRows
    numbers: np.ndarray
    seed: int
    random_access: bool

    @classmethod
    def decode(
        cls,
        train: Rows,
        val: Rows,
        numbers: np.ndarray,
        seed: int,
        epochs_done: int,
        size: int,
        mailbox: MailboxHandle,
    ) -> "CachedPairs":
        """Start to decode the rows, first those that the epoch after ``epochs_done`` epochs reads first.

        The other arguments are those of :func:`cache_rows` and of this class.
        """
        first, following = (
            np.concatenate(epoch_order(numbers, seed, epoch, train.random_access)) for epoch in (0, epochs_done)
        )
        # Where neighbours are read faster together, blocks keep the order of the rows.
        order = np.array(list(dict.fromkeys(first.tolist()))) if train.random_access else None
        train_rows = cache_rows(train, size, mailbox, order, following)
        return cls(train_rows, cache_rows(val, size, mailbox), numbers, seed, train.random_access)

    def train_batches(self, epochs_done: int, batch: int, pin: bool) -> Iterator[Batch]:
        """Start to read this worker's equal share of the epoch after ``epochs_done`` epochs, and return its batches."""
        mixes = epoch_order(self.numbers, self.seed, epochs_done, self.random_access)
        # Mixes go to workers whole, so that each fetches its own blocks only. In the first epoch no worker should wait
        # until the mixes before its own are decoded.
        share = share_of(np.concatenate(mixes), rank(), world_size(), MIX_ROWS if epochs_done else 1)
        return read_ahead(self.train.batches(share, batch, equal=True, pin=pin))

    def val_batches(self, batch: int, pin: bool) -> Iterator[Batch]:
        """Start to read this worker's share of the validation rows, and return its batches."""
        share = np.array_split(np.arange(len(self.val)), world_size())[rank()]
        return read_ahead(self.val.batches(share, batch, equal=False, pin=pin))


def share_of(order: np.ndarray, rank: int, workers: int, run: int) -> np.ndarray:
    """Return the part of an order for one of the workers; all have equally many rows, and fewer than ``workers`` of
    all rows are left out.

    Args:
        order: Row numbers.
        rank: Rank of the worker.
        workers: Number of workers.
        run: Number of neighbours in the order that go to the same worker, while there are enough.
    """
    whole = len(order) // (run * workers) * run * workers
    runs = order[:whole].reshape(-1, workers, run)[:, rank].ravel()
    rest = order[whole:]
    return np.concatenate([runs, rest[: len(rest) // workers * workers][rank::workers]])


def read_ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Start to read batches in a thread, and return them; a few are ready before they are asked for."""
    ready: Queue[Batch | BaseException | None] = Queue(BATCHES_AHEAD)
    is_over = Event()
    # A daemon, since a run may end while it waits for pairs that nobody needs any more.
    Thread(target=_fill, args=(ready, batches, is_over), name="read_ahead", daemon=True).start()
    return _take(ready, is_over)


def _fill(ready: "Queue[Batch | BaseException | None]", batches: Iterator[Batch], is_over: Event) -> None:
    try:
        for batch in batches:
            ready.put(batch)
            if is_over.is_set():
                return
        ready.put(None)
    except BaseException as error:  # raised again where the batch is missing
        ready.put(error)


def _take(ready: "Queue[Batch | BaseException | None]", is_over: Event) -> Iterator[Batch]:
    try:
        while (batch := ready.get()) is not None:
            if isinstance(batch, BaseException):
                raise batch
            yield batch
    finally:
        is_over.set()
        while not ready.empty():  # the thread may wait for room
            ready.get()


def cache_rows(
    rows: Rows,
    size: int,
    mailbox: MailboxHandle,
    order: np.ndarray | None = None,
    first_read: np.ndarray | None = None,
) -> CachedRows:
    """Start to decode the rows into the object store, once and in parallel, and return without waiting.

    Whoever reads a row that is not decoded yet waits for it. Rejected rows stay as placeholders, so that the order of
    an epoch is the same with and without the cache.

    Args:
        rows: Rows to decode.
        size: Side of the decoded images in pixels.
        mailbox: Receiver of the keys that cannot be decoded, and of the reasons.
        order: Numbers of all rows, in the order in which blocks keep them; by default their own.
        first_read: Numbers of rows in the order in which they are read first, which is that of the decoding; by
            default ``order``.
    """
    order = np.arange(len(rows)) if order is None else order
    blocks, offsets = np.divmod(np.argsort(order), TASK_ROWS)
    refs: dict[int, ray.ObjectRef[dict[str, np.ndarray]]] = {}
    for block in dict.fromkeys(blocks[order if first_read is None else first_read].tolist()):
        block_rows = order[block * TASK_ROWS : (block + 1) * TASK_ROWS]
        refs[block] = decode_block_task.remote(rows.take(block_rows), size, mailbox)
    return CachedRows([refs[block] for block in sorted(refs)], blocks, offsets)


@ray.remote(num_cpus=READ_CPUS, max_retries=-1)
def decode_block_task(rows: Rows, size: int, mailbox: MailboxHandle) -> dict[str, np.ndarray]:
    """Decode one block of the cache: columns key, image, alpha, error."""
    (block,) = decode_columns(rows, size, mailbox, keep_rejected=True)
    return block


def cache_fits(rows: int, size: int) -> tuple[bool, str]:
    """Return whether so many rows fit decoded into the cluster's object store, and a sentence with the numbers."""
    needed = rows * size * size * 4
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray does not annotate it
    room = CACHE_SHARE * resources.get("object_store_memory", 0.0)
    fits = needed <= room
    verdict = (
        "kept in the object store" if fits else "decoded anew in every epoch (the object store has too little room)"
    )
    return fits, f"{rows:,} pairs, {needed / 1e6:,.0f} MB decoded of {room / 1e6:,.0f} MB allowed: {verdict}"
