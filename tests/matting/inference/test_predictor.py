"""Predictors: a photo's alpha depends on the photo alone, and the second pass helps where people are small."""

from collections.abc import Iterator
from io import BytesIO
from itertools import count
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from jobs.bench.workload import untrained_unet
from matting.data import images
from matting.data.images import BadImage, Pixels
from matting.data.synthetic import draw_person
from matting.inference.int8 import Int8UNet
from matting.inference.network import Network
from matting.inference.predictor import Predictor, Refine
from matting.inference.refine import squash, upsample
from matting.nn.checkpoint import Aspects, Checkpoint
from matting.nn.precision import NumberFormat
from matting.nn.unet import UNet, UNetConfig
from tests.support.networks import checkpoint_of_eight_people, int8_is_fast

SIZE = 32
EXIF_ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def trained() -> Checkpoint:
    return checkpoint_of_eight_people(UNetConfig(width=4), SIZE, steps=30, learning_rate=1e-2)


def photos(*sizes: tuple[int, int]) -> list[Pixels]:
    """Draw one photo for each (width, height)."""
    people = (draw_person(1, number, 100, 100)[0] for number in count())
    return [images.resize(person, *size) for person, size in zip(people, sizes, strict=False)]


class RedNetwork:
    """A stand-in for a network that takes everything red for a person, and keeps the batch size of each call."""

    size = SIZE

    def __init__(self, aspects: Aspects | None = None) -> None:
        self.aspects = aspects
        self.batch_sizes: list[int] = []

    def small_alphas(self, squashed_BHWC: Pixels) -> Pixels:
        self.batch_sizes.append(len(squashed_BHWC))
        return squashed_BHWC[..., 0].copy()


class FadingNetwork(RedNetwork):
    """A stand-in for a network that sees less of a person the farther to the right it looks."""

    def small_alphas(self, squashed_BHWC: Pixels) -> Pixels:
        return (super().small_alphas(squashed_BHWC) * np.linspace(1, 0.5, SIZE)).astype(np.uint8)


# PIL images -----------------------------------------------------------------------------------------------------------


def test_rotated_photo_gets_an_upright_alpha(trained: Checkpoint) -> None:
    image, _ = draw_person(0, 1, 60, 80)
    exif, file = Image.Exif(), BytesIO()
    exif[EXIF_ORIENTATION] = 6
    Image.fromarray(np.rot90(image)).save(file, "PNG", exif=exif)  # as a camera stores it, with a note to turn it
    predictor = Predictor(Network(trained), "guided")
    np.testing.assert_array_equal(np.array(predictor(Image.open(file))), np.array(predictor(Image.fromarray(image))))


def test_16_bit_photo_is_scaled(trained: Checkpoint) -> None:
    image, _ = draw_person(0, 1, 60, 80)
    photo = Image.fromarray(image[..., 1].astype(np.uint16) * 257)
    file = BytesIO()
    photo.save(file, "PNG")
    predictor = Predictor(Network(trained), "guided")
    (expected,) = predictor.alphas([images.decode_image(file.getvalue())])
    (clipped,) = predictor.alphas([np.full((80, 60, 3), 255, np.uint8)])  # Pillow's own conversion clips to white
    assert not np.array_equal(expected, clipped)
    np.testing.assert_array_equal(np.array(predictor(photo)), expected)


def test_floating_point_photo_is_refused(trained: Checkpoint) -> None:
    with pytest.raises(BadImage, match="mode 'F'"):
        Predictor(Network(trained))(Image.fromarray(np.zeros((8, 8), np.float32)))


