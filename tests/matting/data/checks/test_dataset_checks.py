"""Verdicts on samples of a dataset: what stops a job, what is only said."""

from functools import cache

import numpy as np
import pytest

from matting.data.checks.dataset_checks import judge, shift_of
from matting.data.checks.pair_checks import look_at_pair
from matting.data.images import Pixels
from matting.data.rows import Example
from matting.data.synthetic import draw_person


@cache
def person(number: int) -> tuple[Pixels, Pixels]:
    return draw_person(0, number, 96, 96)


def example(number: int, matte: Pixels, peak: int | None = None, opaque: int = 255) -> Example:
    image = person(number)[0]
    peak = int(matte.max()) if peak is None else peak
    return Example(f"{number:02}.jpg", image, matte, look=look_at_pair(image, matte, peak, opaque))


def shifted(places: int, count: int = 24) -> list[Example]:
    return [example(number, person((number + places) % count)[1]) for number in range(count)]


def test_right_dataset_passes() -> None:
    assert judge("d", [shifted(0)]) == ("", "")


@pytest.mark.parametrize(
    ("peak", "opaque", "wanted"),
    [
        (1, 255, 1),
        (3, 255, 3),
        (100, 255, 100),
        (255, 65535, 255),
        (254, 65535, 255),
        (4095, 65535, 4095),
        (1, 65535, 1),
    ],
)
def test_small_range_stops_with_the_option(peak: int, opaque: int, wanted: int) -> None:
    run = [example(number, np.minimum(person(number)[1], 1), peak, opaque) for number in range(8)]
    failure, _ = judge("people", [run])
    assert failure.startswith(
        f"people: of 8 mattes that were looked at, none has a value above {peak}, where {opaque} "
    )
    assert failure.endswith(f"give --matte-range {wanted}.")


def test_one_matte_of_full_range_keeps_a_small_range_from_stopping() -> None:
    run = [example(number, np.minimum(person(number)[1], 1)) for number in range(8)]
    failure, warning = judge("people", [[*run, example(9, person(9)[1])]])
    assert failure == ""
    assert "8 are suspicious" in warning


def test_empty_mattes_do_not_hide_a_small_range() -> None:
    run = [example(number, np.minimum(person(number)[1], 1) * (number % 2)) for number in range(8)]
    assert "--matte-range 1" in judge("people", [run]).failure


def test_too_small_matte_range_stops() -> None:
    run = [example(number, person(number)[1], 255, opaque=1) for number in range(8)]
    assert "have values above --matte-range 1, up to 255" in judge("people", [run]).failure


def test_inverted_dataset_stops_with_the_option() -> None:
    run = [example(number, 255 - person(number)[1]) for number in range(8)]
    assert "give --invert" in judge("people", [run]).failure


def test_trimaps_stop() -> None:
    run = []
    for number in range(8):
        alpha = person(number)[1].copy()
        alpha[40:60, 20:76] = 128
        alpha[(alpha > 0) & (alpha < 255)] = 128
        run.append(example(number, alpha))
    assert "seem to be trimaps" in judge("people", [run]).failure


@pytest.mark.parametrize("places", [1, -1, 2, -2])
def test_shift_in_the_listing_stops_and_is_told(places: int) -> None:
    failure, _ = judge("people", [shifted(places)])
    where = "before" if places > 0 else "further on"
    count = "1 place" if abs(places) == 1 else "2 places"
    assert failure == (
        "people: mattes fit the photos of other pairs better than their own: from '00.jpg' to '23.jpg', "
        f"photos fit the mattes {count} {where} in the listing."
    )


def test_shift_of_a_part_of_the_listing_is_found() -> None:
    right, wrong = shifted(0), shifted(1)
    assert judge("people", [right[:8], wrong[8:16]]).failure
    assert [bool(shift_of(run)) for run in (right[:8], wrong[8:16])] == [False, True]


def test_shuffled_mattes_stop_where_there_are_enough() -> None:
    assert "the edges of most do not follow" in judge("people", [shifted(7)]).failure
    failure, warning = judge("people", [shifted(7)[:9]])
    assert failure == ""
    assert "the edges of most do not follow" in warning


def test_empty_mattes_may_be_meant() -> None:
    run = [example(number, np.zeros((96, 96), np.uint8)) for number in range(8)]
    assert judge("nobody", [run]) == ("", "nobody: of 8 mattes that were looked at, 8 are empty.")


def test_nothing_to_look_at_says_nothing() -> None:
    assert judge("d", [[]]) == ("", "")
    assert judge("d", [[Example("a", None, None, "image: empty file")]]) == ("", "")
