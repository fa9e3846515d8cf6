"""predictor: the folded network is the network, and a photo's alpha is its own."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from jobs.workload import untrained
from matting import images
from matting.checkpoint import Aspects, Checkpoint
from matting.devices import Format, fastest_format
from matting.images import Pixels
from matting.int8 import Int8UNet
from matting.predictor import Network, Predictor, Refine, folded, input_shape
from matting.refine import squash, upsample
from matting.synthetic import draw_person
from matting.training import Trainer, TrainingConfig
from matting.unet import UNet, UNetConfig, alpha_of
from tests.test_training import batch, new_trainer

SIZE = 32

int8_is_fast = pytest.mark.skipif(
    fastest_format(torch.device("cpu")) != "int8", reason="this processor has no instructions for 8-bit integers"
)


@pytest.fixture(scope="module")
def trained() -> Checkpoint:
    """A network that knows eight people: its alphas go from 0 to 255."""
    trainer = new_trainer(learning_rate=1e-2)
    for _ in range(30):
        trainer.train_epoch([batch(*range(8))])
    return Checkpoint(trainer.model.eval(), SIZE, {}, {}, "identity")


def photos(*sizes: tuple[int, int]) -> list[Pixels]:
    """One photo for each (width, height)."""
    people = (draw_person(1, number, 100, 100)[0] for number in count())
    return [images.resize(person, *size) for person, size in zip(people, sizes, strict=False)]


class RedIsAPerson:
    """As a network: whatever is red is a person. It remembers how many pictures it saw in each call."""

    size = SIZE

    def __init__(self, aspects: Aspects | None = None) -> None:
        self.aspects = aspects
        self.saw: list[int] = []

    def small_alphas(self, squashed_BHWC: Pixels) -> Pixels:
        """As it is there."""
        self.saw.append(len(squashed_BHWC))
        return squashed_BHWC[..., 0].copy()


SHAPES = {
    "layer": UNetConfig(width=8),
    "block": UNetConfig(width=8, relu="block"),
    "light": UNetConfig(width=8, depth=2, join="add", stem=2, ends=0.05),
}


def as_if_trained(shape: str) -> UNet:
    """A network whose BatchNorms all have something to fold."""
    torch.manual_seed(0)
    model = UNet(SHAPES[shape]).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data = torch.rand_like(tensor) + 0.5
    return model


@pytest.mark.parametrize("shape", SHAPES)
def test_folding_changes_nothing_but_the_layers(shape: str) -> None:
    model = as_if_trained(shape)
    before = copy.deepcopy(model.state_dict())
    image = torch.rand(2, 3, 40, 48)
    network = folded(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    with torch.no_grad():
        expected, found = model(image), network(image)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert found.std() > 1e-2  # not saturated, or any two networks would agree
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_small_alphas_are_the_networks_rounded(trained: Checkpoint) -> None:
    squashed = np.stack(photos(*[(SIZE, SIZE)] * 5))
    with torch.no_grad():
        alpha = alpha_of(trained.model(torch.from_numpy(squashed).permute(0, 3, 1, 2) / 255))[:, 0] * 255
    found = Network(trained, number_format="fp32").small_alphas(squashed)
    assert (found.dtype, found.shape) == (np.uint8, (5, SIZE, SIZE))
    np.testing.assert_allclose(found, alpha.numpy(), atol=0.501)
    assert found.min() < 30
    assert found.max() > 225


@pytest.mark.parametrize(
    ("number_format", "apart_by_more_than_2", "at_most"),
    [("bf16", 0.002, 6), pytest.param("int8", 0.2, 24, marks=int8_is_fast)],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_other_number_formats_are_close_to_float32(
    shape: str, number_format: Format, apart_by_more_than_2: float, at_most: int
) -> None:
    torch.manual_seed(0)
    model = UNet(replace(SHAPES[shape], width=16))
    trainer = Trainer(model, TrainingConfig(precision="fp32", learning_rate=3e-3), torch.device("cpu"))
    for _ in range(60):  # until BatchNorms know how far features reach
        trainer.train_epoch([batch(*range(8))])
    trained = Checkpoint(model.eval(), SIZE, {}, {}, "identity")
    squashed = np.stack(photos(*[(SIZE, SIZE)] * 16))
    exact, found = (Network(trained, number_format=each).small_alphas(squashed) for each in ("fp32", number_format))
    assert exact.std() > 80
    apart = np.abs(exact.astype(int) - found)
    assert np.mean(apart > 2) < apart_by_more_than_2, np.bincount(apart.ravel())
    assert apart.max() <= at_most


@pytest.fixture
def network_outputs() -> Iterator[list[Tensor]]:
    """What every network answers from now on, before anything is rounded: rgba_BCHW or alpha_BHW of each call."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, _: tuple[Tensor], output: Tensor) -> None:
        if isinstance(module, UNet | Int8UNet):
            outputs.append(output)

    handle = register_module_forward_hook(keep)
    yield outputs
    handle.remove()


