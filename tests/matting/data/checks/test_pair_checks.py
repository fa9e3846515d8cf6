"""Looks at single pairs: what drawn people show, right and wrong in each of the ways that happen."""

from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageFilter

from matting.data.checks.pair_checks import (
    MIN_AGREEMENT,
    PairLook,
    border_and_centre,
    edge_agreement,
    grey_band,
    look_at_pair,
    suspicion,
)
from matting.data.images import Pixels, resize
from matting.data.synthetic import draw_person

PEOPLE = range(40)


@cache
def person(number: int) -> tuple[Pixels, Pixels]:
    return draw_person(0, number, 120, 160)


def look(image: Pixels, alpha: Pixels) -> PairLook:
    return look_at_pair(image, alpha, int(alpha.max()), 255)


def trimap(alpha: Pixels, band: int) -> Pixels:
    mask = Image.fromarray(np.where(alpha >= 128, 255, 0).astype(np.uint8))
    inner, outer = (np.asarray(mask.filter(kind(band))) for kind in (ImageFilter.MinFilter, ImageFilter.MaxFilter))
    return np.where(inner == 255, 255, np.where(outer == 0, 0, 128)).astype(np.uint8)


def share(flags: list[bool]) -> float:
    return sum(flags) / len(flags)


def test_right_pairs_are_not_suspicious() -> None:
    assert [suspicion(look(*person(number))) for number in PEOPLE] == [""] * len(PEOPLE)


def test_mattes_of_other_people_are_suspicious() -> None:
    looks = [look(person(number)[0], person(number - 1)[1]) for number in PEOPLE[1:]]
    assert share([pair.is_foreign for pair in looks]) > 0.8
    assert "of another photo?" in suspicion(next(pair for pair in looks if pair.is_foreign))


def test_inverted_mattes_are_suspicious() -> None:
    looks = [look(image, 255 - alpha) for image, alpha in map(person, PEOPLE)]
    assert share([pair.is_inverted for pair in looks]) > 0.9
    assert "seems inverted" in suspicion(next(pair for pair in looks if pair.is_inverted))


@pytest.mark.parametrize("band", [5, 9, 15])
def test_trimaps_are_suspicious(band: int) -> None:
    looks = [look(image, trimap(alpha, band)) for image, alpha in map(person, PEOPLE)]
    assert share([pair.is_trimap for pair in looks]) == 1
    assert {suspicion(pair) for pair in looks} == {"matte: wide bands of one grey, like a trimap"}


def test_trimaps_are_found_in_large_files_and_after_jpeg() -> None:
    image, alpha = (resize(array, 900, 1200) for array in person(0))
    assert look(image, trimap(alpha, 31)).is_trimap
    noisy = trimap(person(0)[1], 15).astype(int) + np.random.default_rng(0).integers(-2, 3, (160, 120))
    assert look(person(0)[0], noisy.clip(0, 255).astype(np.uint8)).is_trimap


def test_masks_and_soft_edges_are_no_trimaps() -> None:
    for number in PEOPLE:
        alpha = person(number)[1]
        mask = np.where(alpha >= 128, 255, 0).astype(np.uint8)
        for matte in (mask, resize(resize(mask, 60, 80), 120, 160), resize(alpha, 60, 80)):
            assert grey_band(matte) == 0


@pytest.mark.parametrize(
    ("values", "opaque", "reason"),
    [
        ([0, 1], 255, "no value above 1, where 255 is opaque"),
        ([0, 100], 255, "no value above 100, where 255 is opaque"),
        ([0, 255], 65535, "no value above 255, where 65535 is opaque"),
        ([0, 255], 1, "has values up to 255, above --matte-range 1"),
        ([0, 0], 255, "empty, nobody is in it"),
        ([200, 255], 255, "opaque everywhere, no value below 200"),
    ],
)
def test_values_of_a_matte_are_suspicious(values: list[int], opaque: int, reason: str) -> None:
    image, alpha = person(1)
    stored = np.where(alpha >= 128, values[1], values[0])
    read = np.minimum(stored * 255 // opaque, 255).astype(np.uint8)
    assert suspicion(look_at_pair(image, read, int(stored.max()), opaque)) == f"matte: {reason}"


def test_pairs_with_hardly_any_edge_are_not_judged() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    alpha = np.zeros((40, 40), np.uint8)
    alpha[18:22, 18:22] = 255
    assert np.isnan(edge_agreement(image, alpha))
    assert suspicion(look(image, alpha)) == ""
    for side in (1, 2, 7, 8):
        assert np.isnan(edge_agreement(image[:side, :side], alpha[:side, :side]))


def test_agreement_is_what_it_says() -> None:
    """A disc on a plain background has its only edge where its own matte has one."""
    rows, columns = np.mgrid[:120, :120]
    disc = np.where(np.hypot(rows - 60, columns - 60) < 30, 255, 0).astype(np.uint8)
    image = np.repeat(disc[..., None], 3, axis=2)
    assert edge_agreement(image, disc) == 1
    assert edge_agreement(np.full_like(image, 90), disc) == 0.5
    larger = np.where(np.hypot(rows - 60, columns - 60) < 36, 255, 0).astype(np.uint8)
    assert edge_agreement(image, larger) < MIN_AGREEMENT
    assert edge_agreement(resize(image, 480, 480), disc) > 0.95


def test_agreement_is_of_the_edge_and_not_of_contrast() -> None:
    image, alpha = person(2)
    faint = (image // 8 + 100).astype(np.uint8)
    assert edge_agreement(faint, alpha) == pytest.approx(edge_agreement(image, alpha), abs=0.1)


def test_border_and_centre_are_means_of_their_pixels() -> None:
    alpha = np.random.default_rng(0).integers(0, 256, (64, 48), np.uint8)
    border, middle = [], []
    for row in range(64):
        for column in range(48):
            if row < 4 or (row < 32 and (column < 3 or column >= 45)):
                border.append(alpha[row, column] / 255)
            if 16 <= row < 48 and 12 <= column < 36:
                middle.append(alpha[row, column] / 255)
    assert border_and_centre(alpha) == pytest.approx((np.mean(border), np.mean(middle)))
