"""Streams of decoded pairs from Ray Data, in a reproducible order.

    epoch_dataset     rows, their numbers, seed   -> Dataset of which every execution is the next epoch
    ordered_dataset   rows                        -> Dataset of every row once, in order
    WorkerShards      these datasets              -> one shard for each worker
    StreamedPairs     worker, batch               -> numpy batches for matting.nn.trainer
    epoch_order       row numbers, seed, epoch    -> the order of an epoch, also of cached rows (jobs/training/cache.py)

The rows of a dataset are key, image uint8 (S, S, 3) and alpha uint8 (S, S). The order of an epoch follows from the seed
and the epoch's number alone, whether rows are cached or decoded anew. Pairs that cannot be decoded are left out.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.train
from ray.data import DataIterator, Dataset, Datasource
from ray.data.block import Block, BlockAccessor, BlockMetadata
from ray.data.datasource import ReadTask

from jobs.training.decode import READ_CPUS, TASK_ROWS, MailboxHandle, decode_columns
from matting.data.rows import Rows

CHUNK_ROWS = 64  # neighbouring rows that the shuffle first moves as one
MIX_ROWS = 16 * CHUNK_ROWS  # rows that the shuffle then mixes one by one


def epoch_dataset(
    rows: Rows, numbers: np.ndarray, size: int, seed: int, epochs_done: int, mailbox: MailboxHandle
) -> Dataset:
    """Return a dataset whose first execution is the next epoch, its second the one after, and so on.

    Args:
        rows: Training rows.
        numbers: Numbers of the rows that an epoch takes; a number may occur several times.
        size: Side of the decoded images in pixels.
        seed: Random seed of the order.
        epochs_done: Number of epochs that are finished.
        mailbox: Receiver of the keys that cannot be decoded, and of the reasons.
    """
    order = partial(epoch_order, numbers, seed, random_access=rows.random_access)
    return open_source(PairSource(rows, size, mailbox, order, epochs_done))


def ordered_dataset(rows: Rows, size: int, mailbox: MailboxHandle) -> Dataset:
    """Return a dataset of every row once, in order."""
    return open_source(PairSource(rows, size, mailbox))


def open_source(source: "PairSource") -> Dataset:
    """Return the source as a dataset that keeps its order."""
    # The source makes its own blocks; with a larger number, Ray would split them further to reach it.
    dataset: Dataset = ray.data.read_datasource(source, num_cpus=READ_CPUS, override_num_blocks=1)
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False  # the job's console has its own
    dataset.context.print_on_execution_start = False
    dataset.context.raise_original_map_exception = True  # its message is for the user
    return dataset


class WorkerShards(ray.train.DataConfig):
    """Division of the datasets among workers: equal shares for training, every row once for validation."""

    def configure(
        self,
        datasets: dict[str, Dataset],
        world_size: int,
        *args: Any,  # noqa: ARG002 - handles and nodes of the workers
        **kwargs: Any,  # noqa: ARG002
    ) -> list[dict[str, DataIterator]]:
        """Return the shards of each worker, by the names of the datasets."""
        shards: list[dict[str, DataIterator]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            for shard, share in zip(shards, split_dataset(dataset, world_size, name == "train"), strict=True):
                shard[name] = share
        return shards


def split_dataset(dataset: Dataset, workers: int, equal: bool) -> Sequence[DataIterator]:
    """Return one shard for each worker.

    A single worker reads the dataset itself: splitting takes a process for each dataset, for which the first batch
    would wait.

    Args:
        dataset: Dataset to divide.
        workers: Number of workers.
        equal: Whether to leave out the rows that some workers would have more than others, so that all take as many
            steps.
    """
    return [dataset.iterator()] if workers == 1 else dataset.streaming_split(workers, equal=equal)


def read_batches(shard: DataIterator, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Return the batches of one pass over a shard: key (B), image (B, S, S, 3), alpha (B, S, S).

    The last batch may be smaller.
    """
    return iter(shard.iter_batches(batch_size=batch_size, batch_format="numpy", prefetch_batches=2))


class StreamedPairs:
    """Pairs that are decoded anew in every epoch, as the workers read them from their shards."""

    def __init__(self) -> None:
        self._train = ray.train.get_dataset_shard("train")
        self._val: DataIterator | None = None

    def train_batches(self, epochs_done: int, batch: int, pin: bool) -> Iterator[dict[str, np.ndarray]]:  # noqa: ARG002 - as CachedPairs
        """Return the batches of this worker's equal share of the next epoch."""
        return read_batches(self._train, batch)

    def val_batches(self, batch: int, pin: bool) -> Iterator[dict[str, np.ndarray]]:  # noqa: ARG002 - as CachedPairs
        """Return the batches of this worker's share of the validation rows."""
        # Opened only now: it may start a process, and the first training batch need not wait for that.
        self._val = self._val or ray.train.get_dataset_shard("val")
        return read_batches(self._val, batch)


