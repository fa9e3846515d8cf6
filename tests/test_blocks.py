"""How what is due is cut into blocks, and the memory of the processes that deal with them."""

import platform
import subprocess
import sys

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.blocks import BLOCK_BYTES, BLOCK_PHOTOS, LEAST_PHOTOS, blocks


@given(st.lists(st.integers(0, 2 * BLOCK_BYTES) | st.integers(0, 10_000), min_size=1, max_size=3000), st.integers(1, 5))
def test_every_photo_is_in_one_block_and_blocks_are_bounded(sizes: list[int], tasks: int) -> None:
    due = pa.table({"key": [str(number) for number in range(len(sizes))], "size": pa.array(sizes, pa.int64())})
    found = list(blocks(due, tasks))
    assert pa.concat_tables(found).drop_columns("block") == due
    for number, block in enumerate(found):
        assert set(block["block"].to_pylist()) == {number}
        assert len(block) <= BLOCK_PHOTOS
        assert len(block) == 1 or sum(block["size"].to_pylist()) <= BLOCK_BYTES


def test_the_last_blocks_are_small_so_that_all_tasks_end_together() -> None:
    due = pa.table({"size": pa.array([1000] * 10_000, pa.int64())})
    lengths = [len(block) for block in blocks(due, 2)]
    assert lengths[0] == BLOCK_PHOTOS
    assert lengths[-1] <= LEAST_PHOTOS
    assert lengths == sorted(lengths, reverse=True)
    assert len(lengths) < 10_000 / BLOCK_PHOTOS + 20  # each costs a task and a ledger part


FAULTS = """
import resource

import numpy as np

from jobs import blocks

def photo():
    return [np.ones(2_000_000, np.uint8) for _ in range(4)]

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

photo()
{before}
photo()
began = faults()
for _ in range(20):
    photo()
print(faults() - began)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_a_process_keeps_the_memory_of_one_photo_for_the_next() -> None:
    kept, given_back = (
        int(subprocess.check_output([sys.executable, "-c", FAULTS.format(before=before)]))
        for before in ("blocks.keep_freed_memory()", "")
    )
    assert kept < 0.1 * given_back
