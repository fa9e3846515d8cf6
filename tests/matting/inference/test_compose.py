"""Crops and composites, against slow and obvious versions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from matting.data.images import Pixels
from matting.inference.compose import PersonBox, cover, crop_to_person, on_background, parse_color, person_box


def slow_box(alpha_HW: Pixels) -> tuple[int, int, int, int] | None:
    """Look at every pixel."""
    height, width = alpha_HW.shape
    inside = [(row, column) for row in range(height) for column in range(width) if alpha_HW[row, column] >= 128]
    if not inside:
        return None
    rows, columns = zip(*inside, strict=True)
    return min(columns), min(rows), max(columns) + 1, max(rows) + 1


def slow_cover(image_HWC: Pixels, width: int, height: int) -> np.ndarray:
    """Weigh every pixel of the image by a triangle around each centre of the result, in float64."""
    own_height, own_width, _ = image_HWC.shape
    scale = min(own_width / width, own_height / height)

    def weights(own: int, size: int) -> np.ndarray:
        start, reach = (own - scale * size) / 2, max(scale, 1.0)
        centres = start + (np.arange(size) + 0.5) * scale
        near = np.maximum(0, 1 - np.abs(np.arange(own) + 0.5 - centres[:, None]) / reach)
        return near / near.sum(axis=1, keepdims=True)

    return np.einsum("hy,yxc,wx->hwc", weights(own_height, height), image_HWC, weights(own_width, width))


def random_alpha(seed: int, height: int, width: int) -> Pixels:
    """Return an alpha whose person is a random rectangle in random soft noise."""
    rng = np.random.default_rng(seed)
    alpha_HW = rng.integers(0, 128, (height, width)).astype(np.uint8)
    top, left = rng.integers(0, height), rng.integers(0, width)
    alpha_HW[top : rng.integers(top, height + 1), left : rng.integers(left, width + 1)] = rng.integers(127, 256)
    return alpha_HW


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12))
def test_box_is_the_smallest_around_the_person(seed: int, height: int, width: int) -> None:
    alpha_HW = random_alpha(seed, height, width)
    assert person_box(alpha_HW) == slow_box(alpha_HW)


def test_box_of_nobody_is_none() -> None:
    assert person_box(np.full((3, 4), 127, np.uint8)) is None
    assert person_box(np.full((3, 4), 128, np.uint8)) == PersonBox(0, 0, 4, 3)
    assert {type(side) for side in person_box(np.full((3, 4), 128, np.uint8)) or ()} == {int}


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12), st.floats(0, 1))
def test_crop_is_the_box_and_its_margin(seed: int, height: int, width: int, margin: float) -> None:
    rng = np.random.default_rng(seed)
    cutout_HWC = np.dstack(
        [rng.integers(0, 256, (height, width, 3)).astype(np.uint8), random_alpha(seed, height, width)]
    )
    found = crop_to_person(cutout_HWC, margin)
    box = slow_box(cutout_HWC[..., 3])
    if box is None:
        np.testing.assert_array_equal(found, cutout_HWC)
        return
    left, top, right, bottom = box
    wide = round(margin * max(right - left, bottom - top))
    rows = [row for row in range(height) if top - wide <= row < bottom + wide]
    columns = [column for column in range(width) if left - wide <= column < right + wide]
    np.testing.assert_array_equal(found, cutout_HWC[np.ix_(rows, columns)])


def test_composite_is_rounded_to_the_nearest_of_all_values() -> None:
    # Every alpha, foreground and background: 256³ values, one alpha at a time.
    foreground, background = (np.repeat(plane.astype(np.uint8)[..., None], 3, 2) for plane in np.mgrid[:256, :256])
    for alpha in range(256):
        cutout_HWC = np.dstack([foreground, np.full((256, 256), alpha, np.uint8)])
        expected = (alpha * foreground.astype(int) + (255 - alpha) * background.astype(int)) / 255
        found = on_background(cutout_HWC, background)
        assert np.abs(found - expected).max() < 0.5


def test_composite_keeps_channels_and_places() -> None:
    rng = np.random.default_rng(0)
    cutout_HWC = rng.integers(0, 256, (7, 5, 4)).astype(np.uint8)
    background_HWC = rng.integers(0, 256, (7, 5, 3)).astype(np.uint8)
    before = background_HWC.copy()
    alpha = cutout_HWC[..., 3:] / 255
    expected = np.rint(alpha * cutout_HWC[..., :3] + (1 - alpha) * background_HWC)
    found = on_background(cutout_HWC, background_HWC)
    assert (found.dtype, found.shape) == (np.uint8, (7, 5, 3))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(background_HWC, before)
    with pytest.raises(ValueError, match=r"cutout is \(7, 5\), its background \(5, 7\)"):
        on_background(cutout_HWC, np.zeros((5, 7, 3), np.uint8))


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (9, 3), (8, 8), (5, 6), (20, 30), (31, 4), (64, 1)])
@pytest.mark.parametrize("own", [(1, 1), (8, 8), (5, 12), (40, 23), (1, 9), (9, 1)])
def test_background_covers_from_its_centre(own: tuple[int, int], size: tuple[int, int]) -> None:
    image_HWC = np.random.default_rng(1).integers(0, 256, (own[1], own[0], 3)).astype(np.uint8)
    found = cover(image_HWC, *size)
    assert (found.dtype, found.shape) == (np.uint8, (size[1], size[0], 3))
    assert np.abs(found - slow_cover(image_HWC, *size)).max() <= 1  # Pillow rounds after each of the two axes


def test_background_is_cropped_evenly() -> None:
    image_HWC = np.zeros((4, 12, 3), np.uint8)
    image_HWC[:, 4:8] = 200  # the middle third
    assert (cover(image_HWC, 4, 4) == 200).all()
    assert cover(image_HWC, 12, 4) is image_HWC
    assert (cover(np.full((1, 1, 3), (1, 2, 3), np.uint8), 50, 40) == (1, 2, 3)).all()


@pytest.mark.parametrize("text", ["white", "White ", "#fff", "#FFFFFF", "rgb(255, 255, 255)", "hsl(0, 0%, 100%)"])
def test_colour_has_many_names(text: str) -> None:
    assert parse_color(text) == (255, 255, 255)


@pytest.mark.parametrize("text", ["", "whit", "#ggg", "#ff", "photo.jpg", "s3://bucket/white", "./white", "x" * 500])
def test_text_is_no_colour(text: str) -> None:
    assert parse_color(text) is None


@pytest.mark.parametrize("text", ["#ffff", "#ffffff80", "rgba(1, 2, 3, 4)", "rgb(300, 0, 0)"])
def test_colour_must_be_opaque(text: str) -> None:
    with pytest.raises(ValueError, match=r"no opaque colour .* such as #ffffff"):
        parse_color(text)


def test_composite_agrees_with_pillow() -> None:
    rng = np.random.default_rng(2)
    cutout_HWC = rng.integers(0, 256, (30, 20, 4)).astype(np.uint8)
    canvas = Image.new("RGBA", (20, 30), (10, 20, 30, 255))
    canvas.alpha_composite(Image.fromarray(cutout_HWC))
    found = on_background(cutout_HWC, np.full((30, 20, 3), (10, 20, 30), np.uint8))
    assert np.abs(found.astype(int) - np.asarray(canvas)[..., :3]).max() <= 1
