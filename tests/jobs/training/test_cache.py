"""The cache of decoded pairs: same pixels as without it, an early first batch, and no more than the store holds."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import ray

from jobs.common.mailbox import Mailbox
from jobs.training import streams
from jobs.training.cache import CACHE_SHARE, cache_fits, cache_rows
from jobs.training.decode import TASK_ROWS
from matting.data.rows import Example, SyntheticRows

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


@pytest.mark.parametrize("rows_class", [SyntheticRows, NeighbouringRows])
def test_cached_rows_equal_those_decoded_anew(rows_class: type[SyntheticRows]) -> None:
    rows, mailbox = rows_class(0, np.arange(1500, 1500 + 3 * TASK_ROWS - 7)), Mailbox.remote()
    numbers = np.arange(len(rows))
    cached = cache_rows(rows, SIZE, mailbox, first_order=np.concatenate([numbers[::-1], [3, 99]]))
    assert len(cached) == len(rows)
    expected, found = (
        list(streams.read_batches(streams.epoch_dataset(each, numbers, SIZE, 3, 1, mailbox).iterator(), 32))
        for each in (rows, cached)
    )
    for one, other in zip(expected, found, strict=True):
        for name in ("key", "image", "alpha"):
            np.testing.assert_array_equal(one[name], other[name])


def test_first_batch_waits_for_first_rows_only(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    count = 4 * TASK_ROWS
    numbers = np.arange(count)
    first_order = np.concatenate(streams.epoch_order(numbers, 0, 0))
    mailbox = Mailbox.remote()
    rows = GatedRows(0, numbers, gate=tmp_path / "gate", closed=int(first_order[-1]))
    cached = cache_rows(rows, SIZE, mailbox, first_order)
    batches = streams.read_batches(streams.epoch_dataset(cached, numbers, SIZE, 0, 0, mailbox).iterator(), 8)
    seen = len(next(batches)["key"])
    (tmp_path / "gate").write_bytes(b"")  # waits for the reader, if no task has come to that row yet
    assert seen + sum(len(batch["key"]) for batch in batches) == count


def test_too_large_data_are_not_cached() -> None:
    room = ray.cluster_resources()["object_store_memory"] * CACHE_SHARE
    per_row = SIZE * SIZE * 4
    fits, sentence = cache_fits(int(room / per_row), SIZE)
    assert fits
    assert "kept in the object store" in sentence
    fits, sentence = cache_fits(int(room / per_row) + 2, SIZE)
    assert not fits
    assert "anew in every epoch" in sentence
