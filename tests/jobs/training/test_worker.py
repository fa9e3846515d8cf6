"""A training worker: its judgement on the data of an epoch, and a batch that is too large."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jobs.training.config import TrainConfig
from jobs.training.data import DataFacts
from jobs.training.worker import data_failure, train_epochs
from matting.nn.trainer import Epoch, Score

EPOCH = Epoch(loss=0.5, steps=10, samples=80, seconds=1.0, waiting=0.0)
FACTS = DataFacts(epoch_samples=80, decoded=100, val_keys=["a", "b"], fingerprint="f", aspects=None)
ASSIGNMENT = SimpleNamespace(options=TrainConfig(max_rejected_fraction=0.1), data=FACTS)


def scores(*keys: str) -> list[Score]:
    return [Score(key, 1.0, 1.0, 0.5) for key in keys]


def test_complete_data_are_accepted() -> None:
    assert data_failure(ASSIGNMENT, EPOCH, scores("a", "b"), {}) == ""
    assert data_failure(ASSIGNMENT, EPOCH, scores("a"), {"b": "empty file"}) == ""


def test_too_many_rejected_pairs_fail() -> None:
    rejections = {f"bad-{number}": "empty file" for number in range(11)}
    failure = data_failure(ASSIGNMENT, EPOCH, scores("a", "b"), rejections)
    assert failure.startswith("11 of 100 pairs cannot be used, more than --max-rejected-fraction 0.1")


def test_an_epoch_without_pairs_fails() -> None:
    assert "No pair is left: 0 to train with" in data_failure(ASSIGNMENT, EPOCH._replace(steps=0, samples=0), [], {})


def test_starting_weights_need_no_training_pairs_yet() -> None:
    assert data_failure(ASSIGNMENT, None, scores("a", "b"), {}) == ""
    assert data_failure(ASSIGNMENT, None, [], {}) == "No pair is left: 0 to validate with."


def test_a_missing_validation_pair_is_named() -> None:
    failure = data_failure(ASSIGNMENT, EPOCH, scores("b"), {})
    assert failure == "Validation missed 1 of 2 pairs that were not rejected: a."


def test_a_batch_that_the_gpu_cannot_hold_names_the_option() -> None:
    def train_epoch(*_: Any) -> Epoch:
        raise torch.OutOfMemoryError("CUDA out of memory")

    pairs = SimpleNamespace(train_batches=lambda *_: iter(()))
    assignment = SimpleNamespace(options=TrainConfig(), data=FACTS, cached=pairs, start=None, batch=512, use_gpu=True)
    trainer = SimpleNamespace(epochs_done=0, seconds=0.0, train_epoch=train_epoch)
    with pytest.raises(MemoryError, match=r"Steps of 512 pairs .*: give a smaller --batch\. CUDA out of memory"):
        train_epochs(assignment, trainer, None)
