"""The cache of decoded pairs in Ray's object store, which spares every epoch but the first the decoding.

cache_fits   number of rows, size   -> whether they fit, and a sentence for the console
cache_rows   Rows                   -> CachedRows, which answer like the rows that they were decoded from
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import ray

from jobs.training.decode import READ_CPUS, TASK_ROWS, MailboxHandle, decode_columns
from matting.data.rows import Example, Rows

CACHE_SHARE = 0.5  # share of the object store that the cache may take; the rest is for rows on their way to workers


@dataclass(frozen=True)
class CachedRows:
    """Decoded rows in the object store: row i is row ``offsets[i]`` of the block ``refs[blocks[i]]``."""

    refs: "Sequence[ray.ObjectRef[dict[str, np.ndarray]]]"
    blocks: np.ndarray
    offsets: np.ndarray
    starts_early: bool  # whether the first rows of the first epoch are in the blocks that are decoded first
    random_access: ClassVar[bool] = False  # a task holds every block that it takes rows from

    def __len__(self) -> int:
        return len(self.blocks)

    def take(self, indices: np.ndarray) -> "CachedRows":
        """Return the rows with these numbers, without references to blocks that they do not need."""
        used, blocks = np.unique(self.blocks[indices], return_inverse=True)
        return CachedRows([self.refs[block] for block in used], blocks, self.offsets[indices], starts_early=False)

    def examples(self, size: int | None) -> Iterator[Example]:  # noqa: ARG002 - they have the size of the cache
        """Wait until the blocks are decoded, and yield the rows in order."""
        columns = ray.get(list(self.refs))
        for block, offset in zip(self.blocks, self.offsets, strict=True):
            yield Example(*(columns[block][name][offset] for name in ("key", "image", "alpha", "error")))


def cache_rows(rows: Rows, size: int, mailbox: MailboxHandle, first_order: np.ndarray | None = None) -> CachedRows:
    """Start to decode the rows into the object store, once and in parallel, and return without waiting.

    Whoever reads a row that is not decoded yet waits for it. Rejected rows stay as placeholders, so that the order of
    an epoch is the same with and without the cache.

    Args:
        rows: Rows to decode.
        size: Side of the decoded images in pixels.
        mailbox: Receiver of the keys that cannot be decoded, and of the reasons.
        first_order: Numbers of all rows in the order in which the first epoch reads them; some may occur several times.
    """
    wanted = np.arange(len(rows)) if first_order is None else np.array(list(dict.fromkeys(first_order.tolist())))
    # Blocks follow that order, so that the first batch waits for the first blocks only; but where neighbours are read
    # faster together, blocks follow the order of the rows.
    order = wanted if rows.random_access else np.arange(len(rows))
    blocks, offsets = np.divmod(np.argsort(order), TASK_ROWS)
    refs: dict[int, ray.ObjectRef[dict[str, np.ndarray]]] = {}
    for block in dict.fromkeys(blocks[wanted].tolist()):
        block_rows = order[block * TASK_ROWS : (block + 1) * TASK_ROWS]
        refs[block] = decode_block_task.remote(rows.take(block_rows), size, mailbox)
    return CachedRows([refs[block] for block in sorted(refs)], blocks, offsets, starts_early=rows.random_access)


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