# Batches --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def network_outputs() -> Iterator[list[Tensor]]:
    """Outputs of all networks from now on, before rounding: rgba_BCHW or alpha_BHW of each call."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, _: tuple[Tensor], output: Tensor) -> None:
        if isinstance(module, UNet | Int8UNet):
            outputs.append(output)

    handle = register_module_forward_hook(keep)
    yield outputs
    handle.remove()


@pytest.mark.parametrize("number_format", ["fp32", "bf16", pytest.param("int8", marks=int8_is_fast)])
def test_alpha_is_independent_of_the_batch(number_format: NumberFormat, network_outputs: list[Tensor]) -> None:
    # Full width, where kernels for a batch of one add up in another order than kernels for a batch of four.
    loaded = Checkpoint(untrained_unet(UNetConfig()), 64, {}, {}, "identity")
    predictor = Predictor(Network(loaded, number_format=number_format))

    def predict(batch: list[Pixels]) -> list[tuple[Pixels, Tensor]]:
        """Return each alpha, and the network's output that it comes from."""
        network_outputs.clear()
        alphas = predictor.alphas(batch)
        return list(zip(alphas, torch.cat(network_outputs), strict=False))

    together = photos((60, 80), (33, 21), (64, 64), (100, 40), (50, 50), (7, 90))
    alone = [predict([photo])[0] for photo in together]
    for number in range(1, len(together) + 1):
        for order in (slice(None), slice(None, None, -1)):
            found = predict(together[:number][order])
            for (alpha, output), (own_alpha, own_output) in zip(found, alone[:number][order], strict=True):
                np.testing.assert_array_equal(alpha, own_alpha)
                assert torch.equal(output, own_output)


def test_alpha_has_the_size_of_its_photo(trained: Checkpoint) -> None:
    sizes = [(1, 1), (1, 50), (300, 2), (SIZE, SIZE), (37, 53)]
    alphas = Predictor(Network(trained)).alphas(photos(*sizes))
    assert [(alpha.shape, alpha.dtype) for alpha in alphas] == [((height, width), np.uint8) for width, height in sizes]


