"""8-bit networks: every rearrangement against torch's operators, and convolutions against float ones.

test_network.py compares whole networks with float32.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.bench.workload import untrained_unet
from matting.inference import int8
from matting.nn.unet import UNetConfig
from tests.support.networks import int8_is_fast


def random_features(*shape: int) -> Tensor:
    """Return numbers from -1 to 1."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def random_bytes(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def convolution(channels_in: int, channels_out: int, side: int, bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(1)
    return nn.Conv2d(channels_in, channels_out, side, padding=side // 2, bias=bias)


@torch.no_grad()
@pytest.mark.parametrize("unshuffle", [1, 2, 3])
def test_first_convolution_absorbs_unshuffle(unshuffle: int) -> None:
    image = random_features(2, 3, 12, 18)
    first = convolution(3 * unshuffle**2, 5, 3)
    expected = first(functional.pixel_unshuffle(image, unshuffle))
    torch.testing.assert_close(int8._absorb_unshuffle(first, unshuffle)(image), expected)


@torch.no_grad()
def test_interleaved_quarters_are_a_transposed_convolution() -> None:
    features = random_features(2, 6, 5, 7)
    torch.manual_seed(1)
    transposed = nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1)
    found = int8._interleave(int8._as_quarters(transposed)(features))
    torch.testing.assert_close(found, transposed(features))


@torch.no_grad()
@pytest.mark.parametrize("unshuffle", [1, 2, 3])
def test_last_convolution_moves_before_shuffle(unshuffle: int) -> None:
    features = random_features(2, 4 * unshuffle**2, 5, 7)
    last = convolution(4, 4, 3, bias=False)
    expected = last(functional.pixel_shuffle(features, unshuffle))[:, 3:]
    found = functional.pixel_shuffle(int8._move_before_shuffle(last.weight[3:], unshuffle)(features), unshuffle)
    torch.testing.assert_close(found, expected)


def test_max_pool_matches_torch() -> None:
    features = random_bytes(2, 3, 8, 10)
    torch.testing.assert_close(int8._max_pool(features).float(), functional.max_pool2d(features.float(), 2))


@int8_is_fast
@torch.no_grad()
@pytest.mark.parametrize(
    ("zero_before", "zero_after", "largest"),
    [(0, 0, 255), (0, 0, 127), (127.5, 0, 255), (0, 128, 255), (128, 0, 127)],
)
def test_quantized_convolution_matches_float(zero_before: float, zero_after: float, largest: int) -> None:
    generator = torch.Generator().manual_seed(0)
    before = int8._Quantization(torch.rand(8, generator=generator) + 0.5, zero_before)
    after = int8._Quantization(0.4 * torch.rand(16, generator=generator) + 0.2, zero_after, largest)
    features = torch.randint(0, 256, (2, 8, 9, 9), dtype=torch.uint8, generator=generator)
    layer = convolution(8, 16, 3)
    numbers = layer((features.float() - before.zero_point) * before.scale_C[:, None, None])
    expected = numbers / after.scale_C[:, None, None] + after.zero_point
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # the padding cannot hold half a zero point
    found = int8._QuantizedConv(layer, before, after)(features)
    assert found.dtype == torch.uint8
    torch.testing.assert_close(found.float()[inside], expected.clamp(0, largest)[inside], rtol=0, atol=5)
    assert (found == largest).any()
    unquantized = int8._QuantizedConv(layer, before, None)(features)
    assert unquantized.dtype == torch.float32
    torch.testing.assert_close(unquantized[inside], numbers[inside], rtol=0.01, atol=1)


@int8_is_fast
@torch.no_grad()
@pytest.mark.parametrize("signed", [False, True])
def test_dead_channels_keep_their_values(signed: bool) -> None:
    norm = nn.BatchNorm2d(3).eval()
    norm.weight[:2], norm.bias[:2] = torch.tensor([0.0, 1e-9]), torch.tensor([0.0, -1.0])  # 0, and below 0
    layer = nn.utils.fusion.fuse_conv_bn_eval(convolution(8, 3, 3, bias=False).eval(), norm)
    before, after = int8._Quantization(torch.full((8,), 1 / 255)), int8._quantization_after(norm, signed)
    features = random_bytes(2, 8, 9, 9)
    numbers = layer(features / 255)
    integers = int8._QuantizedConv(layer, before, after)(features)
    found = (integers.float() - after.zero_point) * after.scale_C[:, None, None]
    torch.testing.assert_close(found, numbers if signed else numbers.relu(), rtol=0, atol=0.05)


@int8_is_fast
@pytest.mark.parametrize("height", [1, 31, 48])
def test_images_of_any_size_are_accepted(height: int) -> None:
    network = int8.Int8UNet(untrained_unet(UNetConfig(width=4, depth=2, skip="add", unshuffle=2)))
    alpha = network(random_bytes(2, 3, height, 20))
    assert alpha.shape == (2, height, 20)
    assert 0 <= alpha.min() < alpha.max() <= 1