@pytest.mark.parametrize("number_format", ["fp32", "bf16", pytest.param("int8", marks=int8_is_fast)])
def test_an_alpha_depends_on_its_photo_alone_bit_for_bit(number_format: Format, network_outputs: list[Tensor]) -> None:
    # Of full width: there, the kernels for a batch of one add up in another order than those for a batch of four.
    loaded = Checkpoint(untrained(UNetConfig()), 64, {}, {}, "identity")
    predictor = Predictor(Network(loaded, number_format=number_format))

    def predict(some: list[Pixels]) -> list[tuple[Pixels, Tensor]]:
        """The alpha of each, and the output that it is made of."""
        network_outputs.clear()
        alphas = predictor.alphas(some)
        return list(zip(alphas, torch.cat(network_outputs), strict=False))

    together = photos((60, 80), (33, 21), (64, 64), (100, 40), (50, 50), (7, 90))
    alone = [predict([photo])[0] for photo in together]
    for number in range(1, len(together) + 1):
        for order in (slice(None), slice(None, None, -1)):
            found = predict(together[:number][order])
            for (alpha, output), (own_alpha, own_output) in zip(found, alone[:number][order], strict=True):
                np.testing.assert_array_equal(alpha, own_alpha)
                assert torch.equal(output, own_output)


def test_an_alpha_has_the_size_of_its_photo(trained: Checkpoint) -> None:
    sizes = [(1, 1), (1, 50), (300, 2), (SIZE, SIZE), (37, 53)]
    alphas = Predictor(Network(trained)).alphas(photos(*sizes))
    assert [(alpha.shape, alpha.dtype) for alpha in alphas] == [((height, width), np.uint8) for width, height in sizes]


# Shapes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aspect", "learned", "shape"),
    [
        (9.0, None, (160, 160)),
        (0.75, (0.75, 1.0), (160, 160)),
        (1.19, (0.75, 1.0), (160, 160)),
        (1.21, (0.75, 1.0), (192, 128)),
        (4 / 3, (0.75, 1.0), (192, 128)),
        (1.41, (0.75, 1.0), (192, 96)),
        (1000.0, (0.75, 1.0), (192, 96)),
        (16 / 9, (0.75, 1.5), (160, 160)),  # such photos were squashed to squares in training too
        (0.54, (0.75, 1.0), (160, 160)),
        (0.53, (0.75, 1.0), (128, 192)),
        (0.46, (0.75, 1.0), (128, 192)),
        (0.45, (0.75, 1.0), (96, 192)),
        (0.001, (0.75, 1.0), (96, 192)),
        (0.53, (0.5, 1.0), (160, 160)),
    ],
)
def test_photos_of_unlearned_shapes_are_seen_as_rectangles(
    aspect: float, learned: Aspects | None, shape: tuple[int, int]
) -> None:
    assert input_shape(aspect, 160, learned) == shape


