"""Networks that are ready to predict: folding, number formats and micro-batches keep the trained network's alphas."""

import copy
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
from torch import nn

from matting.data import images
from matting.data.images import Pixels
from matting.data.synthetic import draw_person
from matting.inference.network import Network, fold_batchnorm
from matting.nn.precision import NumberFormat
from matting.nn.unet import UNetConfig, alpha_of
from tests.support.networks import (
    UNET_CONFIGS,
    checkpoint_of_eight_people,
    int8_is_fast,
    unet_with_random_batchnorm,
)

SIZE = 32


def squashed_people(number: int) -> Pixels:
    people = (draw_person(1, index, 100, 100)[0] for index in count())
    return np.stack([images.resize(person, SIZE, SIZE) for person, _ in zip(people, range(number), strict=False)])


@pytest.mark.parametrize("name", UNET_CONFIGS)
def test_folding_batchnorm_keeps_the_function(name: str) -> None:
    model = unet_with_random_batchnorm(name)
    before = copy.deepcopy(model.state_dict())
    image = torch.rand(2, 3, 40, 48)
    network = fold_batchnorm(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    with torch.no_grad():
        expected, found = model(image), network(image)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert found.std() > 1e-2, "saturated outputs would agree for any two networks"
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_small_alphas_are_rounded_network_outputs() -> None:
    trained = checkpoint_of_eight_people(UNetConfig(width=4), SIZE, steps=30, learning_rate=1e-2)
    squashed = squashed_people(5)
    with torch.no_grad():
        alpha = alpha_of(trained.model(torch.from_numpy(squashed).permute(0, 3, 1, 2) / 255))[:, 0] * 255
    found = Network(trained, number_format="fp32").small_alphas(squashed)
    assert (found.dtype, found.shape) == (np.uint8, (5, SIZE, SIZE))
    np.testing.assert_allclose(found, alpha.numpy(), atol=0.501)
    assert found.min() < 30
    assert found.max() > 225


def test_full_device_gets_half_the_micro_batch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = checkpoint_of_eight_people(UNetConfig(width=4), SIZE, steps=1, learning_rate=1e-2)
    network = Network(trained, number_format="fp32", micro_batch=4)
    forward, sizes, fits = network._forward, [], 2

    def forward_if_it_fits(image_BCHW: torch.Tensor) -> torch.Tensor:
        sizes.append(len(image_BCHW))
        if len(image_BCHW) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(image_BCHW)

    squashed = squashed_people(5)
    expected = network.small_alphas(squashed)
    monkeypatch.setattr(network, "_forward", forward_if_it_fits)
    np.testing.assert_array_equal(network.small_alphas(squashed), expected)
    assert sizes == [4, 2, 2, 2]
    fits = 1
    with pytest.raises(torch.OutOfMemoryError):
        network.small_alphas(squashed)
    assert sizes == [4, 2, 2, 2, 4, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    # above_2: fraction of pixels that differ by more than 2/255. at_most: largest difference, in steps of 1/255.
    ("number_format", "above_2", "at_most"),
    [("bf16", 0.002, 6), pytest.param("int8", 0.2, 24, marks=int8_is_fast)],
)
@pytest.mark.parametrize("name", UNET_CONFIGS)
def test_number_formats_are_close_to_float32(
    name: str, number_format: NumberFormat, above_2: float, at_most: int
) -> None:
    # Sixty steps, after which BatchNorms know the range of features.
    trained = checkpoint_of_eight_people(replace(UNET_CONFIGS[name], width=16), SIZE, steps=60, learning_rate=3e-3)
    squashed = squashed_people(16)
    exact, found = (Network(trained, number_format=each).small_alphas(squashed) for each in ("fp32", number_format))
    assert exact.std() > 80
    differences = np.abs(exact.astype(int) - found)
    assert np.mean(differences > 2) < above_2, np.bincount(differences.ravel())
    assert differences.max() <= at_most
