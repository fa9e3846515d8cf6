"""soften: masks become mattes near their edges only, and mattes are not mistaken for masks."""

from collections.abc import Iterator

import numpy as np
import pytest

from matting.data import images
from matting.data.soften import is_mask, soften
from matting.data.synthetic import draw_person

pytestmark = pytest.mark.timeout(600)  # the first call of pymatting compiles


@pytest.fixture(scope="module")
def drawn() -> list[tuple[np.ndarray, np.ndarray]]:
    return [draw_person(0, number, 160, 160) for number in range(4)]


def far_from_edge(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Return which pixels have no pixel of the other kind within this distance, by comparing all pairs of pixels."""
    rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]]
    far = np.ones(mask.shape, bool)
    for row, column in np.argwhere(np.ones(mask.shape)):
        is_near = (rows - row) ** 2 + (columns - column) ** 2 <= pixels**2
        far[row, column] = (mask[is_near] == mask[row, column]).all()
    return far


def test_alpha_of_two_even_colours_is_found() -> None:
    rows, columns = np.mgrid[:64, :64]
    true = np.clip((20 - np.hypot(rows - 32, columns - 30)) / 6 + 0.5, 0, 1)
    person, background = np.array([200, 60, 40]), np.array([30, 90, 180])
    image = (true[..., None] * person + (1 - true[..., None]) * background).round().astype(np.uint8)
    mask = np.where(true >= 0.5, 255, 0).astype(np.uint8)
    alpha = soften(image, mask, 6)
    assert alpha.dtype == np.uint8
    assert np.abs(alpha / 255 - true).max() < 0.03
    assert np.abs(mask / 255 - true).max() > 0.4


def test_only_the_band_changes(drawn: list[tuple[np.ndarray, np.ndarray]]) -> None:
    image, alpha = (images.resize(each, 48, 48) for each in drawn[0])
    mask = np.where(alpha >= 128, 255, 0).astype(np.uint8)
    far = far_from_edge(mask, 4)
    softened = soften(image, mask, 4)
    np.testing.assert_array_equal(softened[far], mask[far])
    assert (softened != mask).any()


@pytest.mark.parametrize("value", [0, 255])
def test_mask_without_an_edge_is_unchanged(value: int) -> None:
    mask = np.full((20, 20), value, np.uint8)
    assert soften(np.zeros((20, 20, 3), np.uint8), mask, 3) is mask


def test_person_smaller_than_the_band_is_unchanged() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[8:11, 8:11] = 255
    assert soften(np.zeros((20, 20, 3), np.uint8), mask, 5) is mask


def shrunk_masks(drawn: list[tuple[np.ndarray, np.ndarray]]) -> Iterator[np.ndarray]:
    for _, alpha in drawn:
        mask = np.where(alpha >= 128, 255, 0).astype(np.uint8)
        yield mask
        yield images.resize(mask, 90, 90)


def test_shrunk_masks_are_told_from_mattes(drawn: list[tuple[np.ndarray, np.ndarray]]) -> None:
    assert all(is_mask(mask) for mask in shrunk_masks(drawn))
    for image, alpha in drawn:
        mask = np.where(alpha >= 128, 255, 0).astype(np.uint8)
        assert not is_mask(soften(image, mask, 6))
