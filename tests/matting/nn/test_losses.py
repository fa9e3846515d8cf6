"""losses: values computed by hand, and loops as a reference."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from matting.nn.losses import LAPLACIAN_LEVELS, cross_entropy, l1, laplacian, mse, rgba_target


def pixel(*values: float) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)


@pytest.mark.parametrize(
    ("image", "alpha", "expected"),
    [
        ((1, 0.5, 0), 0.5, (0, -0.5, -1, 0)),
        ((1, 0.5, 0), 1, (1, 0, -1, 1)),  # an opaque pixel keeps its color
        ((1, 0.5, 0), 0, (-1, -1, -1, -1)),  # a transparent pixel is black
    ],
)
def test_target_of_one_pixel(image: tuple[float, ...], alpha: float, expected: tuple[float, ...]) -> None:
    assert torch.equal(rgba_target(pixel(*image), pixel(alpha)), pixel(*expected))


def test_mse_of_one_pixel() -> None:
    pred, true = pixel(0, 0.5, -1, 1), pixel(1, 0, -1, -1)
    assert mse(pred, true, "sum").item() == 1 + 0.25 + 0 + 4
    assert mse(pred, true, "mean").item() == (1 + 0.25 + 0 + 4) / 4


def test_mse_equals_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    pred, true = (torch.rand(2, 4, 3, 5, generator=generator) * 2 - 1 for _ in range(2))
    total = 0.0
    for index in itertools.product(*map(range, pred.shape)):
        total += (pred[index].item() - true[index].item()) ** 2
    assert mse(pred, true, "sum").item() == pytest.approx(total, rel=1e-6)
    assert mse(pred, true, "mean").item() == pytest.approx(total / (2 * 4 * 3 * 5), rel=1e-6)


def test_bfloat16_is_summed_in_float32() -> None:
    # In bfloat16, a sum of ones stays at 256, the last integer before gaps.
    pred = torch.ones(1, 4, 32, 32, dtype=torch.bfloat16)
    loss = mse(pred, torch.zeros_like(pred), "sum")
    assert loss.dtype == torch.float32
    assert loss.item() == 4 * 32 * 32


def test_l1_equals_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    pred, true = (torch.rand(2, 1, 3, 5, generator=generator) for _ in range(2))
    total = sum(abs(pred[index].item() - true[index].item()) for index in itertools.product(*map(range, pred.shape)))
    assert l1(pred, true).item() == pytest.approx(total / 30, rel=1e-6)


def test_cross_entropy_equals_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    pred, true = (torch.rand(2, 1, 3, 5, generator=generator) for _ in range(2))
    total = sum(
        -t * math.log(p) - (1 - t) * math.log(1 - p)
        for p, t in zip(pred.flatten().tolist(), true.flatten().tolist(), strict=True)
    )
    assert cross_entropy(pred, true).item() == pytest.approx(total / 30, rel=1e-5)


@pytest.mark.parametrize("logit", [-8.0, -3.0, 0.0, 3.0, 8.0])
def test_gradient_of_cross_entropy_is_the_error(logit: float) -> None:
    output = torch.full((1, 1, 1, 1), logit, requires_grad=True)
    alpha = (torch.tanh(output) + 1) / 2
    cross_entropy(alpha, torch.full_like(alpha, 0.25)).backward()
    assert output.grad is not None
    assert output.grad.item() == pytest.approx(2 * (alpha.item() - 0.25), rel=0.1)  # tanh(8) is 2e-7 from 1 in float32


def upsample(values: np.ndarray) -> np.ndarray:
    """Return the values at twice the size, bilinear with aligned pixel centers."""
    height, width = values.shape
    result = np.zeros((2 * height, 2 * width))
    for row, column in np.ndindex(*result.shape):
        y, x = np.clip((row + 0.5) / 2 - 0.5, 0, height - 1), np.clip((column + 0.5) / 2 - 0.5, 0, width - 1)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        above = values[top, left] * (1 - (x - left)) + values[top, right] * (x - left)
        below = values[bottom, left] * (1 - (x - left)) + values[bottom, right] * (x - left)
        result[row, column] = above * (1 - (y - top)) + below * (y - top)
    return result


def pyramid(values: np.ndarray) -> list[np.ndarray]:
    """Return the levels of the Laplacian pyramid: the difference of each level to the upsampled next one."""
    levels = []
    for _ in range(LAPLACIAN_LEVELS):
        height, width = values.shape
        coarser = values.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
        levels.append(values - upsample(coarser))
        values = coarser
    return levels


def test_laplacian_equals_the_difference_of_pyramids() -> None:
    generator = torch.Generator().manual_seed(0)
    pred, true = (torch.rand(1, 1, 16, 32, generator=generator, dtype=torch.float64) for _ in range(2))
    total = 0.0
    for level, (one, other) in enumerate(zip(pyramid(pred[0, 0].numpy()), pyramid(true[0, 0].numpy()), strict=True)):
        total += 2**level * float(np.abs(one - other).mean())
    assert laplacian(pred, true).item() == pytest.approx(total, rel=1e-5)


def test_laplacian_of_a_constant_difference_is_zero() -> None:
    true = torch.rand(1, 1, 16, 16)
    assert laplacian(true + 0.1, true).item() == pytest.approx(0, abs=1e-6)
