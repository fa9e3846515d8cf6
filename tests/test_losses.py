"""losses: values by hand, and against loops."""

import itertools

import pytest
import torch
from torch import Tensor

from matting.losses import mse, rgba_target


def pixel(*values: float) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)


@pytest.mark.parametrize(
    ("image", "alpha", "expected"),
    [
        ((1, 0.5, 0), 0.5, (0, -0.5, -1, 0)),
        ((1, 0.5, 0), 1, (1, 0, -1, 1)),  # an opaque pixel keeps its colour
        ((1, 0.5, 0), 0, (-1, -1, -1, -1)),  # a transparent one is black
    ],
)
def test_target_of_one_pixel(image: tuple[float, ...], alpha: float, expected: tuple[float, ...]) -> None:
    assert torch.equal(rgba_target(pixel(*image), pixel(alpha)), pixel(*expected))


def test_mse_of_one_pixel() -> None:
    pred, true = pixel(0, 0.5, -1, 1), pixel(1, 0, -1, -1)
    assert mse(pred, true, "sum").item() == 1 + 0.25 + 0 + 4
    assert mse(pred, true, "mean").item() == (1 + 0.25 + 0 + 4) / 4


def test_mse_against_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    pred, true = (torch.rand(2, 4, 3, 5, generator=generator) * 2 - 1 for _ in range(2))
    total = 0.0
    for place in itertools.product(*map(range, pred.shape)):
        total += (pred[place].item() - true[place].item()) ** 2
    assert mse(pred, true, "sum").item() == pytest.approx(total, rel=1e-6)
    assert mse(pred, true, "mean").item() == pytest.approx(total / (2 * 4 * 3 * 5), rel=1e-6)


def test_bfloat16_is_summed_in_float32() -> None:
    # In bfloat16, whose integers end at 256, a sum of ones would stay there.
    pred = torch.ones(1, 4, 32, 32, dtype=torch.bfloat16)
    loss = mse(pred, torch.zeros_like(pred), "sum")
    assert loss.dtype == torch.float32
    assert loss.item() == 4 * 32 * 32
