"""Schedule: progress of a run by its budget, and the learning rate."""

import numpy as np
import pytest

from matting.nn.schedule import Budget, learning_rate_factor
from tests.support.training import new_trainer, person_batch


@pytest.mark.parametrize(
    ("budget", "epochs_done", "seconds", "progress"),
    [
        (Budget(epochs=10, samples=100), 2.5, 1e6, 0.25),
        (Budget(epochs=10, samples=100, seconds=60), 2.5, 30, 0.5),
        (Budget(epochs=10, samples=100, seconds=60), 2.5, 70, 1),
        (Budget(seconds=60), 1000, 15, 0.25),
        (Budget(), 1000, 1e6, 0),
    ],
)
def test_progress_follows_epochs_or_seconds(
    budget: Budget, epochs_done: float, seconds: float, progress: float
) -> None:
    assert budget.progress(epochs_done, seconds) == progress
    assert budget.finished(int(epochs_done), seconds) == (progress == 1)


def test_constant_schedule_keeps_the_learning_rate() -> None:
    assert learning_rate_factor("constant", 0.3) == 1


def test_cosine_schedule_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate_factor("cosine", number / 1000) for number in range(1001)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[20] == pytest.approx(1)
    assert rates[510] == pytest.approx(0.5)
    assert rates[1000] == pytest.approx(0)
    assert np.all(np.diff(rates[:20]) > 0)
    assert np.all(np.diff(rates[20:]) < 0)


def test_weights_stay_at_the_end_of_the_schedule() -> None:
    trainer = new_trainer(schedule="cosine")
    trainer.epochs_done = 10
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train_epoch([person_batch(0, 1)], Budget(epochs=10, samples=2))
    assert all((old == new).all() for old, new in zip(before, trainer.model.parameters(), strict=True))
