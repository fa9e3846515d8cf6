"""Look at one decoded pair: does the matte have the values of a matte, and does it belong to its photo?

    image_HWC, alpha_HW, range of the stored values -> look_at_pair -> PairLook -> suspicion: what is wrong, or ""

The thresholds were set on 2,156 real pairs of ten datasets: portraits, crowds and street scenes, with hand-drawn
polygons, hard masks and soft mattes. 0.6 % of these pairs are called suspicious; 83 % are when each photo has the matte
of another one, 90 % when mattes are inverted, and all when they are trimaps.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matting.data.images import Pixels

LOOK_SIDE = 160  # pixels of the longer side at which a pair is looked at; the thresholds are for this size
MIN_LOOK_SIDE = 128  # squashed pairs of a smaller side are too coarse to look at

MIN_AGREEMENT = 0.55
_EDGE_POINTS = 128  # points of a matte's edge that are compared with the photo
_MIN_EDGE_POINTS = 40  # fewer say nothing: there is hardly anybody, or the image is tiny
_REACH = 8  # pixels that are compared on either side of an edge
_WINDOW = 3  # pixels along an edge's normal in which the photo's edge may lie
_ALONG = np.arange(-_REACH, _REACH + 1, dtype=np.float32)
_NEAR = 3  # pixels around an edge point whose alphas give the normal
_NEAR_ROWS, _NEAR_COLUMNS = (offsets.ravel() for offsets in np.mgrid[-_NEAR : _NEAR + 1, -_NEAR : _NEAR + 1])

_GREY_RANGE = (8, 247)
_MIN_BAND = 1.0  # pixels of one grey per pixel of the edge, from which a matte looks like a trimap; mattes have < 0.6
_MIN_ONE_GREY = 0.8  # share of one grey among all greys, from which they are a band; mattes have less than 0.5
_MIN_GREY_SHARE = 0.01  # share of that grey among all pixels, from which it matters


@dataclass(frozen=True)
class PairLook:
    """Measurements of a pair.

    Args:
        peak: Largest stored value of the matte.
        opaque: Stored value that is read as opaque: 255 for 8 bits a pixel, 65535 for 16, or as the user says.
        lowest, highest: Smallest and largest alpha, 0 … 255, of evenly spaced pixels.
        band: Pixels of the most frequent grey, and of those almost as grey, per pixel of the matte's edge, if they are
            most of all greys; else 0. Trimaps have wide bands of one grey.
        border, centre: Mean alpha along the upper half of the image's border, and in its middle; in [0, 1].
        agreement: Agreement of the matte's edges with the photo's, in [0, 1]; see `edge_agreement`.
    """

    peak: int
    opaque: int
    lowest: int
    highest: int
    band: float
    border: float
    centre: float
    agreement: float

    @property
    def is_dark(self) -> bool:
        """Whether no stored value reaches half of what is read as opaque, as in a matte of 0 and 1."""
        return 0 < self.peak < self.opaque / 2

    @property
    def is_inverted(self) -> bool:
        """Whether the background seems opaque: the border is, and more so than the middle."""
        return self.border - self.centre > (0.02 if self.border > 0.85 else 0.4)

    @property
    def is_trimap(self) -> bool:
        """Whether a wide band of one grey lies along the edges."""
        return self.band > _MIN_BAND

    @property
    def is_foreign(self) -> bool:
        """Whether the photo has no edges where the matte has them, so that it seems to be of another photo."""
        return self.agreement < MIN_AGREEMENT


def suspicion(look: PairLook) -> str:
    """Return in one line what seems to be wrong with a pair, or "" if nothing does."""
    if look.peak > look.opaque:
        return f"matte: has values up to {look.peak}, above --matte-range {look.opaque}"
    if look.is_dark:
        return f"matte: no value above {look.peak}, where {look.opaque} is opaque"
    if look.highest == 0:
        return "matte: empty, nobody is in it"
    if look.lowest >= 128:
        return f"matte: opaque everywhere, no value below {look.lowest}"
    if look.is_trimap:
        return "matte: wide bands of one grey, like a trimap"
    if look.is_inverted:
        return f"matte: seems inverted, its border is {look.border:.0%} opaque and its middle {look.centre:.0%}"
    if look.is_foreign:
        return f"matte: its edges do not follow the photo's (agreement {look.agreement:.2f}): of another photo?"
    return ""


def look_at_pair(
    image_HWC: Pixels, alpha_HW: Pixels, peak: int, opaque: int, squashed: tuple[Pixels, Pixels] | None = None
) -> PairLook:
    """Measure a pair.

    Args:
        image_HWC: Photo, uint8 RGB.
        alpha_HW: Alpha, uint8, as the matte was read; of any size.
        peak: Largest stored value of the matte.
        opaque: Stored value that is read as opaque.
        squashed: The same pair at training size. Edges are looked for there if it is not too small.
    """
    small_HW = small_alpha(alpha_HW)
    lowest, highest = small_HW.min(), small_HW.max()
    border, centre = border_and_centre(small_HW)
    if squashed and max(squashed[1].shape) >= MIN_LOOK_SIDE:
        agreement = edge_agreement(squashed[0], small_alpha(squashed[1]))
    else:
        agreement = edge_agreement(image_HWC, small_HW)
    return PairLook(
        peak=peak,
        opaque=opaque,
        lowest=int(lowest if lowest < 128 else alpha_HW.min()),  # the whole matte is read only if it matters
        highest=int(highest or alpha_HW.max()),
        band=grey_band(small_HW),
        border=border,
        centre=centre,
        agreement=agreement,
    )


def grey_band(alpha_HW: Pixels) -> float:
    """Return the width of the band of one grey along the edges, in pixels; 0 if greys vary, as in mattes."""
    counts = np.bincount(alpha_HW.ravel(), minlength=256)
    greys = counts[_GREY_RANGE[0] : _GREY_RANGE[1] + 1]
    most = _GREY_RANGE[0] + int(greys.argmax())
    one_grey = counts[max(most - 4, _GREY_RANGE[0]) : most + 5].sum()  # JPEG moves values a little
    if one_grey < max(_MIN_ONE_GREY * greys.sum(), _MIN_GREY_SHARE * alpha_HW.size):
        return 0.0
    inside = alpha_HW >= 128
    edge = np.count_nonzero(inside[1:] != inside[:-1]) + np.count_nonzero(inside[:, 1:] != inside[:, :-1])
    return float(one_grey / max(edge, 1))


def border_and_centre(alpha_HW: Pixels) -> tuple[float, float]:
    """Return the mean alpha along the border's upper half, a sixteenth wide, and of the middle; in [0, 1].

    People who stand at the lower border are no sign of inversion, so that half does not count.
    """
    height, width = alpha_HW.shape
    rows, columns, half = max(1, height // 16), max(1, width // 16), max(1, height // 2)
    parts = (alpha_HW[:rows], alpha_HW[rows:half, :columns], alpha_HW[rows:half, -columns:])
    border = sum(float(part.sum()) for part in parts) / sum(part.size for part in parts)
    centre = alpha_HW[height // 4 : height - height // 4, width // 4 : width - width // 4]
    return border / 255, float(centre.mean()) / 255


def edge_agreement(image_HWC: Pixels, alpha_HW: Pixels) -> float:
    """Return how well the edges of a matte follow edges of an image.

    At points of the matte's edge, the photo's colours are read along the normal. Agreement is the fraction of
    comparisons in which the largest step within a window at the edge is larger than that in a window beside it. The
    mattes of other photos have about 0.5, whatever the photo's contrast; hand-drawn polygons have 0.65 to 0.8 at
    `LOOK_SIDE`, mattes 0.8 to 0.9.

    Args:
        image_HWC: Photo, uint8 RGB, of any size.
        alpha_HW: Alpha, uint8, of the size at which to look.

    Returns:
        Agreement in [0, 1]; NaN if the matte has too little edge to tell.
    """
    height, width = alpha_HW.shape
    points = _edge_points(alpha_HW)
    if len(points) < _MIN_EDGE_POINTS:
        return float("nan")
    near_PN = alpha_HW.ravel().take(points[:, None] + (_NEAR_ROWS * width + _NEAR_COLUMNS)).astype(np.float32)
    down_P, right_P = (near_PN @ offsets.astype(np.float32) for offsets in (_NEAR_ROWS, _NEAR_COLUMNS))
    length_P = np.maximum(np.hypot(down_P, right_P), 1e-6)  # where there is no normal, the colours beside are the same
    rows_PT = points[:, None] // width + (down_P / length_P)[:, None] * _ALONG
    columns_PT = points[:, None] % width + (right_P / length_P)[:, None] * _ALONG
    is_in_PT = (rows_PT > -0.5) & (rows_PT < height - 0.5) & (columns_PT > -0.5) & (columns_PT < width - 0.5)
    places_PT = _places(rows_PT, height, image_HWC.shape[0]) * image_HWC.shape[1]
    places_PT += _places(columns_PT, width, image_HWC.shape[1])
    profile_PTC = image_HWC.reshape(-1, 3).take(places_PT, axis=0).astype(np.int16)
    steps_PTC = np.abs(profile_PTC[:, 2:] - profile_PTC[:, :-2])
    steps_PT = steps_PTC[..., 0] + steps_PTC[..., 1] + steps_PTC[..., 2]
    steps_PT[~(is_in_PT[:, 2:] & is_in_PT[:, :-2])] = -1  # outside of the image
    windows_PKW = steps_PT.reshape(len(points), -1, _WINDOW)
    largest_PK = np.where(windows_PKW.min(axis=2) < 0, -1, windows_PKW.max(axis=2))
    middle = largest_PK.shape[1] // 2
    own, beside = largest_PK[:, middle : middle + 1], np.delete(largest_PK, middle, axis=1)
    larger = np.where(own == beside, 0.5, own > beside)[(own >= 0) & (beside >= 0)]
    return float(larger.mean()) if larger.size else float("nan")


def _edge_points(alpha_HW: Pixels) -> NDArray[np.intp]:
    """Return places of pixels on the edge, in the flat array: all of them, or `_EDGE_POINTS` evenly chosen ones."""
    inside = alpha_HW >= 128
    edge = np.zeros(alpha_HW.shape, bool)
    margin = slice(_NEAR, -_NEAR)
    here = inside[margin, margin]
    edge[margin, margin] = here != inside[margin, _NEAR - 1 : -_NEAR - 1]
    edge[margin, margin] |= here != inside[_NEAR - 1 : -_NEAR - 1, margin]
    points = np.flatnonzero(edge)
    return points[np.linspace(0, len(points) - 1, min(len(points), _EDGE_POINTS)).astype(np.intp)]


def _places(positions: NDArray[np.floating], length: int, image_length: int) -> NDArray[np.intp]:
    """Return the rows (or columns) of the image at positions among the rows of an alpha, which may be smaller."""
    places: NDArray[np.intp] = ((positions + 0.5) * (image_length / length)).astype(np.intp)
    return places.clip(0, image_length - 1, out=places)


def small_alpha(alpha_HW: Pixels) -> Pixels:
    """Return evenly spaced pixels, `LOOK_SIDE` along the longer side; or the alpha itself if it is smaller.

    No values are mixed, so a trimap keeps its three.
    """
    height, width = alpha_HW.shape
    if max(height, width) <= LOOK_SIDE:
        return alpha_HW
    size = [max(1, round(length * LOOK_SIDE / max(height, width))) for length in (height, width)]
    rows, columns = (
        ((np.arange(small) + 0.5) * (length / small)).astype(np.intp)
        for small, length in zip(size, (height, width), strict=True)
    )
    taken_HW: Pixels = alpha_HW.take(rows, axis=0).take(columns, axis=1)
    return taken_HW
