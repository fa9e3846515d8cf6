"""Batched squashing, interpolation and refinement, against the functions that handle a photo after the other."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from matting.data import images
from matting.data.images import Pixels
from matting.data.synthetic import draw_person
from matting.inference import refine
from matting.inference.batched import Area, Spans, guided_batch, squash_batch, upsample_batch

SMALL = (48, 40)  # height and width of small alphas
SIZES = [(218, 178), (90, 120), (60, 64), (30, 41), (17, 9)]  # height and width of photos in one batch
BOXES = [(20, 8, 180, 150), (3, 5, 80, 100), (0, 0, 60, 64), (2, 3, 20, 31), (0, 0, 17, 9)]  # start and length


def area(boxes: Sequence[tuple[int, int, int, int]], height: int, width: int) -> Area:
    """Convert boxes (top, left, height, width) to an area of a padded tensor."""
    top, left, heights, widths = torch.tensor(boxes, dtype=torch.float32).T
    return Area(Spans(top, heights, height), Spans(left, widths, width))


def padded(photos: Sequence[Pixels], value: int) -> torch.Tensor:
    """Stack photos of several sizes, with a value behind their ends."""
    height, width = (max(photo.shape[axis] for photo in photos) for axis in (0, 1))
    stacked = np.full((len(photos), height, width, *photos[0].shape[2:]), value, np.uint8)
    for row, photo in zip(stacked, photos, strict=True):
        row[: photo.shape[0], : photo.shape[1]] = photo
    return torch.from_numpy(stacked)


@pytest.fixture(scope="module")
def people() -> tuple[list[Pixels], list[Pixels]]:
    """Photos, and the small alpha of the box in each."""
    photos, small_alphas = [], []
    for number, ((height, width), (top, left, rows, columns)) in enumerate(zip(SIZES, BOXES, strict=True)):
        image, alpha = draw_person(7, number, 256, 256)[:2]
        photos.append(images.resize(image, width, height))
        box = images.resize(alpha, width, height)[top : top + rows, left : left + columns]
        small_alphas.append(images.resize(np.ascontiguousarray(box), SMALL[1], SMALL[0]))
    return photos, small_alphas


def cut(photo: Pixels, box: tuple[int, int, int, int]) -> Pixels:
    top, left, height, width = box
    return np.ascontiguousarray(photo[top : top + height, left : left + width])


def assert_close(found: torch.Tensor, expected: Sequence[Pixels], share: float) -> None:
    """Check that photos differ by 1 at most, in a share of their pixels, and are 0 behind their ends."""
    rest, different, pixels = found.numpy().copy(), 0, 0
    for row, photo in zip(rest, expected, strict=True):
        part = row[: photo.shape[0], : photo.shape[1]]
        differences = np.abs(part.astype(int) - photo)
        assert differences.max() <= 1
        different, pixels = different + int((differences > 0).sum()), pixels + differences.size
        part[:] = 0
    assert not rest.any()
    assert different <= share * pixels


def test_squash_matches_that_of_single_photos(people: tuple[list[Pixels], list[Pixels]]) -> None:
    photos, _ = people
    stacked = padded(photos, 77)
    found = squash_batch(stacked, area(BOXES, *stacked.shape[1:3]), SMALL[1], SMALL[0])
    expected = [refine.squash(cut(photo, box), SMALL[1], SMALL[0]) for photo, box in zip(photos, BOXES, strict=True)]
    assert_close(found, expected, 0.15)  # the other rounds to 8 bits between rows and columns


def test_upsampled_batch_matches_that_of_single_photos(people: tuple[list[Pixels], list[Pixels]]) -> None:
    photos, small_alphas = people
    expected = []
    for photo, small_alpha, box in zip(photos, small_alphas, BOXES, strict=True):
        top, left, height, width = box
        alpha = np.zeros(photo.shape[:2], np.uint8)
        alpha[top : top + height, left : left + width] = refine.upsample(small_alpha, width, height)
        expected.append(alpha)
    stacked = padded(photos, 77)
    found = upsample_batch(torch.from_numpy(np.stack(small_alphas)), area(BOXES, *stacked.shape[1:3]))
    assert_close(found, expected, 0.0001)


def test_guided_batch_matches_that_of_single_photos(people: tuple[list[Pixels], list[Pixels]]) -> None:
    photos, small_alphas = people
    expected = []
    for photo, small_alpha, box in zip(photos, small_alphas, BOXES, strict=True):
        top, left, height, width = box
        alpha = np.zeros(photo.shape[:2], np.uint8)
        alpha[top : top + height, left : left + width] = refine.guided(small_alpha, cut(photo, box), width, height)
        expected.append(alpha)
    stacked = padded(photos, 77)
    boxes = area(BOXES, *stacked.shape[1:3])
    assert_close(guided_batch(torch.from_numpy(np.stack(small_alphas)), stacked, boxes, boxes), expected, 0.01)


def test_guided_batch_takes_reduced_photos(people: tuple[list[Pixels], list[Pixels]]) -> None:
    photos, small_alphas = people
    reduced = images.resize(photos[0], 89, 109)
    found = guided_batch(
        torch.from_numpy(small_alphas[0][None]),
        torch.from_numpy(reduced[None]),
        area([(0, 0, 109, 89)], 109, 89),
        area([(0, 0, 218, 178)], 230, 190),
    )
    assert_close(found, [refine.guided(small_alphas[0], reduced, 178, 218)], 0.01)
