"""Cutting due photos into blocks, and the tasks' assignment."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.prediction import precision
from jobs.prediction.blocks import BLOCK_BYTES, BLOCK_PHOTOS, LEAST_PHOTOS, PredictionWork, cut_into_blocks
from jobs.prediction.precision import UnsupportedFormatError
from matting.nn import checkpoint
from matting.nn.checkpoint import CheckpointError
from matting.results.pipeline import PredictionSettings
from tests.support.predictions import new_checkpoint


@given(st.lists(st.integers(0, 2 * BLOCK_BYTES) | st.integers(0, 10_000), min_size=1, max_size=3000), st.integers(1, 5))
def test_blocks_are_bounded_and_complete(sizes: list[int], tasks: int) -> None:
    due = pa.table({"key": [str(number) for number in range(len(sizes))], "size": pa.array(sizes, pa.int64())})
    blocks = list(cut_into_blocks(due, tasks))
    assert pa.concat_tables(blocks).drop_columns("block") == due
    for number, block in enumerate(blocks):
        assert set(block["block"].to_pylist()) == {number}
        assert len(block) <= BLOCK_PHOTOS
        assert len(block) == 1 or sum(block["size"].to_pylist()) <= BLOCK_BYTES


def test_last_blocks_are_small() -> None:
    due = pa.table({"size": pa.array([1000] * 10_000, pa.int64())})
    lengths = [len(block) for block in cut_into_blocks(due, 2)]
    assert lengths[0] == BLOCK_PHOTOS
    assert lengths[-1] <= LEAST_PHOTOS
    assert lengths == sorted(lengths, reverse=True)
    assert len(lengths) < 10_000 / BLOCK_PHOTOS + 20  # each costs a task and a ledger part


def work_on(uri: str) -> PredictionWork:
    settings = PredictionSettings(write=("alpha",), format="png", refine="none", sink="files", precision="bf16")
    return PredictionWork(uri, checkpoint.load(uri).identity, "memory://out", settings, "run")


def test_replaced_checkpoint_is_refused(tmp_path: Path) -> None:
    work = work_on(new_checkpoint(tmp_path, seed=0))
    work.load()
    new_checkpoint(tmp_path, seed=1)
    with pytest.raises(CheckpointError, match="was replaced while it was in use"):
        work.load()


def test_worker_never_predicts_in_another_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_on(new_checkpoint(tmp_path, seed=0))
    monkeypatch.setattr(precision, "supported_formats", lambda device: ("int8", "fp32"))  # noqa: ARG005
    with pytest.raises(UnsupportedFormatError, match=r"cannot compute bf16.*compute int8, fp32"):
        work.network(torch.device("cpu"))
