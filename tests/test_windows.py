"""windows: they see edges finer, and have no say elsewhere."""

import numpy as np
import pytest

from matting import windows
from matting.images import Pixels
from matting.refine import squash, upsample

SHAPES = [(48, 48), (60, 36), (36, 60), (49, 32)]


def rings(width: int, height: int) -> Pixels:
    """A person, as far as an alpha goes: a ring with soft edges."""
    rows, columns = (np.mgrid[:height, :width] + 0.5) / np.array([height, width])[:, None, None]
    away = np.abs(np.hypot(rows - 0.6, columns - 0.5) - 0.35)
    return np.rint(255 * np.clip((0.1 - away) * 30 + 0.5, 0, 1)).astype(np.uint8)


def seen(alpha_HW: Pixels, width: int, height: int) -> Pixels:
    """As the network would, in one look."""
    return squash(np.repeat(alpha_HW[..., None], 3, axis=2), width, height)[..., 0]


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_the_windows_are_as_large_as_a_look_and_cover_the_picture(width: int, height: int) -> None:
    columns, rows = windows.picture_shape(width, height)
    assert (columns / width, rows / height) == pytest.approx((4 / 3, 4 / 3), abs=0.03)
    times = np.zeros((rows, columns), int)
    places = list(windows.corners(width, height))
    for place in places:
        assert times[place].shape == (height, width)
        times[place] += 1
    assert len(places) == windows.COUNT
    assert times.min() == 1
    assert times.max() == 4


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_windows_that_say_what_the_look_says_change_nothing(width: int, height: int) -> None:
    look = seen(rings(300, 300), width, height)
    enlarged = upsample(look, *windows.picture_shape(width, height))
    joined = windows.join(look, [enlarged[place] for place in windows.corners(width, height)])
    np.testing.assert_array_equal(joined, enlarged)


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_windows_that_see_more_bring_the_edges_halfway_to_it(width: int, height: int) -> None:
    columns, rows = windows.picture_shape(width, height)
    true_alpha = rings(columns, rows)
    look = np.where(seen(true_alpha, width, height) >= 128, 255, 0).astype(np.uint8)  # one that sees no soft edge
    enlarged = upsample(look, columns, rows).astype(int)
    joined = windows.join(look, [true_alpha[place] for place in windows.corners(width, height)])
    edge = np.abs(enlarged - true_alpha) > 32
    assert edge.mean() > 0.05
    np.testing.assert_allclose(joined[edge], (enlarged[edge] + true_alpha[edge]) / 2, atol=4)  # at its ends, say fades


def test_where_the_look_sees_no_edge_the_windows_have_no_say() -> None:
    look = np.zeros((48, 48), np.uint8)
    look[:, 24:] = 255
    joined = windows.join(look, [np.full((48, 48), 128, np.uint8)] * windows.COUNT)
    enlarged = upsample(look, 64, 64)
    near = round(64 / 16) + 3  # the reach, and what enlarging it adds
    np.testing.assert_array_equal(joined[:, : 32 - near], enlarged[:, : 32 - near])
    np.testing.assert_array_equal(joined[:, 32 + near :], enlarged[:, 32 + near :])
    assert np.abs(joined[:, 30:34].astype(int) - enlarged[:, 30:34]).min() > 10
    blank = np.full((48, 48), 40, np.uint8)
    np.testing.assert_array_equal(windows.join(blank, [look] * windows.COUNT), np.full((64, 64), 40))


def test_no_border_of_a_window_shows() -> None:
    look = np.zeros((48, 48), np.uint8)
    look[::2] = 255  # edges all over: the windows have a say everywhere
    said = [np.full((48, 48), value, np.uint8) for value in (0, 80, 160, 255)]
    joined = windows.join(look, said).astype(int) - windows.join(look, [said[0]] * windows.COUNT)
    assert joined.max() > 100
    assert np.abs(np.diff(joined, axis=1)).max() <= 12
    assert np.abs(np.diff(joined, axis=0)).max() <= 12
