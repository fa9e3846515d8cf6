"""A picture seen through four windows that overlap, each as large as what a network sees at once, and so finer.

    picture, a third longer on each side than a look -> four windows -> alphas of the windows and of the look, joined

A look judges best what is what, as it has all of the picture before it; the windows see best where its edges are. So
they have their say along the edges only, and half of it. Knows no network and no files.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn import functional

from matting.images import Pixels
from matting.refine import upsample

COUNT = 4
_SAY = 0.5  # of the windows, along the edges
_REACH = 1 / 16  # of the look's shorter side: how far from an edge


def picture_shape(width: int, height: int) -> tuple[int, int]:
    """Of the picture whose windows are of this width and height."""
    return width + width // 3, height + height // 3


def corners(width: int, height: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of each window in the picture."""
    for top in (0, height // 3):
        for left in (0, width // 3):
            yield slice(top, top + height), slice(left, left + width)


def join(look_HW: Pixels, windows_HW: Sequence[Pixels]) -> Pixels:
    """The alpha of the picture.

    Args:
        look_HW: uint8, what the network says of the picture in one look.
        windows_HW: uint8, as large each; what it says of the windows, in the order of :func:`corners`.

    Returns:
        uint8, of the shape of the picture.
    """
    height, width = look_HW.shape
    columns, rows = picture_shape(width, height)
    sums, weights = np.zeros((rows, columns), np.float32), np.zeros((rows, columns), np.float32)
    trust = np.outer(_to_the_border(height), _to_the_border(width))
    for place, alpha_HW in zip(corners(width, height), windows_HW, strict=True):
        sums[place] += trust * alpha_HW
        weights[place] += trust
    look = upsample(look_HW, columns, rows).astype(np.float32)
    say = _SAY * _near_an_edge(look_HW, columns, rows)
    joined: Pixels = np.rint(look + say * (sums / weights - look)).astype(np.uint8)
    return joined


def _to_the_border(length: int) -> np.ndarray:
    """How near the window's middle each pixel of a side is: least at the border, beyond which the window does not see,
    so that none shows in what is joined."""
    return 1 - np.abs(np.arange(length) * 2 + 1 - length).astype(np.float32) / (length + 1)


def _near_an_edge(look_HW: Pixels, columns: int, rows: int) -> np.ndarray:
    """1 where the alpha crosses one half within reach, 0 elsewhere; enlarged."""
    reach = max(1, round(_REACH * min(look_HW.shape)))
    side = 2 * reach + 1
    inside = np.pad(look_HW >= 128, reach, mode="edge")
    # Each square's sum is of four corners of the table of all sums (Crow 1984): a tenth of the time of pooling.
    table = np.pad(inside, ((1, 0), (1, 0))).cumsum(0, np.int32).cumsum(1)
    count = table[side:, side:] - table[:-side, side:] - table[side:, :-side] + table[:-side, :-side]
    crossed = torch.from_numpy(((count > 0) & (count < side * side)).astype(np.float32))[None, None]
    near: np.ndarray = functional.interpolate(crossed, (rows, columns), mode="bilinear")[0, 0].numpy()
    return near
