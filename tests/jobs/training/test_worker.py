"""The judgement of a training worker on the data of an epoch."""

from types import SimpleNamespace

from jobs.training.config import TrainConfig
from jobs.training.data import DataFacts
from jobs.training.worker import data_failure
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
