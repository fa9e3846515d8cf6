"""Input shapes by the width over height of a photo."""

import pytest

from matting.inference.input_shapes import input_shape
from matting.nn.checkpoint import Aspects


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
        (16 / 9, (0.75, 1.5), (160, 160)),  # in training, such photos were squashed to squares as well
        (0.54, (0.75, 1.0), (160, 160)),
        (0.53, (0.75, 1.0), (128, 192)),
        (0.46, (0.75, 1.0), (128, 192)),
        (0.45, (0.75, 1.0), (96, 192)),
        (0.001, (0.75, 1.0), (96, 192)),
        (0.53, (0.5, 1.0), (160, 160)),
    ],
)
def test_wide_and_tall_photos_get_rectangles(aspect: float, learned: Aspects | None, shape: tuple[int, int]) -> None:
    assert input_shape(aspect, 160, learned) == shape
