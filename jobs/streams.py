"""The Ray Data reads: rows of a collection to decoded uint8 rows at training size, in a reproducible order.

    cache        rows, decoded once into the object store  -> rows that are or will be there
    epochs       rows, their numbers, seed                 -> Dataset whose every execution is the next epoch
    in_order     rows                                      -> Dataset of every row once
    shares       such a dataset                            -> a shard for each worker
    batches      a worker's shard of such a dataset        -> numpy batches for matting.training
    backgrounds  photos without people                     -> the same, decoded, in the object store

A dataset's rows are key, image uint8 (S, S, 3) and alpha uint8 (S, S). The order of an epoch follows from the seed and
the epoch's number alone, whether rows are cached or decoded anew. A pair that cannot be decoded is reported to
`actors.Mailbox` by key and reason, and left out. Knows no model.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset, Datasource
from ray.data.block import Block, BlockAccessor, BlockMetadata
from ray.data.datasource import ReadTask

from jobs.actors import Mailbox
from matting.backgrounds import decode as decode_backgrounds
from matting.collection import Example, Rows

TASK_ROWS = 64  # decoded in one task: enough to be worth a task, few enough to spread over the cores
PIECE = 64  # neighbouring rows that a shuffle moves as one
MIX = 16 * PIECE  # rows that a shuffle then mixes one by one
READ_CPUS = 0.9  # cores a reading task holds; a little less than the one that elastic workers leave on a node
CACHE_SHARE = 0.5  # of the object store; the rest is for rows on their way


@dataclass(frozen=True)
class CachedRows:
    """Decoded rows in the object store: row i is row ``offsets[i]`` of the block ``refs[blocks[i]]``."""

    refs: Sequence[ray.ObjectRef]
    blocks: np.ndarray
    offsets: np.ndarray
    early: bool  # the first rows of the first epoch are in the first blocks, and so decoded before the others
    scattered: ClassVar[bool] = False  # a task holds every block that it takes rows from

    def __len__(self) -> int:
        return len(self.blocks)

    def take(self, indices: np.ndarray) -> "CachedRows":
        used, blocks = np.unique(self.blocks[indices], return_inverse=True)
        return CachedRows([self.refs[block] for block in used], blocks, self.offsets[indices], early=False)

    def examples(self, size: int | None) -> Iterator[Example]:  # noqa: ARG002 - they have the size of the cache
        columns = ray.get(list(self.refs))
        for block, offset in zip(self.blocks, self.offsets, strict=True):
            yield Example(*(columns[block][name][offset] for name in ("key", "image", "alpha", "error")))


def cache(
    rows: Rows, size: int, mailbox: "ray.actor.ActorHandle[Mailbox]", first: np.ndarray | None = None
) -> CachedRows:
    """Decode the rows once, in parallel, and keep them in the object store, as uint8 at training size.

    Returns at once: whoever reads rows that are not decoded yet waits for them. Rejected rows stay as placeholders, so
    that the order of an epoch is the same with the cache and without.

    Args:
        rows: to be decoded.
        size: in pixels a side.
        mailbox: told what cannot be decoded.
        first: all row numbers, in the order in which they will be read first.
    """
    wanted = np.arange(len(rows)) if first is None else np.array(list(dict.fromkeys(first.tolist())))
    # Blocks follow that order, so that the first are all that the first batch waits for; unless neighbours cost less.
    order = wanted if rows.scattered else np.arange(len(rows))
    blocks, offsets = np.divmod(np.argsort(order), TASK_ROWS)
    refs: dict[int, ray.ObjectRef] = {}
    for block in dict.fromkeys(blocks[wanted].tolist()):
        piece = order[block * TASK_ROWS : (block + 1) * TASK_ROWS]
        refs[block] = decoded.remote(rows.take(piece), size, mailbox)
    return CachedRows([refs[block] for block in sorted(refs)], blocks, offsets, early=rows.scattered)


@ray.remote(num_cpus=READ_CPUS, max_retries=-1)
def decoded(rows: Rows, size: int, mailbox: "ray.actor.ActorHandle[Mailbox]") -> dict[str, np.ndarray]:
    """A block of the cache: columns key, image, alpha, error."""
    (block,) = columns_of(rows, size, mailbox, keep_rejected=True)
    return block


def backgrounds(rows: pa.Table, size: int, mailbox: "ray.actor.ActorHandle[Mailbox]") -> list[ray.ObjectRef]:
    """Decode photos without people in parallel, once; returns at once.

    Args:
        rows: as :func:`matting.backgrounds.choose` gives them.
        size: in pixels a side.
        mailbox: told what cannot be decoded.

    Returns:
        Of arrays (N, size, size, 3), uint8; together they hold each photo that could be decoded.
    """
    numbers = np.arange(len(rows))
    return [  # of rows copied, as a slice would travel with all of the table
        decoded_backgrounds.remote(rows.take(numbers[start : start + TASK_ROWS]), size, mailbox)
        for start in range(0, len(rows), TASK_ROWS)
    ]


@ray.remote(num_cpus=READ_CPUS, max_retries=-1)
def decoded_backgrounds(rows: pa.Table, size: int, mailbox: "ray.actor.ActorHandle[Mailbox]") -> np.ndarray:
    """Some of them."""
    pictures, reasons = decode_backgrounds(rows, size)
    if reasons:
        ray.get(mailbox.reject.remote(reasons))
    return pictures


def cache_fits(rows: int, size: int) -> tuple[bool, str]:
    """Whether so many rows fit decoded into the cluster's object store, and a sentence that says so with numbers."""
    needed = rows * size * size * 4
    room = CACHE_SHARE * ray.cluster_resources().get("object_store_memory", 0.0)
    fits = needed <= room
    verdict = (
        "kept in the object store" if fits else "decoded anew in every epoch (the object store has too little room)"
    )
    return fits, f"{rows:,} pairs, {needed / 1e6:,.0f} MB decoded of {room / 1e6:,.0f} MB allowed: {verdict}"


