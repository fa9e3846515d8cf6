"""The network against its written-out reference, and the promises of its docstring."""

import pytest
import torch

from matting.unet import UNet, UNetConfig, alpha_of, pad_to_multiple
from tests.reference.unet import SeedUNet

RELUS = ("layer", "block")


@pytest.mark.parametrize("relu", RELUS)
def test_has_the_parameters_of_the_design(relu: str) -> None:
    model = UNet(UNetConfig(relu=relu))
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_444_600


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("relu", RELUS)
def test_answers_as_the_reference_with_the_same_weights(relu: str, training: bool) -> None:
    torch.manual_seed(0)
    reference, model = SeedUNet(relu), UNet(UNetConfig(relu=relu))
    for module in reference.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as if trained: fresh ones have no statistics to get wrong
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data = torch.rand_like(tensor) + 0.5
    # Both list their tensors in the order of the computation.
    model.load_state_dict(dict(zip(model.state_dict(), reference.state_dict().values(), strict=True)))
    image = torch.rand(2, 3, 32, 40)
    with torch.no_grad():
        expected = reference.train(training)(image * 2 - 1)
        found = model.train(training)(image)
    torch.testing.assert_close(found, expected)
    assert found.std() > 1e-2  # not saturated, or any two networks would agree


def test_no_level_is_wider_than_the_widest() -> None:
    model = UNet(UNetConfig(width=4, depth=4, max_width=12)).eval()
    widths = {parameter.shape[0] for parameter in model.parameters() if parameter.ndim == 4}
    assert max(widths) == 12
    assert [block[0].out_channels for block in model.down] == [4, 8, 12, 12, 12]
    assert model(torch.rand(1, 3, 32, 16)).shape == (1, 4, 32, 16)


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (5, 13), (130, 61), (7, 200)])
def test_takes_any_size_and_gives_it_back(size: tuple[int, int]) -> None:
    model = UNet(UNetConfig(width=4)).eval()
    rgba = model(torch.rand(1, 3, *size))
    assert rgba.shape == (1, 4, *size)
    assert rgba.abs().max() <= 1


def test_pads_by_reflection_to_the_right_and_below() -> None:
    row = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    assert pad_to_multiple(row, 4)[0, 0].tolist() == [[1, 2, 3, 2]] * 4


def test_a_padded_picture_is_seen_as_the_reflection() -> None:
    model = UNet(UNetConfig(width=4)).eval()
    image = torch.rand(1, 3, 16, 13)
    reflected = torch.cat([image, image[..., 9:12].flip(-1)], dim=-1)
    torch.testing.assert_close(model(image), model(reflected)[..., :13])


def test_alpha_is_the_fourth_channel_in_0_to_1() -> None:
    rgba = torch.tensor([-1.0, 0, 1, 0.5]).view(1, 4, 1, 1)
    assert alpha_of(rgba).item() == 0.75


@pytest.mark.parametrize("wrong", [{"width": 0}, {"depth": 0}, {"relu": "both"}, {"max_width": 16}])
def test_refuses_an_impossible_shape(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        UNetConfig(**wrong)
