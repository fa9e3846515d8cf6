"""ema: the moving average of the weights, against its recursion."""

import pytest
import torch

from matting.nn.ema import MovingAverage
from matting.nn.unet import UNet, UNetConfig
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


@pytest.mark.parametrize(("updates", "decay"), [(0, 0.0), (1, 2 / 11), (1000, 0.9)])
def test_decay_warms_up(updates: int, decay: float) -> None:
    network = UNet(UNetConfig(width=4))
    average = MovingAverage(network, 0.9)
    before = average.model.head[2].weight.clone()
    with torch.no_grad():
        network.head[2].weight += 1
    average.update(updates)
    torch.testing.assert_close(average.model.head[2].weight - before, torch.full_like(before, 1 - decay))