def epoch_order(numbers: np.ndarray, seed: int, epochs_done: int, random_access: bool) -> list[np.ndarray]:
    """Return the shuffled row numbers of the epoch after ``epochs_done`` epochs, as mixes of at most ``MIX_ROWS``.

    Chunks of neighbouring rows are shuffled, then the rows of ``MIX_ROWS // CHUNK_ROWS`` chunks among each other. That
    is as good as a full shuffle for datasets of a few thousand rows, and bounded in memory for any.

    Args:
        numbers: Row numbers; a number may occur several times.
        seed: Random seed.
        epochs_done: Number of epochs that are finished.
        random_access: Whether rows from all over the dataset are read as fast as neighbours. Neighbours are then those
            of the first epoch: in this order its rows are decoded, so that later mixes find them in few cached blocks.
    """
    if random_access and epochs_done:
        numbers = order_of_passes(numbers, np.concatenate(epoch_order(numbers, seed, 0, random_access)))
    generator = np.random.default_rng([seed, epochs_done])
    chunks = np.split(numbers, np.arange(CHUNK_ROWS, len(numbers), CHUNK_ROWS))
    shuffled = [chunks[chunk] for chunk in generator.permutation(len(chunks))]
    per_mix = MIX_ROWS // CHUNK_ROWS
    mixes = [np.concatenate(shuffled[start : start + per_mix]) for start in range(0, len(shuffled), per_mix)]
    return [generator.permutation(mix) for mix in mixes]


def order_of_passes(numbers: np.ndarray, first_epoch: np.ndarray) -> np.ndarray:
    """Return the numbers pass by pass, so that each pass has a number once, in the order of their first occurrence."""
    seen, firsts = np.unique(first_epoch, return_index=True)
    by_number = np.sort(numbers)
    starts = np.searchsorted(by_number, by_number)
    passes = np.arange(len(by_number)) - starts
    return by_number[np.lexsort((firsts[np.searchsorted(seen, by_number)], passes))]


class PairSource(Datasource):
    """Source of pairs for Ray Data: each of its read tasks decodes some rows, and yields blocks of ``TASK_ROWS``.

    Args:
        rows: Rows to read.
        size: Side of the decoded images in pixels.
        mailbox: Receiver of the keys that cannot be decoded, and of the reasons.
        order: Function from the number of finished epochs to the mixes of the next one; None for every row in order.
        epochs_done: Number of epochs that are finished before the first execution.
    """

    def __init__(
        self,
        rows: Rows,
        size: int,
        mailbox: MailboxHandle,
        order: Callable[[int], list[np.ndarray]] | None = None,
        epochs_done: int = 0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Ray does not annotate it
        self._rows, self._size, self._mailbox = rows, size, mailbox
        self._order, self._epochs_done = order, epochs_done

    def get_name(self) -> str:
        """Return the name by which Ray's logs call this source."""
        return "Pairs"

    def estimate_inmemory_data_size(self) -> int:
        """Return the size of all rows in bytes, decoded."""
        return len(self._rows) * self._row_bytes()

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002 - number of tasks that Ray suggests
        per_task_row_limit: int | None = None,
        data_context: Any = None,
    ) -> list[ReadTask]:
        """Return the read tasks of one execution; Ray calls this for each."""
        # Private in Ray: the number of this execution, which nothing public gives. If Ray renames it,
        # test_every_epoch_has_its_own_order fails.
        execution = data_context._execution_idx if data_context else 0
        mixes = [np.arange(len(self._rows))] if self._order is None else self._order(self._epochs_done + execution)
        # Smaller tasks would fetch the same row groups as other tasks of their mix.
        task_rows = TASK_ROWS if self._order is None or self._rows.random_access else MIX_ROWS
        tasks = [mix[start : start + task_rows] for mix in mixes for start in range(0, len(mix), task_rows)]
        return [self._task(indices, per_task_row_limit) for indices in tasks]

    def _task(self, indices: np.ndarray, row_limit: int | None) -> ReadTask:
        metadata = BlockMetadata(
            num_rows=len(indices), size_bytes=len(indices) * self._row_bytes(), input_files=None, exec_stats=None
        )
        read = partial(read_blocks, self._rows.take(indices), self._size, self._mailbox)
        return ReadTask(read, metadata, per_task_row_limit=row_limit)

    def _row_bytes(self) -> int:
        return self._size * self._size * 4


def read_blocks(rows: Rows, size: int, mailbox: MailboxHandle) -> Iterator[Block]:
    """Decode rows into blocks of Ray Data; runs in a task."""
    for columns in decode_columns(rows, size, mailbox, keep_rejected=False):
        yield BlockAccessor.batch_to_block({name: columns[name] for name in ("key", "image", "alpha")})
