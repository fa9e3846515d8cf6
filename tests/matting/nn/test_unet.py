"""unet: the network against its written-out reference, and each option of its config."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import max_pool2d

from matting.nn.unet import UNet, UNetConfig, alpha_of, pad_to_multiple
from tests.reference.unet import BaselineUNet

RELUS = ("layer", "block")


@pytest.mark.parametrize("relu", RELUS)
def test_baseline_has_2444600_parameters(relu: str) -> None:
    model = UNet(UNetConfig(relu=relu))
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_444_600


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("relu", RELUS)
def test_output_equals_the_reference(relu: str, training: bool) -> None:
    torch.manual_seed(0)
    reference, model = BaselineUNet(relu), UNet(UNetConfig(relu=relu))
    for module in reference.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after training: new ones have no statistics to get wrong
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data = torch.rand_like(tensor) + 0.5
    # Both list their tensors in the order of the computation.
    model.load_state_dict(dict(zip(model.state_dict(), reference.state_dict().values(), strict=True)))
    image = torch.rand(2, 3, 32, 40)
    with torch.no_grad():
        expected = reference.train(training)(image * 2 - 1)
        found = model.train(training)(image)
    torch.testing.assert_close(found, expected)
    assert found.std() > 1e-2  # if it were saturated, any two networks would agree


def test_max_width_limits_every_level() -> None:
    model = UNet(UNetConfig(width=4, depth=4, max_width=12)).eval()
    widths = {parameter.shape[0] for parameter in model.parameters() if parameter.ndim == 4}
    assert max(widths) == 12
    assert [block[0].out_channels for block in model.down] == [4, 8, 12, 12, 12]
    assert model(torch.rand(1, 3, 32, 16)).shape == (1, 4, 32, 16)


def test_skip_add_adds_features_and_convolves_once() -> None:
    model = UNet(UNetConfig(width=4, depth=2, skip="add")).eval()
    image = torch.rand(1, 3, 16, 16)
    first = model.down[0](image * 2 - 1)
    second = model.down[1](max_pool2d(first, 2))
    third = model.down[2](max_pool2d(second, 2))
    features = model.up[0].grow(third) + second
    for layer in (*model.up[0].merge, model.up[1].grow):
        features = layer(features)
    features = model.up[1].merge(features + first)
    torch.testing.assert_close(model(image), torch.tanh(model.head(features)))
    convolutions = [layer for block in model.up for layer in block.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels) for layer in convolutions] == [(8, 8), (4, 4)]


def test_unshuffle_takes_four_pixels_as_one() -> None:
    model = UNet(UNetConfig(width=4, depth=1, unshuffle=2)).eval()
    image = torch.rand(1, 3, 8, 12)
    unshuffled = [(image * 2 - 1)[:, color, y::2, x::2] for color in range(3) for y in (0, 1) for x in (0, 1)]
    first = model.down[0](torch.stack(unshuffled, dim=1))
    features = model.head[1](model.head[0](model.up[0](model.down[1](max_pool2d(first, 2)), first)))
    whole = torch.zeros(1, 4, 8, 12)
    for number in range(16):
        channel, y, x = number // 4, number // 2 % 2, number % 2
        whole[:, channel, y::2, x::2] = features[:, number]
    torch.testing.assert_close(model(image), torch.tanh(model.head[2](whole)))


def test_tanh_does_not_saturate_in_bfloat16() -> None:
    model = UNet(UNetConfig(width=4, depth=1)).eval()
    torch.nn.init.constant_(model.head[1].bias, 1)
    torch.nn.init.constant_(model.head[1].weight, 0)
    torch.nn.init.constant_(model.head[2].weight, 6 / 36)  # the sum over 3 × 3 pixels of 4 channels is 6
    with torch.autocast("cpu", torch.bfloat16):
        alpha = model(torch.rand(1, 3, 8, 8))[0, 3, 4, 4]
    assert alpha.item() == pytest.approx(math.tanh(6), abs=1e-6)


def test_alpha_clip_applies_in_eval_mode_only() -> None:
    torch.manual_seed(0)
    model, plain = UNet(UNetConfig(width=4, alpha_clip=0.05)), UNet(UNetConfig(width=4))
    torch.nn.init.normal_(model.head[2].weight)
    image = torch.rand(2, 3, 32, 32)
    for _ in range(50):  # until, in eval mode too, inputs of the last convolution are as often above as below 0
        model(image)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(image), plain(image))
    rgba, expected = model.eval()(image), plain.eval()(image)
    assert torch.equal(rgba[:, :3], expected[:, :3])
    alpha = np.interp(alpha_of(expected).detach().numpy(), [0.05, 0.95], [0, 1])
    np.testing.assert_allclose(alpha_of(rgba).detach().numpy(), alpha, atol=1e-6)
    assert (alpha.min(), alpha.max()) == (0, 1)


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (5, 13), (130, 61), (7, 200)])
@pytest.mark.parametrize("config", [UNetConfig(width=4), UNetConfig(width=4, depth=2, skip="add", unshuffle=2)])
def test_output_has_the_size_of_the_input(config: UNetConfig, size: tuple[int, int]) -> None:
    model = UNet(config).eval()
    rgba = model(torch.rand(1, 3, *size))
    assert rgba.shape == (1, 4, *size)
    assert rgba.abs().max() <= 1


def test_padding_reflects_to_the_right_and_bottom() -> None:
    row = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    assert pad_to_multiple(row, 4)[0, 0].tolist() == [[1, 2, 3, 2]] * 4


def test_network_sees_the_reflected_padding() -> None:
    model = UNet(UNetConfig(width=4)).eval()
    image = torch.rand(1, 3, 16, 13)
    reflected = torch.cat([image, image[..., 9:12].flip(-1)], dim=-1)
    torch.testing.assert_close(model(image), model(reflected)[..., :13])


def test_alpha_of_scales_the_fourth_channel() -> None:
    rgba = torch.tensor([-1.0, 0, 1, 0.5]).view(1, 4, 1, 1)
    assert alpha_of(rgba).item() == 0.75


IMPOSSIBLE = {"width": 0, "depth": 0, "unshuffle": 0, "relu": "both", "max_width": 16, "skip": "sum", "alpha_clip": 0.5}


@pytest.mark.parametrize(("name", "value"), IMPOSSIBLE.items())
def test_impossible_architecture_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        UNetConfig(**{name: value})