def test_each_photo_is_seen_in_its_own_shape_whatever_is_beside_it() -> None:
    sizes = [(300, 100), (60, 80), (50, 200), (80, 60), (64, 64), (50, 100)]
    shapes = [(38, 19), (SIZE, SIZE), (19, 38), (38, 25), (SIZE, SIZE), (25, 38)]
    pictures = [128 + photo // 2 for photo in photos(*sizes)]  # red, and so a person, up to every edge
    found = Predictor(RedIsAPerson(aspects=(0.75, 1.0))).alphas(pictures)
    for picture, size, shape, alpha in zip(pictures, sizes, shapes, found, strict=True):
        np.testing.assert_array_equal(alpha, upsample(squash(picture, *shape)[..., 0], *size))
    assert np.ptp(found[0]) > 50


def test_a_large_photo_gets_the_alpha_of_its_small_copy(trained: Checkpoint) -> None:
    (small,) = photos((SIZE, SIZE))
    large = small.repeat(4, axis=0).repeat(4, axis=1)
    predictor = Predictor(Network(trained))
    small_alpha, large_alpha = predictor.alphas([small, large])
    middles = large_alpha.reshape(SIZE, 4, SIZE, 4).mean(axis=(1, 3))
    assert np.abs(middles - small_alpha).mean() < 8


# Closer looks ---------------------------------------------------------------------------------------------------------


def scene(top: int, left: int, side: int, height: int = 240, width: int = 320) -> tuple[Pixels, Pixels]:
    """image_HWC and alpha_HW of a red square with a hole of a third of its side, before a blue ground."""
    alpha_HW = np.zeros((height, width), np.uint8)
    alpha_HW[top : top + side, left : left + side] = 255
    third = side // 3
    alpha_HW[top + third : top + 2 * third, left + third : left + 2 * third] = 0
    return np.dstack([alpha_HW, np.zeros_like(alpha_HW), 255 - alpha_HW]), alpha_HW


def error(alpha_HW: Pixels, true_alpha_HW: Pixels) -> float:
    return float(np.abs(alpha_HW.astype(int) - true_alpha_HW).mean())


@pytest.mark.parametrize("refine", get_args(Refine))
@pytest.mark.parametrize(("top", "left", "side"), [(90, 150, 60), (0, 0, 45), (180, 260, 60), (20, 30, 100)])
def test_people_who_are_small_in_the_photo_are_looked_at_from_closer(
    refine: Refine, top: int, left: int, side: int
) -> None:
    image, true_alpha = scene(top, left, side)
    network = RedIsAPerson()
    (alpha,) = Predictor(network, refine).alphas([image])
    assert network.saw == ([2, 2] if refine == "mirrored" else [1, 1])
    assert error(alpha, true_alpha) < 0.6 * error(upsample(squash(image, SIZE, SIZE)[..., 0], 320, 240), true_alpha)
    assert not alpha[: max(0, top - side // 2)].any()
    assert not alpha[:, left + 3 * side // 2 :].any()


def test_who_fills_the_photo_or_is_not_there_is_looked_at_once() -> None:
    network = RedIsAPerson()
    nobody, large = scene(0, 0, 0)[0], scene(10, 40, 230)[0]
    alphas = Predictor(network).alphas([nobody, large])
    assert network.saw == [2]
    assert not alphas[0].any()
    assert alphas[1].mean() > 100


def test_a_closer_look_is_where_the_people_are_in_a_photo_that_was_reduced() -> None:
    image, true_alpha = scene(300, 500, 240, height=960, width=1280)
    reduced = images.resize(image, 320, 240)
    predictor = Predictor(RedIsAPerson())
    sizes = [(1280, 960)]
    (alpha,) = predictor.enlarged(predictor.looks([reduced], sizes), [reduced], sizes)
    assert error(alpha, true_alpha) < 1.5 * error(predictor.alphas([image])[0], true_alpha)
    rows, columns = np.nonzero(alpha >= 128)
    for found, expected in ((rows, (300, 539)), (columns, (500, 739))):
        assert (found.min(), found.max()) == pytest.approx(expected, abs=6)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (300, 100), (50, 200)])
def test_with_its_mirror_image_each_photo_gets_what_the_mirrored_one_does(
    trained: Checkpoint, width: int, height: int
) -> None:
    network = Network(trained)
    network.aspects = (0.75, 1.0)
    (photo,) = photos((width, height))
    mirrored = np.ascontiguousarray(photo[:, ::-1])

    def apart(refine: Refine) -> float:
        alpha, other = Predictor(network, refine).alphas([photo, mirrored])
        return error(alpha, other[:, ::-1])

    assert apart("mirrored") < 0.2 * apart("guided")  # but for rounding, nothing


class FadesToTheRight(RedIsAPerson):
    """As a network: the farther right, the less of a person it sees."""

    def small_alphas(self, squashed_BHWC: Pixels) -> Pixels:
        """As it is there."""
        return (super().small_alphas(squashed_BHWC) * np.linspace(1, 0.5, SIZE)).astype(np.uint8)


def test_the_mirror_image_counts_as_much_as_the_photo() -> None:
    red = np.zeros((SIZE, SIZE, 3), np.uint8)
    red[..., 0] = 255
    (look,) = Predictor(FadesToTheRight(), "mirrored").looks([red], [(SIZE, SIZE)])
    np.testing.assert_allclose(look.small_alpha_HW, 255 * 0.75, atol=1.5)


def test_mirrored_looks_at_many_photos_are_those_of_each(trained: Checkpoint) -> None:
    together = [*photos((60, 80), (33, 21), (300, 100), (64, 64), (7, 90)), scene(90, 150, 60)[0]]
    predictor = Predictor(Network(trained), "mirrored")
    for photo, alpha in zip(together, predictor.alphas(together), strict=True):
        assert alpha.shape == photo.shape[:2]
        np.testing.assert_array_equal(alpha, predictor.alphas([photo])[0])


def test_a_closer_look_at_one_photo_changes_no_other(trained: Checkpoint) -> None:
    person, _ = draw_person(1, 0, 64, 64)
    far = np.zeros((160, 160, 3), np.uint8)
    far[80:144, 48:112] = person
    together = [far, *photos((60, 80), (64, 64)), scene(90, 150, 60)[0], far[:, ::-1].copy()]
    for predictor in (Predictor(RedIsAPerson()), Predictor(Network(trained))):
        for photo, alpha in zip(together, predictor.alphas(together), strict=True):
            np.testing.assert_array_equal(alpha, predictor.alphas([photo])[0])