def epochs(
    rows: Rows,
    numbers: np.ndarray,
    size: int,
    seed: int,
    first_epoch: int,
    mailbox: "ray.actor.ActorHandle[Mailbox]",
) -> Dataset:
    """A dataset of the rows of these numbers, whose first execution is epoch ``first_epoch``, its second the next, and
    so on."""
    return dataset(PairSource(rows, size, mailbox, order=partial(epoch_order, numbers, seed, first_epoch)))


def in_order(rows: Rows, size: int, mailbox: "ray.actor.ActorHandle[Mailbox]") -> Dataset:
    """A dataset of every row once, in order."""
    return dataset(PairSource(rows, size, mailbox, order=None))


def dataset(source: "PairSource") -> Dataset:
    """The source as a dataset that keeps its order."""
    # One block suffices: the source cuts its own, and Ray would split them further to reach a number of its choosing.
    read = ray.data.read_datasource(source, num_cpus=READ_CPUS, override_num_blocks=1)
    read.context.execution_options.preserve_order = True
    read.context.enable_progress_bars = False  # the console's own shows it
    read.context.print_on_execution_start = False
    read.context.raise_original_map_exception = True  # whose message is for the user
    return read


def shares(dataset: Dataset, workers: int, equal: bool) -> Sequence[ray.data.DataIterator]:
    """A shard for each worker.

    A lone worker reads the dataset itself: giving out shares takes a process for each dataset, which the first batch
    would wait for.

    Args:
        dataset: to be shared.
        workers: that share it.
        equal: leave out the rows that some workers would have more than others.
    """
    return [dataset.iterator()] if workers == 1 else dataset.streaming_split(workers, equal=equal)