def test_each_photo_gets_its_own_input_shape() -> None:
    sizes = [(300, 100), (60, 80), (50, 200), (80, 60), (64, 64), (50, 100)]
    shapes = [(38, 19), (SIZE, SIZE), (19, 38), (38, 25), (SIZE, SIZE), (25, 38)]
    reddish = [128 + photo // 2 for photo in photos(*sizes)]  # a person up to every edge
    found = Predictor(RedNetwork(aspects=(0.75, 1.0))).alphas(reddish)
    for photo, size, shape, alpha in zip(reddish, sizes, shapes, found, strict=True):
        np.testing.assert_array_equal(alpha, upsample(squash(photo, *shape)[..., 0], *size))
    assert np.ptp(found[0]) > 50


def test_large_photo_gets_the_alpha_of_its_small_copy(trained: Checkpoint) -> None:
    (small,) = photos((SIZE, SIZE))
    large = small.repeat(4, axis=0).repeat(4, axis=1)
    small_alpha, large_alpha = Predictor(Network(trained)).alphas([small, large])
    reduced_alpha = large_alpha.reshape(SIZE, 4, SIZE, 4).mean(axis=(1, 3))
    assert np.abs(reduced_alpha - small_alpha).mean() < 8


# Second pass ----------------------------------------------------------------------------------------------------------


def scene(top: int, left: int, side: int, height: int = 240, width: int = 320) -> tuple[Pixels, Pixels]:
    """Draw image_HWC and alpha_HW of a red square, with a hole of a third of its side, before a blue background."""
    alpha_HW = np.zeros((height, width), np.uint8)
    alpha_HW[top : top + side, left : left + side] = 255
    third = side // 3
    alpha_HW[top + third : top + 2 * third, left + third : left + 2 * third] = 0
    return np.dstack([alpha_HW, np.zeros_like(alpha_HW), 255 - alpha_HW]), alpha_HW


def mean_error(alpha_HW: Pixels, true_alpha_HW: Pixels) -> float:
    return float(np.abs(alpha_HW.astype(int) - true_alpha_HW).mean())


@pytest.mark.parametrize("refine", get_args(Refine))
@pytest.mark.parametrize(("top", "left", "side"), [(90, 150, 60), (0, 0, 45), (180, 260, 60), (20, 30, 100)])
def test_small_people_get_a_second_pass(refine: Refine, top: int, left: int, side: int) -> None:
    image, true_alpha = scene(top, left, side)
    network = RedNetwork()
    (alpha,) = Predictor(network, refine).alphas([image])
    assert network.batch_sizes == ([2, 2] if refine == "mirrored" else [1, 1])
    one_pass = upsample(squash(image, SIZE, SIZE)[..., 0], 320, 240)
    assert mean_error(alpha, true_alpha) < 0.6 * mean_error(one_pass, true_alpha)
    assert not alpha[: max(0, top - side // 2)].any()
    assert not alpha[:, left + 3 * side // 2 :].any()


def test_large_or_absent_people_get_one_pass() -> None:
    network = RedNetwork()
    nobody, large = scene(0, 0, 0)[0], scene(10, 40, 230)[0]
    alphas = Predictor(network).alphas([nobody, large])
    assert network.batch_sizes == [2]
    assert not alphas[0].any()
    assert alphas[1].mean() > 100


def test_second_pass_works_on_a_reduced_photo() -> None:
    image, true_alpha = scene(300, 500, 240, height=960, width=1280)
    reduced = images.resize(image, 320, 240)
    predictor = Predictor(RedNetwork())
    sizes = [(1280, 960)]
    (alpha,) = predictor.enlarge(predictor.predict_small([reduced], sizes), [reduced], sizes)
    assert mean_error(alpha, true_alpha) < 1.5 * mean_error(predictor.alphas([image])[0], true_alpha)
    rows, columns = np.nonzero(alpha >= 128)
    for found, expected in ((rows, (300, 539)), (columns, (500, 739))):
        assert (found.min(), found.max()) == pytest.approx(expected, abs=6)


def test_second_pass_changes_no_other_photo(trained: Checkpoint) -> None:
    person, _ = draw_person(1, 0, 64, 64)
    far = np.zeros((160, 160, 3), np.uint8)
    far[80:144, 48:112] = person
    together = [far, *photos((60, 80), (64, 64)), scene(90, 150, 60)[0], far[:, ::-1].copy()]
    for predictor in (Predictor(RedNetwork()), Predictor(Network(trained))):
        for photo, alpha in zip(together, predictor.alphas(together), strict=True):
            np.testing.assert_array_equal(alpha, predictor.alphas([photo])[0])


# Mirror augmentation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(64, 64), (300, 100), (50, 200)])
def test_mirrored_photo_gets_the_mirrored_alpha(trained: Checkpoint, width: int, height: int) -> None:
    network = Network(trained)
    network.aspects = (0.75, 1.0)
    (photo,) = photos((width, height))
    mirrored = np.ascontiguousarray(photo[:, ::-1])

    def difference(refine: Refine) -> float:
        alpha, other = Predictor(network, refine).alphas([photo, mirrored])
        return mean_error(alpha, other[:, ::-1])

    assert difference("mirrored") < 0.2 * difference("guided")  # only rounding is left


def test_mirror_image_counts_as_much_as_the_photo() -> None:
    red = np.zeros((SIZE, SIZE, 3), np.uint8)
    red[..., 0] = 255
    (small,) = Predictor(FadingNetwork(), "mirrored").predict_small([red], [(SIZE, SIZE)])
    np.testing.assert_allclose(small.small_alpha_HW, 255 * 0.75, atol=1.5)


def test_mirror_augmentation_is_independent_of_the_batch(trained: Checkpoint) -> None:
    together = [*photos((60, 80), (33, 21), (300, 100), (64, 64), (7, 90)), scene(90, 150, 60)[0]]
    predictor = Predictor(Network(trained), "mirrored")
    for photo, alpha in zip(together, predictor.alphas(together), strict=True):
        assert alpha.shape == photo.shape[:2]
        np.testing.assert_array_equal(alpha, predictor.alphas([photo])[0])
