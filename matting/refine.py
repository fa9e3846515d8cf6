"""From what the network sees to what the photo needs: full-size alphas, and cutouts with foreground colours.

    small_alpha_HW (say 128 × 128) -> upsample -> alpha_HW              interpolation alone
    small_alpha_HW, image_HWC      -> guided   -> alpha_HW              the photo's colours move the soft edge
    image_HWC, alpha_HW            -> cutout   -> cutout_HWC (RGBA)     the person without the old background

All uint8 at the border, float32 in [0, 1] inside. A small alpha is the photo's, squashed the way training squashes it.
Knows no network and no files.
"""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from matting.images import Pixels

Floats = NDArray[np.float32]

# Share of the two neighbours that a reduced pixel holds, as far as it can be taken back. A triangle filter's second
# moment gives 1/12; since alpha is nearly binary and clipped afterwards, three times as much is closest to true mattes.
_SHARPENING = 0.25

# The network and `guided` look at the photo at no more than this multiple of the small alpha's size: what is finer is
# noise more often than edge.
DETAIL = 1.6
# The variance of a colour is a multiple of the measured one plus a constant, in units of the variance alpha (1 - alpha)
# that the interpolated alpha is granted.
_SPREAD = 0.5
_NOISE = 0.03

# How far the filters that resample reach, in pixels of the coarser grid: Keys' cubic with a = -0.5, as Pillow's, and
# the triangle of bilinear interpolation.
_CUBIC = 2
_LINEAR = 1

# `cutout`: sides of the pyramid's ends in pixels, and how firmly the layers around a pixel bind its own.
_FINEST = 96
_COARSEST = 8
_TIE = 0.05

# An alpha nearer to 0 or 1 than this counts as clear or solid, and neither alpha nor colour is looked for there.
_SOLID = 0.02


