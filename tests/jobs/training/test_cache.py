"""The cache of decoded pairs: same pixels as without it, an early first batch, and no more than the store holds."""

import itertools
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import ray

from jobs.common.mailbox import Mailbox
from jobs.training import streams
from jobs.training.cache import CACHE_SHARE, CachedPairs, CachedRows, cache_fits, cache_rows, read_ahead, share_of
from jobs.training.decode import TASK_ROWS
from matting.data.rows import Example, SyntheticRows
from matting.nn.trainer import Batch
from matting.storage.errors import StorageError

SIZE = 16

pytestmark = pytest.mark.usefixtures("ray_cluster")


@dataclass(frozen=True)
class NeighbouringRows(SyntheticRows):
    """Rows of which neighbours are read faster together, as packed ones are."""

    random_access: ClassVar[bool] = False


@dataclass(frozen=True)
class GatedRows(SyntheticRows):
    """Rows of which one waits until somebody writes to the named pipe ``gate``."""

    gate: Path
    closed: int

    def examples(self, size: int | None) -> Iterator[Example]:
        for number, example in zip(self.numbers, super().examples(size), strict=True):
            if number == self.closed:
                self.gate.read_bytes()
            yield example


@dataclass(frozen=True)
class UnreadableRows(SyntheticRows):
    """Rows whose store refuses to be read."""

    def examples(self, size: int | None) -> Iterator[Example]:  # noqa: ARG002
        raise StorageError("s3://pairs: access denied")


def joined(batches: Iterable[Batch]) -> dict[str, np.ndarray]:
    """Return the columns of all batches."""
    batches = list(batches)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in ("key", "image", "alpha")}


@pytest.mark.parametrize("rows_class", [SyntheticRows, NeighbouringRows])
def test_cached_rows_equal_those_decoded_anew(rows_class: type[SyntheticRows]) -> None:
    rows, mailbox = rows_class(0, np.arange(1500, 1500 + 3 * TASK_ROWS - 7)), Mailbox.remote()
    numbers = np.concatenate([np.arange(len(rows)), [3, 99]])
    pairs = CachedPairs.decode(rows, rows.take(np.arange(9)), numbers, 3, 1, SIZE, mailbox)
    shard = streams.epoch_dataset(rows, numbers, SIZE, 3, 1, mailbox).iterator()
    for epochs_done in (1, 2):
        expected = joined(streams.read_batches(shard, 32))
        found = joined(pairs.train_batches(epochs_done, 32, pin=False))
        for name, column in expected.items():
            np.testing.assert_array_equal(found[name], column)
    assert joined(pairs.val_batches(4, pin=False))["key"].tolist() == [
        example.key for example in rows.take(np.arange(9)).examples(8)
    ]


def test_first_batch_waits_for_first_rows_only(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    count = 4 * TASK_ROWS
    numbers = np.arange(count)
    last = np.concatenate(streams.epoch_order(numbers, 0, 0, random_access=True))[-1]
    rows = GatedRows(0, numbers, gate=tmp_path / "gate", closed=int(last))
    pairs = CachedPairs.decode(rows, SyntheticRows(0, numbers[:1]), numbers, 0, 0, SIZE, Mailbox.remote())
    batches = pairs.train_batches(0, 8, pin=False)
    seen = len(next(batches)["key"])
    (tmp_path / "gate").write_bytes(b"")  # waits for the reader, if no task has come to that row yet
    assert seen + sum(len(batch["key"]) for batch in batches) == count


def test_what_decoding_raises_reaches_the_worker() -> None:
    rows = UnreadableRows(0, np.arange(3))
    with pytest.raises(StorageError, match=r"^s3://pairs: access denied$"):
        list(cache_rows(rows, SIZE, Mailbox.remote()).batches(np.arange(3), 2, equal=True, pin=False))


def test_the_number_of_batches_does_not_depend_on_rejected_rows() -> None:
    pixels = np.arange(10, dtype=np.uint8)[:, None, None]
    errors = np.array(["bad"] * 4 + [""] * 6, object)
    block = {"key": pixels.ravel().astype(str), "image": pixels[..., None], "alpha": pixels, "error": errors}
    rows = CachedRows([ray.put(block)], np.zeros(10, int), np.arange(10))
    found = [list(rows.batches(np.arange(10), 2, equal, pin=False)) for equal in (True, False)]
    keys = [[batch["key"].tolist() for batch in batches] for batches in found]
    assert keys[1] == [["4", "5"], ["6", "7"], ["8", "9"]]
    assert keys[0] == [*keys[1], keys[1][-1], keys[1][-1]]
    assert found[0][0]["image"].ravel().tolist() == found[0][0]["alpha"].ravel().tolist() == [4, 5]


def test_later_mixes_need_only_their_share_of_the_blocks() -> None:
    numbers = np.arange(6 * streams.MIX_ROWS)
    first, later = (streams.epoch_order(numbers, 0, epochs_done, random_access=True) for epochs_done in (0, 3))
    blocks = np.argsort(np.concatenate(first)) // TASK_ROWS
    for mix in later:
        assert len(np.unique(blocks[mix])) == streams.MIX_ROWS // TASK_ROWS


@pytest.mark.parametrize(("rows", "workers", "run"), [(131, 2, 1), (131, 2, 16), (100, 3, 16), (7, 2, 1024)])
def test_workers_have_equal_shares(rows: int, workers: int, run: int) -> None:
    order = np.random.default_rng(0).permutation(rows)
    shares = [share_of(order, rank, workers, run) for rank in range(workers)]
    assert {len(share) for share in shares} == {rows // workers}
    seen = np.concatenate(shares)
    assert len(set(seen.tolist())) == len(seen)
    assert set(seen.tolist()) <= set(order.tolist())


def test_neighbours_go_to_the_same_worker() -> None:
    assert share_of(np.arange(14), 1, 2, run=3).tolist() == [3, 4, 5, 9, 10, 11, 13]


def test_batches_are_read_before_they_are_asked_for() -> None:
    read = threading.Event()

    def batches() -> Iterator[Batch]:
        yield {"key": np.array(["first"])}
        read.set()
        yield {"key": np.array(["second"])}

    ahead = read_ahead(batches())
    assert read.wait(60)
    assert [batch["key"].item() for batch in ahead] == ["first", "second"]


def test_reading_ahead_ends_with_the_reader() -> None:
    ahead = read_ahead({"key": np.array([number])} for number in itertools.count())
    assert next(ahead)["key"] == 0
    reader = [thread for thread in threading.enumerate() if thread.name == "read_ahead"][-1]
    ahead.close()  # type: ignore[attr-defined]  # a generator
    reader.join(60)
    assert not reader.is_alive()


def test_too_large_data_are_not_cached() -> None:
    room = ray.cluster_resources()["object_store_memory"] * CACHE_SHARE
    per_row = SIZE * SIZE * 4
    fits, sentence = cache_fits(int(room / per_row), SIZE)
    assert fits
    assert "kept in the object store" in sentence
    fits, sentence = cache_fits(int(room / per_row) + 2, SIZE)
    assert not fits
    assert "anew in every epoch" in sentence
