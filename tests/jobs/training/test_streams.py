"""Streams of decoded pairs from Ray Data: their order, their division among workers, and rejected pairs."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from jobs.common.mailbox import Mailbox
from jobs.training import streams
from jobs.training.cache import CachedPairs
from matting.data.dataset import PairOptions, open_dataset
from matting.data.rows import Rows
from tests.support.drawing import write_folders

SIZE = 16


@pytest.fixture(scope="module")
def rows() -> Rows:
    """About 160 synthetic people: three chunks of a shuffle."""
    return open_dataset("synthetic", PairOptions(synthetic_pairs=200)).splits["train"]


def dataset_of(rows: Rows, numbers: np.ndarray | None = None) -> ray.data.Dataset:
    """Return the epochs of these rows, from the first."""
    numbers = np.arange(len(rows)) if numbers is None else numbers
    return streams.epoch_dataset(rows, numbers, SIZE, seed=0, epochs_done=0, mailbox=Mailbox.remote())


def keys_in(shard: ray.data.DataIterator, batch: int = 8) -> list[str]:
    """Return the keys of one pass over a shard."""
    return [key for part in streams.read_batches(shard, batch) for key in part["key"]]


def read_epochs(dataset: ray.data.Dataset, count: int, batch: int = 8) -> Iterator[list[str]]:
    """Yield the keys of each epoch, as a single worker reads them."""
    (shard,) = streams.split_dataset(dataset, 1, equal=True)
    for _ in range(count):
        yield keys_in(shard, batch)


def expected_keys(rows: Rows, epochs_done: int) -> list[str]:
    """Return the keys of an epoch of all rows, in order."""
    keys = [example.key for example in rows.examples(8)]
    mixes = streams.epoch_order(np.arange(len(rows)), 0, epochs_done, rows.random_access)
    return [keys[number] for number in np.concatenate(mixes)]


@pytest.mark.usefixtures("ray_cluster")
def test_every_epoch_has_its_own_order(rows: Rows) -> None:
    for epochs_done, keys in enumerate(read_epochs(dataset_of(rows), 3)):
        assert keys == expected_keys(rows, epochs_done)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
def test_two_workers_share_reproducible_epochs(rows: Rows) -> None:
    rows = rows.take(np.arange(131))

    def read_two_epochs() -> list[tuple[list[str], ...]]:
        mailbox = Mailbox.remote()
        datasets = {"train": dataset_of(rows), "val": streams.ordered_dataset(rows, SIZE, mailbox)}
        shards = streams.WorkerShards().configure(datasets, 2)
        with ThreadPoolExecutor(2) as workers:
            return [
                tuple(workers.map(lambda shard, name=name: keys_in(shard[name]), shards))
                for _ in range(2)
                for name in ("train", "val")
            ]

    found = read_two_epochs()
    assert read_two_epochs() == found
    for number, (one, other) in enumerate(found):
        is_training = number % 2 == 0
        assert len({*one, *other}) == len(one) + len(other) == (130 if is_training else 131)
        assert len(one) == len(other) or not is_training
        if is_training:  # each worker reads its share in the order of the epoch
            order = {key: place for place, key in enumerate(expected_keys(rows, number // 2))}
            assert all(sorted(keys, key=order.__getitem__) == keys for keys in (one, other))


@pytest.mark.usefixtures("ray_cluster")
def test_rows_repeat_as_their_numbers_do(rows: Rows) -> None:
    keys = [example.key for example in rows.examples(8)]
    (seen,) = read_epochs(dataset_of(rows, np.array([3, 5, 7, 5, 3, 5])), 1, batch=1)
    assert Counter(seen) == {keys[3]: 2, keys[5]: 3, keys[7]: 1}


@pytest.mark.usefixtures("ray_cluster")
def test_ordered_dataset_has_the_examples(rows: Rows) -> None:
    few = rows.take(np.arange(5))
    (shard,) = streams.split_dataset(streams.ordered_dataset(few, SIZE, Mailbox.remote()), 1, equal=False)
    (batch,) = streams.read_batches(shard, 8)
    for number, example in enumerate(few.examples(SIZE)):
        assert batch["key"][number] == example.key
        np.testing.assert_array_equal(batch["image"][number], example.image)
        np.testing.assert_array_equal(batch["alpha"][number], example.alpha)


def read_cached(rows: Rows, mailbox: Any) -> Iterator[list[str]]:
    """Yield the keys of two epochs, as a single worker takes them from the cache."""
    pairs = CachedPairs.decode(rows, rows, np.arange(len(rows)), 0, 0, SIZE, mailbox)
    for epochs_done in range(2):
        yield [key for batch in pairs.train_batches(epochs_done, 8, pin=False) for key in batch["key"]]


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("cached", [False, True])
def test_bad_pairs_are_left_out_and_named(tmp_path: Path, cached: bool) -> None:
    write_folders(tmp_path, 20, 24)
    (tmp_path / "images/person-003.png").write_bytes(b"")
    (tmp_path / "mattes/person-011.png").write_bytes(b"<html>not found</html>")
    rows = open_dataset(str(tmp_path), PairOptions()).splits["train"]
    mailbox = Mailbox.remote()
    dataset = streams.epoch_dataset(rows, np.arange(len(rows)), SIZE, 0, 0, mailbox)
    epochs = list(read_cached(rows, mailbox) if cached else read_epochs(dataset, 2))
    reasons = ray.get(mailbox.rejected.remote())
    assert set(reasons) <= {"images/person-003.png", "images/person-011.png"}
    assert reasons
    assert all(reasons.values())
    for keys in epochs:
        assert len(keys) == len(rows) - len(reasons)
        assert not set(keys) & set(reasons)


@pytest.mark.parametrize("random_access", [False, True])
def test_order_follows_from_seed_and_epoch(random_access: bool) -> None:
    def order(seed: int, epochs_done: int) -> list[int]:
        return np.concatenate(streams.epoch_order(np.arange(200), seed, epochs_done, random_access)).tolist()

    orders = [order(0, 0), order(0, 1), order(0, 2), order(1, 0)]
    assert all(sorted(each) == list(range(200)) for each in orders)
    assert len({tuple(each) for each in orders}) == 4
    assert order(0, 2) == orders[2]


def test_a_mix_shuffles_whole_chunks() -> None:
    mixes = streams.epoch_order(np.arange(5000), 0, 0, random_access=False)
    assert max(len(mix) for mix in mixes) == streams.MIX_ROWS
    assert sorted(np.concatenate(mixes)) == list(range(5000))
    chunks = {index // streams.CHUNK_ROWS for index in mixes[0]}
    assert len(chunks) == streams.MIX_ROWS // streams.CHUNK_ROWS
    assert any(np.diff(mixes[0]) != 1)