def squash(image_HWC: Pixels, width: int, height: int) -> Pixels:
    """image_HWC at width × height, as `images.resize` does it but for rounding, in a fifth of its time."""
    image_1CHW = torch.from_numpy(image_HWC)[None].permute(0, 3, 1, 2)
    return F.interpolate(image_1CHW, (height, width), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


@torch.inference_mode()  # here and below: for such small pictures, notes for gradients are a tenth of the time
def upsample(small_alpha_HW: Pixels, width: int, height: int) -> Pixels:
    """Interpolate an alpha to width × height pixels.

    Training reduced alpha by averaging, so its pixels are means of an area and not samples: interpolating them as they
    are blurs a second time. That is first undone by a 3-tap sharpening along each axis (none where the photo is no
    larger than the small alpha), then comes bicubic interpolation and clipping.

    Args:
        small_alpha_HW: uint8, 255 is opaque.
        width, height: of the photo, in pixels.

    Returns:
        uint8 of shape (height, width).

    Literature: Unser & Aldroubi, "A general sampling theory for nonideal acquisition devices", IEEE TSP 1994.
    """
    return _to_pixels(_interpolate(_to_floats(small_alpha_HW), width, height))


@torch.inference_mode()
def guided(small_alpha_HW: Pixels, image_HWC: Pixels, width: int, height: int) -> Pixels:
    """Bring an alpha to the photo's size, its soft edge moved to where the photo's colours change.

    Around each pixel of the small alpha, a foreground colour f and a background colour b are the means weighted by
    alpha and 1 - alpha, with variances v. At DETAIL times the small alpha's size, or the photo's own if that is less, a
    soft pixel's colour should be alpha f + (1 - alpha) b; what is left over moves alpha along f - b by its most
    probable amount, given the interpolated alpha with its own variance. Where the layers look alike, or vary much,
    alpha stays as interpolated; so do its clear and solid parts. The movement is then interpolated to the photo's size.

    Args:
        small_alpha_HW: uint8, 255 is opaque.
        image_HWC: uint8 RGB, the photo, or the part of it that the alpha is of, at its own size or reduced; below
            DETAIL times the alpha's, less is seen.
        width, height: of the photo or the part, in pixels.

    Returns:
        uint8 of shape (height, width).

    Literature: the local colour model of Levin, Lischinski & Weiss, "A closed-form solution to natural image matting",
    TPAMI 2008; coefficients at low resolution as in He & Sun, "Fast guided filter", arXiv:1505.00996, 2015.
    """
    small_height, small_width = small_alpha_HW.shape
    at_width, at_height = min(width, round(DETAIL * small_width)), min(height, round(DETAIL * small_height))
    alpha_HW = _interpolate(_to_floats(small_alpha_HW), at_width, at_height)
    soft = _soft_pixels(alpha_HW)

    photo_HWC = squash(image_HWC, at_width, at_height)
    small = _to_planes(squash(photo_HWC, small_width, small_height))
    moments = torch.cat([small, small.square().sum(1, keepdim=True)], 1)
    moments = _mean_around(moments, _shares(_to_planes(small_alpha_HW)))

    front, back = _at(moments, _grid(soft, at_width, at_height))[:, :, 0]
    variance = front[3] + back[3] - (front[:3].square() + back[:3].square()).sum(0)
    alpha = torch.from_numpy(alpha_HW).view(-1)[soft]
    across = front[:3] - back[:3]
    residual = _at_places(photo_HWC, soft)[0, :, 0] - back[:3] - alpha * across
    doubt = alpha * (1 - alpha)
    moved_HW = torch.zeros(at_height, at_width)
    moved_HW.view(-1)[soft] = (
        doubt * (across * residual).sum(0) / (doubt * across.square().sum(0) + _SPREAD * variance + _NOISE)
    )
    if (at_width, at_height) != (width, height):
        alpha_HW = _interpolate(_to_floats(small_alpha_HW), width, height)
        moved_HW = _resample(moved_HW, width, height, _LINEAR)
    return _to_pixels(moved_HW.add_(torch.from_numpy(alpha_HW)).clamp_(0, 1).numpy())


@torch.inference_mode()
def cutout(image_HWC: Pixels, alpha_HW: Pixels) -> Pixels:
    """The person in their own colours, which show no rim of the old background on a new one.

    From the coarsest level of a pyramid to the finest, foreground f and background b are smoothed, each weighted by
    its own opacity, and then moved to explain the photo: image = alpha f + (1 - alpha) b. The photo's own resolution
    gets only the last of these steps, in its soft pixels. Opaque pixels keep the photo's colour exactly; transparent
    ones get the smooth colour of the person nearby, so that the cutout can be scaled without a rim, too.

    Args:
        image_HWC: uint8 RGB.
        alpha_HW: uint8 of the same size, 255 is opaque.

    Returns:
        uint8 RGBA of shape (H, W, 4): colours not multiplied by alpha, and alpha_HW as it is.

    Raises:
        ValueError: sizes that differ.

    Literature: the update is that of Forté, "Approximate fast foreground colour estimation", ICIP 2021, for both
    layers at once; the pyramid in place of two blurs is that of Germer et al., "Fast multi-level foreground
    estimation", ICPR 2020.
    """
    height, width = image_HWC.shape[:2]
    if alpha_HW.shape != (height, width):
        raise ValueError(f"alpha is {alpha_HW.shape}, its image {(height, width)}: upsample the alpha first")
    shrink = max(1, round(min(height, width) / _FINEST))
    image = _to_planes(np.array(Image.fromarray(image_HWC).reduce(shrink)))
    alpha = _to_planes(np.array(Image.fromarray(alpha_HW).reduce(shrink)))
    levels = [(image, alpha)]
    while max(image.shape[2:]) > _COARSEST:
        image, alpha = (F.avg_pool2d(planes, 2, ceil_mode=True) for planes in (image, alpha))
        levels.append((image, alpha))

    layers = image.expand(2, -1, -1, -1)
    for level, (image, alpha) in enumerate(reversed(levels)):
        layers, shares = F.interpolate(layers, image.shape[2:]), _shares(alpha)
        for _ in range(2 if level else 8):  # the coarsest starts from two layers that are alike
            layers = _explain(image, shares, _mean_around(layers, shares))

    smooth_HWC = squash(_to_pixels(layers[0].permute(1, 2, 0).numpy()), width, height)
    picture = Image.fromarray(image_HWC)  # Pillow keeps four bytes a pixel of RGB too, and copies them at once
    picture.paste(Image.fromarray(np.ascontiguousarray(smooth_HWC)), mask=Image.fromarray(alpha_HW < 128))
    picture.putalpha(Image.fromarray(alpha_HW))
    cutout_HWC = np.array(picture)
    opacity_HW = _to_floats(alpha_HW)
    soft = _soft_pixels(opacity_HW)
    layers = _at(layers, _grid(soft, width, height))
    layers = _explain(_at_places(image_HWC, soft), _shares(_column(opacity_HW, soft)), layers)
    cutout_HWC.reshape(-1, 4)[soft, :3] = _to_pixels(layers[0, :, 0].T.numpy())
    return cutout_HWC


def _interpolate(small_alpha_HW: Floats, width: int, height: int) -> Floats:
    sharp_HW = _sharpen(_sharpen(small_alpha_HW, height).T, width).T
    alpha: Floats = _resample(torch.from_numpy(sharp_HW), width, height, _CUBIC).clamp_(0, 1).numpy()
    return alpha


def _sharpen(values: Floats, target: int) -> Floats:
    """Takes back, along the first axis, the averaging of `target` pixels into as many as there are."""
    share = _SHARPENING * (1 - min(1.0, len(values) / target) ** 2)
    before, after = np.concatenate([values[:1], values[:-1]]), np.concatenate([values[1:], values[-1:]])
    sharp: Floats = (1 + 2 * share) * values - share * (before + after)
    return sharp


def _resample(values_HW: Tensor, width: int, height: int, reach: int) -> Tensor:
    """Interpolates, or averages where it reduces: (h, w) -> (height, width)."""
    values_WH = _along(values_HW.T.contiguous(), width, reach)
    return _along(values_WH.T.contiguous(), height, reach)


def _along(values: Tensor, target: int, reach: int) -> Tensor:
    """The same of the first axis: (source, N) -> (target, N)."""
    places, weights = _taps(len(values), target, reach)
    # Weighted sums of a few rows, which is what bags of embeddings are, too. F.interpolate takes four times as long for
    # the two axes: its pass from row to row computes pixel by pixel.
    return F.embedding_bag(places, values, mode="sum", per_sample_weights=weights)


@lru_cache(64)  # photos of one collection are often of a few sizes
def _taps(source: int, target: int, reach: int) -> tuple[Tensor, Tensor]:
    """Which of the `source` pixels each of the `target` ones is the sum of, and with which weights: (target, taps).

    Literature: Keys, "Cubic convolution interpolation for digital image processing", IEEE TASSP 1981.
    """
    scale = source / target
    wide = max(scale, 1.0)
    centres = (np.arange(target)[:, None] + 0.5) * scale
    places = np.floor(centres - reach * wide + 0.5).astype(np.int64) + np.arange(int(2 * reach * wide) + 1)
    distances = np.abs(places + 0.5 - centres) / wide
    if reach == _CUBIC:
        near = (1.5 * distances - 2.5) * distances**2 + 1
        far = ((2.5 - 0.5 * distances) * distances - 4) * distances + 2
        weights = np.where(distances < 1, near, far)
    else:
        weights = 1 - distances
    weights[(distances >= reach) | (places < 0) | (places >= source)] = 0
    weights /= weights.sum(1, keepdims=True)
    return torch.from_numpy(places.clip(0, source - 1)), torch.from_numpy(weights.astype(np.float32))


def _shares(alpha: Tensor) -> Tensor:
    """Of foreground and background in each pixel: (1, 1, H, W) -> (2, 1, H, W)."""
    return torch.cat([alpha, 1 - alpha])


def _explain(image: Tensor, shares: Tensor, layers: Tensor) -> Tensor:
    """The (2, 3, H, W) nearest to `layers` that mix to the image, but for a tie that loosens towards alpha 1."""
    residual = image - (shares * layers).sum(0)
    return (layers + shares * residual / (shares.square().sum(0) + _TIE * shares[1])).clamp(0, 1)


def _mean_around(planes: Tensor, weights: Tensor) -> Tensor:
    """Mean of `planes` over each pixel's 3 × 3, weighted; of all nine alike where there is no weight."""
    weights = weights + 1e-3
    sums = F.pad(torch.cat([planes * weights, weights], 1), (1, 1, 1, 1))
    for _ in range(2):  # twice [1, 1] is [1, 2, 1]
        sums = sums[..., :-1] + sums[..., 1:]
        sums = sums[..., :-1, :] + sums[..., 1:, :]
    return sums[:, :-1] / sums[:, -1:]


def _soft_pixels(alpha_HW: Floats) -> NDArray[np.intp]:
    """Flat indices of what is neither clear nor solid."""
    return np.flatnonzero((alpha_HW > _SOLID) & (alpha_HW < 1 - _SOLID))


def _grid(places: NDArray[np.intp], width: int, height: int) -> Tensor:
    """Flat places of a width × height picture -> (1, 1, N, 2): x, y from -1 to 1."""
    rows, columns = np.divmod(places, width)
    points = np.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], -1)
    return torch.from_numpy(points.astype(np.float32))[None, None]


def _at(planes: Tensor, grid: Tensor) -> Tensor:
    """(B, C, h, w), as if enlarged bilinearly, at the grid's N places only: (B, C, 1, N)."""
    grid = grid.expand(len(planes), -1, -1, -1)
    return F.grid_sample(planes, grid, padding_mode="border", align_corners=False)


def _at_places(image_HWC: Pixels, places: NDArray[np.intp]) -> Tensor:
    """(H, W, 3) uint8, at N flat places -> (1, 3, 1, N) in [0, 1]."""
    return _to_planes(image_HWC.reshape(1, -1, 3)[:, places])


def _column(alpha_HW: Floats, places: NDArray[np.intp]) -> Tensor:
    return torch.from_numpy(alpha_HW.ravel()[places])[None, None, None]


def _to_planes(pixels: Pixels) -> Tensor:
    """(H, W, 3) or (H, W) uint8 -> (1, C, H, W) in [0, 1]."""
    planes = np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))
    return torch.from_numpy(_to_floats(planes))[None]


def _to_floats(pixels: Pixels) -> Floats:
    return np.divide(pixels, 255, dtype=np.float32)


def _to_pixels(values: Floats) -> Pixels:
    return (values * 255 + 0.5).astype(np.uint8)
