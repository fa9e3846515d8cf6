"""int8: each rearrangement against torch's own operators, and convolutions against those of what integers stand for.

That whole networks are close to themselves in float32 is in test_predictor.py.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.workload import untrained
from matting import int8
from matting.unet import UNetConfig
from tests.test_predictor import int8_is_fast


def picture(*shape: int) -> Tensor:
    """Numbers from -1 to 1."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def convolution(channels_in: int, channels_out: int, side: int, bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(1)
    return nn.Conv2d(channels_in, channels_out, side, padding=side // 2, bias=bias)


@torch.no_grad()
@pytest.mark.parametrize("stem", [1, 2, 3])
def test_the_entrance_reads_pixels_as_if_they_were_channels(stem: int) -> None:
    image = picture(2, 3, 12, 18)
    entrance = convolution(3 * stem**2, 5, 3)
    expected = entrance(functional.pixel_unshuffle(image, stem))
    torch.testing.assert_close(int8._on_pixels(entrance, stem)(image), expected)


@torch.no_grad()
def test_a_transposed_convolution_is_four_whose_pixels_are_woven() -> None:
    features = picture(2, 6, 5, 7)
    torch.manual_seed(1)
    transposed = nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1)
    woven = int8._woven(int8._quarters(transposed)(features))
    torch.testing.assert_close(woven, transposed(features))


@torch.no_grad()
@pytest.mark.parametrize("stem", [1, 2, 3])
def test_the_last_convolution_comes_before_channels_become_pixels(stem: int) -> None:
    features = picture(2, 4 * stem**2, 5, 7)
    last = convolution(4, 4, 3, bias=False)
    expected = last(functional.pixel_shuffle(features, stem))[:, 3:]
    found = functional.pixel_shuffle(int8._before_shuffling(last.weight[3:], stem)(features), stem)
    torch.testing.assert_close(found, expected)


def test_halving_is_max_pooling() -> None:
    features = torch.randint(0, 256, (2, 3, 8, 10), dtype=torch.uint8)
    torch.testing.assert_close(int8._halved(features).float(), functional.max_pool2d(features.float(), 2))


@int8_is_fast
@torch.no_grad()
@pytest.mark.parametrize(
    ("zero_before", "zero_after", "most"), [(0, 0, 255), (0, 0, 127), (127.5, 0, 255), (0, 128, 255), (128, 0, 127)]
)
def test_a_convolution_is_that_of_the_numbers_its_integers_stand_for(
    zero_before: float, zero_after: float, most: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    before = int8._Features(torch.rand(8, generator=generator) + 0.5, zero_before)
    after = int8._Features(0.4 * torch.rand(16, generator=generator) + 0.2, zero_after, most)
    features = torch.randint(0, 256, (2, 8, 9, 9), dtype=torch.uint8, generator=generator)
    layer = convolution(8, 16, 3)
    numbers = layer((features.float() - before.zero) * before.step_C[:, None, None])
    expected = numbers / after.step_C[:, None, None] + after.zero
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # borders know no halves of a zero
    found = int8._Convolution(layer, before, after)(features)
    assert found.dtype == torch.uint8
    torch.testing.assert_close(found.float()[inside], expected.clamp(0, most)[inside], rtol=0, atol=5)
    assert (found == most).any()
    exact = int8._Convolution(layer, before, None)(features)
    assert exact.dtype == torch.float32
    torch.testing.assert_close(exact[inside], numbers[inside], rtol=0.01, atol=1)


@int8_is_fast
@torch.no_grad()
@pytest.mark.parametrize("signed", [False, True])
def test_channels_that_died_stay_what_they_are(signed: bool) -> None:
    norm = nn.BatchNorm2d(3).eval()
    norm.weight[:2], norm.bias[:2] = torch.tensor([0.0, 1e-9]), torch.tensor([0.0, -1.0])  # 0, and below 0
    layer = nn.utils.fusion.fuse_conv_bn_eval(convolution(8, 3, 3, bias=False).eval(), norm)
    before, after = int8._Features(torch.full((8,), 1 / 255)), int8._reaching(norm, signed)
    features = torch.randint(0, 256, (2, 8, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    numbers = layer(features / 255)
    integers = int8._Convolution(layer, before, after)(features)
    found = (integers.float() - after.zero) * after.step_C[:, None, None]
    torch.testing.assert_close(found, numbers if signed else numbers.relu(), rtol=0, atol=0.05)


@int8_is_fast
@pytest.mark.parametrize("height", [1, 31, 48])
def test_pictures_of_any_size_get_alphas_of_theirs(height: int) -> None:
    network = int8.Int8UNet(untrained(UNetConfig(width=4, depth=2, join="add", stem=2)))
    alpha = network(torch.randint(0, 256, (2, 3, height, 20), dtype=torch.uint8))
    assert alpha.shape == (2, height, 20)
    assert 0 <= alpha.min() < alpha.max() <= 1