def batches(shard: ray.data.DataIterator, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Numpy batches of a worker's shard: key (B), image (B, S, S, 3), alpha (B, S, S). The last may be smaller."""
    return iter(shard.iter_batches(batch_size=batch_size, batch_format="numpy", prefetch_batches=2))


def epoch_order(numbers: np.ndarray, seed: int, first_epoch: int, execution: int) -> list[np.ndarray]:
    """The shuffled order of an epoch, as mixes of row numbers.

    Pieces of neighbouring rows are shuffled, then the rows of every ``MIX`` rows' worth of pieces among each other: as
    good as a full shuffle for collections of a few thousand, and bounded in memory for any.
    """
    generator = np.random.default_rng([seed, first_epoch + execution])
    pieces = np.split(numbers, np.arange(PIECE, len(numbers), PIECE))
    shuffled = [pieces[piece] for piece in generator.permutation(len(pieces))]
    per_mix = MIX // PIECE
    mixes = [np.concatenate(shuffled[start : start + per_mix]) for start in range(0, len(shuffled), per_mix)]
    return [generator.permutation(mix) for mix in mixes]


class PairSource(Datasource):
    """Rows as Ray Data reads them: one task decodes some of them and yields blocks of ``TASK_ROWS``.

    Args:
        rows: what to read.
        size: of the decoded pictures.
        mailbox: told what cannot be decoded.
        order: from the number of the execution to row numbers; None for every row in order.
    """

    def __init__(
        self,
        rows: Rows,
        size: int,
        mailbox: "ray.actor.ActorHandle[Mailbox]",
        order: Callable[[int], list[np.ndarray]] | None,
    ) -> None:
        super().__init__()
        self._rows, self._size, self._mailbox, self._order = rows, size, mailbox, order

    def get_name(self) -> str:
        return "Pairs"

    def estimate_inmemory_data_size(self) -> int:
        return len(self._rows) * self._row_bytes()

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002 - Ray's suggestion
        per_task_row_limit: int | None = None,
        data_context: Any = None,
    ) -> list[ReadTask]:
        """One task for every few rows. Called anew for every execution."""
        execution = data_context._execution_idx if data_context else 0
        mixes = [np.arange(len(self._rows))] if self._order is None else self._order(execution)
        # A smaller part of a mix would fetch the same row groups or blocks as its neighbours.
        task_rows = TASK_ROWS if self._order is None or self._rows.scattered else MIX
        tasks = [mix[start : start + task_rows] for mix in mixes for start in range(0, len(mix), task_rows)]
        if execution == 0 and isinstance(self._rows, CachedRows) and self._rows.early:
            # The first batch need not wait for all of its mix. Two, as Ray Data hands out a block when it has the next.
            tasks[:1] = [part for part in np.split(tasks[0], (TASK_ROWS, 2 * TASK_ROWS)) if len(part)]
        return [self._task(indices, per_task_row_limit) for indices in tasks]

    def _task(self, indices: np.ndarray, row_limit: int | None) -> ReadTask:
        metadata = BlockMetadata(
            num_rows=len(indices), size_bytes=len(indices) * self._row_bytes(), input_files=None, exec_stats=None
        )
        read = partial(read_blocks, self._rows.take(indices), self._size, self._mailbox)
        return ReadTask(read, metadata, per_task_row_limit=row_limit)

    def _row_bytes(self) -> int:
        return self._size * self._size * 4


def read_blocks(rows: Rows, size: int, mailbox: "ray.actor.ActorHandle[Mailbox]") -> Iterator[Block]:
    """Decode rows into blocks; runs in a task."""
    for columns in columns_of(rows, size, mailbox, keep_rejected=False):
        yield BlockAccessor.batch_to_block({name: columns[name] for name in ("key", "image", "alpha")})


def columns_of(
    rows: Rows, size: int, mailbox: "ray.actor.ActorHandle[Mailbox]", keep_rejected: bool
) -> Iterator[dict[str, np.ndarray]]:
    """Rows decoded, ``TASK_ROWS`` at a time, as columns key, image, alpha and error. The rejected ones are left out, or
    blank but for their error."""
    examples = rows.examples(size)
    blank_image, blank_alpha = np.zeros((size, size, 3), np.uint8), np.zeros((size, size), np.uint8)
    while some := list(islice(examples, TASK_ROWS)):
        reasons = {example.key: example.error for example in some if example.error}
        if reasons:
            ray.get(mailbox.reject.remote(reasons))
        kept = [example for example in some if keep_rejected or not example.error]
        if kept:
            yield {
                "key": np.array([example.key for example in kept], object),
                "image": np.stack([blank_image if example.error else example.image for example in kept]),
                "alpha": np.stack([blank_alpha if example.error else example.alpha for example in kept]),
                "error": np.array([example.error for example in kept], object),
            }
