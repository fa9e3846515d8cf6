"""The Ray Data reads: what order rows come in, and what happens to those that cannot be decoded."""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import ray

from jobs import streams
from jobs.actors import Mailbox
from matting.collection import Example, PairOptions, Rows, SyntheticRows, open_pairs
from tests.drawing import write_folders

SIZE = 16

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def drawn() -> Rows:
    """Some 160 people: three pieces of a shuffle."""
    return open_pairs("synthetic", PairOptions(synthetic_pairs=200)).splits["train"]


@dataclass(frozen=True)
class NeighbouringRows(SyntheticRows):
    """Rows of which neighbours are best read together, as packed ones are."""

    scattered: ClassVar[bool] = False


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


def passes(dataset: ray.data.Dataset, count: int, batch: int = 8) -> Iterator[list[str]]:
    """The keys of so many passes, as a lone worker would see them."""
    (shard,) = streams.shares(dataset, 1, equal=True)
    for _ in range(count):
        yield keys_of(shard, batch)


def keys_of(shard: ray.data.DataIterator, batch: int) -> list[str]:
    """The keys of one pass."""
    return [key for part in streams.batches(shard, batch) for key in part["key"]]


def test_every_epoch_has_every_row_once_in_an_order_of_its_own(drawn: Rows) -> None:
    numbers = np.arange(len(drawn))
    dataset = streams.epochs(drawn, numbers, SIZE, seed=0, first_epoch=0, mailbox=Mailbox.remote())
    keys = [example.key for example in drawn.examples(8)]
    for execution, seen in enumerate(passes(dataset, 3)):
        assert seen == [keys[place] for place in np.concatenate(streams.epoch_order(numbers, 0, 0, execution))]


def test_two_workers_share_every_epoch(drawn: Rows) -> None:
    rows = drawn.take(np.arange(131))
    dataset = streams.epochs(rows, np.arange(131), SIZE, seed=0, first_epoch=0, mailbox=Mailbox.remote())
    for equal, shared in ((True, 130), (False, 131)):
        shards = streams.shares(dataset, 2, equal)
        with ThreadPoolExecutor(2) as workers:
            for _ in range(2):
                one, other = workers.map(keys_of, shards, (8, 8))
                assert len({*one, *other}) == len(one) + len(other) == shared
                assert len(one) == len(other) or not equal


def test_rows_come_as_often_as_their_numbers(drawn: Rows) -> None:
    numbers = np.array([3, 5, 7, 5, 3, 5])
    dataset = streams.epochs(drawn, numbers, SIZE, seed=0, first_epoch=0, mailbox=Mailbox.remote())
    keys = [example.key for example in drawn.examples(8)]
    (seen,) = passes(dataset, 1, batch=1)
    assert Counter(seen) == {keys[3]: 2, keys[5]: 3, keys[7]: 1}


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    def order(seed: int, first_epoch: int, execution: int) -> list[int]:
        return np.concatenate(streams.epoch_order(np.arange(200), seed, first_epoch, execution)).tolist()

    orders = [order(0, 0, 0), order(0, 0, 1), order(0, 0, 2), order(1, 0, 0)]
    assert all(sorted(each) == list(range(200)) for each in orders)
    assert len({tuple(each) for each in orders}) == 4
    assert order(0, 2, 0) == order(0, 1, 1) == order(0, 0, 2)  # as after a restart


@pytest.mark.parametrize("kind", [SyntheticRows, NeighbouringRows])
def test_cached_rows_come_as_decoded_anew(kind: type[SyntheticRows]) -> None:
    rows, mailbox = kind(0, np.arange(1500, 1500 + 3 * streams.TASK_ROWS - 7)), Mailbox.remote()
    cached = streams.cache(rows, SIZE, mailbox, first=np.concatenate([np.arange(len(rows))[::-1], [3, 99]]))
    assert len(cached) == len(rows)
    expected, found = (
        list(streams.batches(streams.epochs(each, np.arange(len(rows)), SIZE, 3, 1, mailbox).iterator(), 32))
        for each in (rows, cached)
    )
    for one, other in zip(expected, found, strict=True):
        for name in ("key", "image", "alpha"):
            np.testing.assert_array_equal(one[name], other[name])


def test_the_first_batch_does_not_wait_for_the_last_rows_to_be_decoded(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    count = 4 * streams.TASK_ROWS
    numbers = np.arange(count)
    first = np.concatenate(streams.epoch_order(numbers, 0, 0, 0))
    mailbox = Mailbox.remote()
    rows = GatedRows(0, numbers, gate=tmp_path / "gate", closed=int(first[-1]))
    cached = streams.cache(rows, SIZE, mailbox, first)
    batches = streams.batches(streams.epochs(cached, numbers, SIZE, 0, 0, mailbox).iterator(), 8)
    seen = len(next(batches)["key"])
    (tmp_path / "gate").write_bytes(b"")  # waits for the reader, if no row has come there yet
    assert seen + sum(len(batch["key"]) for batch in batches) == count


def test_rows_hold_what_the_collection_holds(drawn: Rows) -> None:
    some = drawn.take(np.arange(5))
    (shard,) = streams.shares(streams.in_order(some, SIZE, Mailbox.remote()), 1, equal=False)
    (batch,) = streams.batches(shard, 8)
    for number, example in enumerate(some.examples(SIZE)):
        assert batch["key"][number] == example.key
        np.testing.assert_array_equal(batch["image"][number], example.image)
        np.testing.assert_array_equal(batch["alpha"][number], example.alpha)


@pytest.mark.parametrize("kept", [False, True])
def test_bad_pairs_are_left_out_and_named(tmp_path: Path, kept: bool) -> None:
    write_folders(tmp_path, 20, 24)
    (tmp_path / "images/person-003.png").write_bytes(b"")
    (tmp_path / "mattes/person-011.png").write_bytes(b"<html>not found</html>")
    rows = open_pairs(str(tmp_path), PairOptions()).splits["train"]
    mailbox = Mailbox.remote()
    if kept:
        rows = streams.cache(rows, SIZE, mailbox)
    orders = list(passes(streams.epochs(rows, np.arange(len(rows)), SIZE, 0, 0, mailbox), 2))
    reasons = ray.get(mailbox.rejected.remote())
    assert set(reasons) <= {"images/person-003.png", "images/person-011.png"}
    assert reasons
    assert all(reasons.values())
    for order in orders:
        assert len(order) == len(rows) - len(reasons)
        assert not set(order) & set(reasons)


def test_a_mix_is_a_shuffle_of_whole_pieces() -> None:
    order = streams.epoch_order(np.arange(5000), 0, 0, 0)
    assert max(len(mix) for mix in order) == streams.MIX
    assert sorted(np.concatenate(order)) == list(range(5000))
    pieces = {index // streams.PIECE for index in order[0]}
    assert len(pieces) == streams.MIX // streams.PIECE
    assert any(np.diff(order[0]) != 1)
    assert [mix.tolist() for mix in streams.epoch_order(np.arange(5000), 0, 1, 0)] == [
        mix.tolist() for mix in streams.epoch_order(np.arange(5000), 0, 0, 1)
    ]


def test_what_does_not_fit_the_object_store_is_not_cached() -> None:
    room = ray.cluster_resources()["object_store_memory"] * streams.CACHE_SHARE
    per_row = SIZE * SIZE * 4
    fits, sentence = streams.cache_fits(int(room / per_row), SIZE)
    assert fits
    assert "kept in the object store" in sentence
    fits, sentence = streams.cache_fits(int(room / per_row) + 2, SIZE)
    assert not fits
    assert "anew in every epoch" in sentence
