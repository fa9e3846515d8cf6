"""ema: the moving average of the weights, against its recursion."""

import pytest
import torch

from matting.nn.ema import update_ema
from tests.support.training import new_trainer, person_batch


def test_saved_weights_are_the_moving_average() -> None:
    trainer, plain = new_trainer(ema_decay=0.6, learning_rate=1e-2), new_trainer(learning_rate=1e-2)
    averages: dict[str, torch.Tensor] = {}
    for number in range(8):
        trainer.train_epoch([person_batch(number)])
        plain.train_epoch([person_batch(number)])
        decay = min(0.6, (1 + number) / (10 + number)) if number else 0.0
        for name, value in plain.model.state_dict().items():
            old = averages.get(name, torch.zeros(()))
            averages[name] = decay * old + (1 - decay) * value if value.is_floating_point() else value
    saved = trainer.model.state_dict()
    assert saved.keys() == averages.keys()
    for name, value in averages.items():
        torch.testing.assert_close(saved[name], value, atol=1e-5, rtol=1e-4, msg=name)
    assert not torch.equal(saved["head.2.weight"], plain.model.state_dict()["head.2.weight"])


@pytest.mark.parametrize(("updates", "decay"), [(0, 0.1), (1, 2 / 11), (1000, 0.9)])
def test_decay_warms_up(updates: int, decay: float) -> None:
    averages = [torch.ones(2)]
    update_ema(0.9, averages, [torch.zeros(2)], torch.tensor(updates))
    torch.testing.assert_close(averages[0], torch.full((2,), decay))


def test_integer_buffers_are_copied() -> None:
    averages = [torch.tensor(3), torch.tensor(5)]
    update_ema(0.9, averages, [torch.tensor(4), torch.tensor(9)], 7)
    assert [int(average) for average in averages] == [4, 9]
