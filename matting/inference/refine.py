"""Full-size alphas from small ones, and cutouts with the person's own colours.

    small_alpha_HW (such as 128 × 128) -> upsample -> alpha_HW              interpolation alone
    small_alpha_HW, image_HWC          -> guided   -> alpha_HW              soft edges follow the photo's colours
    image_HWC, alpha_HW                -> cutout   -> cutout_HWC (RGBA)     the person without the old background

Arguments and results are uint8; inside, values are float32 in [0, 1]. A small alpha covers the whole photo, or the part
of it, squashed as training squashes its images. Nothing here knows networks or files.
"""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from matting.data.images import Pixels, multiply

Floats = NDArray[np.float32]

# Fraction of each neighbour in a reduced pixel, as far as sharpening undoes it. The second moment of a triangle filter
# gives 1/12. Three times as much comes closest to true mattes: alpha is nearly binary, and is clipped afterwards.
SHARPENING = 0.25

# `guided` uses the photo at no more than this multiple of the small alpha's size: finer detail is more often noise than
# an edge.
DETAIL = 1.6
# The variance of a layer's colour is the measured one times SPREAD, plus NOISE, in units of alpha (1 - alpha), the
# variance of the interpolated alpha.
SPREAD = 0.5
NOISE = 0.03

# Radius of the resampling filters, in pixels of the coarser grid: Keys' cubic with a = -0.5, which is Pillow's, and the
# triangle of bilinear interpolation.
CUBIC = 2
LINEAR = 1

# `cutout`: shorter side of the pyramid's finest level and longest side of its coarsest one, in pixels, and the weight
# that ties a pixel's layers to those around it.
_FINEST = 96
_COARSEST = 8
_TIE = 0.05

# Pixels whose alpha is nearer to 0 or 1 than this are clear or solid: their alpha and colour are not estimated.
SOLID = 0.02


def squash(image_HWC: Pixels, width: int, height: int) -> Pixels:
    """Resize image_HWC to width × height: `images.resize` up to rounding, in a fifth of its time."""
    image_1CHW = torch.from_numpy(image_HWC)[None].permute(0, 3, 1, 2)
    return F.interpolate(image_1CHW, (height, width), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


@torch.inference_mode()  # here and below: on such small images, autograd's bookkeeping takes a tenth of the time
def upsample(small_alpha_HW: Pixels, width: int, height: int) -> Pixels:
    """Interpolate an alpha to width × height pixels.

    Training reduces alpha by averaging, so the pixels of a small alpha are means over an area rather than samples, and
    plain interpolation would blur a second time. A 3-tap sharpening along each axis undoes the averaging first (not
    where the photo is no larger than the small alpha); bicubic interpolation and clipping follow.

    Args:
        small_alpha_HW: Small alpha, uint8, 255 is opaque.
        width, height: Size of the photo in pixels.

    Returns:
        Alpha of shape (height, width), uint8.

    Literature: Unser & Aldroubi, "A general sampling theory for nonideal acquisition devices", IEEE TSP 1994.
    """
    return _to_pixels(_interpolate(_to_floats(small_alpha_HW), width, height))


@torch.inference_mode()
def guided(small_alpha_HW: Pixels, image_HWC: Pixels, width: int, height: int) -> Pixels:
    """Bring an alpha to the photo's size and move its soft edges to where the photo's colours change.

    Around each pixel of the small alpha, the foreground colour f and the background colour b are means weighted by
    alpha and by 1 - alpha, with variances v. At DETAIL times the small alpha's size (or the photo's own size if that is
    less), a soft pixel's colour should be alpha f + (1 - alpha) b. The residual shifts alpha along f - b by the most
    probable amount, given the interpolated alpha and its own variance. Where the layers look alike or vary much, alpha
    stays as interpolated, and so do its clear and solid parts. Interpolation then brings the shift to the photo's size.

    Args:
        small_alpha_HW: Small alpha, uint8, 255 is opaque.
        image_HWC: Photo, or the part of it that the alpha covers, uint8 RGB, at its own size or reduced. With fewer
            pixels than DETAIL times the alpha's size, edges follow the photo less closely.
        width, height: Size of the photo, or of the part, in pixels.

    Returns:
        Alpha of shape (height, width), uint8.

    Literature: the local colour model of Levin, Lischinski & Weiss, "A closed-form solution to natural image matting",
    TPAMI 2008; coefficients at low resolution as in He & Sun, "Fast guided filter", arXiv:1505.00996, 2015.
    """
    small_height, small_width = small_alpha_HW.shape
    at_width, at_height = min(width, round(DETAIL * small_width)), min(height, round(DETAIL * small_height))
    alpha_HW = _interpolate(_to_floats(small_alpha_HW), at_width, at_height)
    shift_HW = _alpha_shift(alpha_HW, squash(image_HWC, at_width, at_height), small_alpha_HW)
    if (at_width, at_height) != (width, height):
        alpha_HW = _interpolate(_to_floats(small_alpha_HW), width, height)
        shift_HW = _resample(shift_HW, width, height, LINEAR)
    return _to_pixels(shift_HW.add_(torch.from_numpy(alpha_HW)).clamp_(0, 1).numpy())


def _alpha_shift(alpha_HW: Floats, photo_HWC: Pixels, small_alpha_HW: Pixels) -> Tensor:
    """Return the shift of alpha (H, W) that explains the photo's colours best; 0 outside of soft pixels."""
    height, width = alpha_HW.shape
    soft = _soft_pixels(alpha_HW)
    small = _to_planes(squash(photo_HWC, small_alpha_HW.shape[1], small_alpha_HW.shape[0]))
    moments = torch.cat([small, small.square().sum(1, keepdim=True)], 1)
    moments = local_mean(moments, _layer_weights(_to_planes(small_alpha_HW)))

    front, back = _sample(moments, _grid(soft, width, height))[:, :, 0]
    variance = front[3] + back[3] - (front[:3].square() + back[:3].square()).sum(0)
    alpha = torch.from_numpy(alpha_HW).view(-1)[soft]
    across = front[:3] - back[:3]
    residual = _take(photo_HWC, soft)[0, :, 0] - back[:3] - alpha * across
    alpha_variance = alpha * (1 - alpha)
    shift_HW = torch.zeros(height, width)
    shift_HW.view(-1)[soft] = (
        alpha_variance
        * (across * residual).sum(0)
        / (alpha_variance * across.square().sum(0) + SPREAD * variance + NOISE)
    )
    return shift_HW


@torch.inference_mode()
def cutout(image_HWC: Pixels, alpha_HW: Pixels, opacity_HW: Pixels | None = None) -> Pixels:
    """Cut the person out, in their own colours, without a rim of the old background.

    From the coarsest level of a pyramid to the finest, foreground f and background b are smoothed, each weighted by its
    own opacity, and then fitted to the photo: image = alpha f + (1 - alpha) b. At the photo's own resolution, only the
    fit is done, and only in soft pixels. Opaque pixels keep the photo's colour exactly. Transparent ones get the smooth
    colour of the person nearby, so that scaling the cutout leaves no rim either.

    Args:
        image_HWC: Photo, uint8 RGB.
        alpha_HW: Alpha of the same size, uint8, 255 is opaque.
        opacity_HW: The photo's own opacity, of the same size, uint8; None if all of it is opaque. The photo's colours
            are not mixed with anything there, but where its opacity is 0 they are hidden, and so left out.

    Returns:
        Cutout, uint8 RGBA of shape (H, W, 4): colours not multiplied by alpha, and alpha_HW, unchanged or multiplied
        with `opacity_HW`.

    Raises:
        ValueError: The sizes differ.

    Literature: the update of Forté, "Approximate fast foreground colour estimation", ICIP 2021, for both layers at
    once; the pyramid of Germer et al., "Fast multi-level foreground estimation", ICPR 2020, in place of two blurs.
    """
    height, width = image_HWC.shape[:2]
    if alpha_HW.shape != (height, width):
        raise ValueError(f"alpha is {alpha_HW.shape}, its image {(height, width)}: upsample the alpha first")
    shown_HW = alpha_HW if opacity_HW is None else multiply(alpha_HW, opacity_HW)
    layers = _smooth_layers(image_HWC, shown_HW)
    smooth_HWC = squash(_to_pixels(layers[0].permute(1, 2, 0).numpy()), width, height)
    canvas = Image.fromarray(image_HWC)  # Pillow stores RGB in four bytes a pixel and copies them at once
    is_smooth_HW = alpha_HW < 128 if opacity_HW is None else (alpha_HW < 128) | (opacity_HW == 0)
    canvas.paste(Image.fromarray(np.ascontiguousarray(smooth_HWC)), mask=Image.fromarray(is_smooth_HW))
    canvas.putalpha(Image.fromarray(shown_HW))
    cutout_HWC = np.array(canvas)
    mixed_HW = _to_floats(alpha_HW if opacity_HW is None else np.where(opacity_HW > 0, alpha_HW, 0))
    soft = _soft_pixels(mixed_HW)
    layers = _sample(layers, _grid(soft, width, height))
    layers = _fit_layers(_take(image_HWC, soft), _layer_weights(_take_alpha(mixed_HW, soft)), layers)
    cutout_HWC.reshape(-1, 4)[soft, :3] = _to_pixels(layers[0, :, 0].T.numpy())
    return cutout_HWC


def _smooth_layers(image_HWC: Pixels, alpha_HW: Pixels) -> Tensor:
    """Estimate smooth foreground and background colours, (2, 3, h, w), from the coarsest to the finest level."""
    shrink = max(1, round(min(alpha_HW.shape) / _FINEST))
    image = _to_planes(np.array(Image.fromarray(image_HWC).reduce(shrink)))
    alpha = _to_planes(np.array(Image.fromarray(alpha_HW).reduce(shrink)))
    levels = [(image, alpha)]
    while max(image.shape[2:]) > _COARSEST:
        image, alpha = (F.avg_pool2d(planes, 2, ceil_mode=True) for planes in (image, alpha))
        levels.append((image, alpha))

    layers = image.expand(2, -1, -1, -1)
    for level, (image, alpha) in enumerate(reversed(levels)):
        layers, weights = F.interpolate(layers, image.shape[2:]), _layer_weights(alpha)
        for _ in range(2 if level else 8):  # more steps at the coarsest level, where both layers start equal
            layers = _fit_layers(image, weights, local_mean(layers, weights))
    return layers


def _interpolate(small_alpha_HW: Floats, width: int, height: int) -> Floats:
    sharp_HW = _sharpen(_sharpen(small_alpha_HW, height).T, width).T
    alpha: Floats = _resample(torch.from_numpy(sharp_HW), width, height, CUBIC).clamp_(0, 1).numpy()
    return alpha


def _sharpen(values: Floats, target: int) -> Floats:
    """Undo, along the first axis, the averaging of `target` pixels into the pixels that are there."""
    share = SHARPENING * (1 - min(1.0, len(values) / target) ** 2)
    before, after = np.concatenate([values[:1], values[:-1]]), np.concatenate([values[1:], values[-1:]])
    sharp: Floats = (1 + 2 * share) * values - share * (before + after)
    return sharp


def _resample(values_HW: Tensor, width: int, height: int, radius: int) -> Tensor:
    """Interpolate where the target is larger, average where it is smaller: (h, w) -> (height, width)."""
    values_WH = _resample_rows(values_HW.T.contiguous(), width, radius)
    return _resample_rows(values_WH.T.contiguous(), height, radius)


def _resample_rows(values: Tensor, target: int, radius: int) -> Tensor:
    """Resample the first axis: (source, N) -> (target, N)."""
    taps, weights = _filter_taps(len(values), target, radius)
    # Each result is a weighted sum of a few rows, which is a bag of embeddings. F.interpolate takes four times as long
    # for the two axes, because its pass from row to row computes pixel by pixel.
    return F.embedding_bag(taps, values, mode="sum", per_sample_weights=weights)


@lru_cache(64)  # the photos of a collection often share a few sizes
def _filter_taps(source: int, target: int, radius: int) -> tuple[Tensor, Tensor]:
    """Return, for each of the `target` pixels, indices of the `source` pixels to sum and their weights: (target, taps).

    Literature: Keys, "Cubic convolution interpolation for digital image processing", IEEE TASSP 1981.
    """
    scale = source / target
    stretch = max(scale, 1.0)
    centres = (np.arange(target)[:, None] + 0.5) * scale
    taps = np.floor(centres - radius * stretch + 0.5).astype(np.int64) + np.arange(int(2 * radius * stretch) + 1)
    distances = np.abs(taps + 0.5 - centres) / stretch
    if radius == CUBIC:
        near = (1.5 * distances - 2.5) * distances**2 + 1
        far = ((2.5 - 0.5 * distances) * distances - 4) * distances + 2
        weights = np.where(distances < 1, near, far)
    else:
        weights = 1 - distances
    weights[(distances >= radius) | (taps < 0) | (taps >= source)] = 0
    weights /= weights.sum(1, keepdims=True)
    return torch.from_numpy(taps.clip(0, source - 1)), torch.from_numpy(weights.astype(np.float32))


def _layer_weights(alpha: Tensor) -> Tensor:
    """Return the weights of foreground and background in each pixel: (1, 1, H, W) -> (2, 1, H, W)."""
    return torch.cat([alpha, 1 - alpha])


def _fit_layers(image: Tensor, weights: Tensor, layers: Tensor) -> Tensor:
    """Return the colours (2, 3, H, W) nearest to `layers` that mix to the image; the tie loosens near alpha 1."""
    residual = image - (weights * layers).sum(0)
    return (layers + weights * residual / (weights.square().sum(0) + _TIE * weights[1])).clamp(0, 1)


def local_mean(planes: Tensor, weights: Tensor) -> Tensor:
    """Average `planes` over each pixel's 3 × 3, weighted; evenly where all nine weights are 0.

    Args:
        planes: Planes (…, C, H, W).
        weights: Weights (…, 1, H, W); the leading axes broadcast.
    """
    weights = weights + 1e-3
    planes = planes * weights
    sums = F.pad(torch.cat([planes, weights.expand(*planes.shape[:-3], *weights.shape[-3:])], -3), (1, 1, 1, 1))
    for _ in range(2):  # twice [1, 1] is [1, 2, 1]
        sums = sums[..., :-1] + sums[..., 1:]
        sums = sums[..., :-1, :] + sums[..., 1:, :]
    return sums[..., :-1, :, :] / sums[..., -1:, :, :]


def _soft_pixels(alpha_HW: Floats) -> NDArray[np.intp]:
    """Return flat indices of the pixels that are neither clear nor solid."""
    return np.flatnonzero((alpha_HW > SOLID) & (alpha_HW < 1 - SOLID))


def _grid(indices: NDArray[np.intp], width: int, height: int) -> Tensor:
    """Convert flat indices of a width × height image to x, y in [-1, 1]: (1, 1, N, 2)."""
    rows, columns = np.divmod(indices, width)
    points = np.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], -1)
    return torch.from_numpy(points.astype(np.float32))[None, None]


def _sample(planes: Tensor, grid: Tensor) -> Tensor:
    """Enlarge (B, C, h, w) bilinearly, at the N points of the grid only: (B, C, 1, N)."""
    grid = grid.expand(len(planes), -1, -1, -1)
    return F.grid_sample(planes, grid, padding_mode="border", align_corners=False)


def _take(image_HWC: Pixels, indices: NDArray[np.intp]) -> Tensor:
    """Return the pixels of (H, W, 3) uint8 at N flat indices: (1, 3, 1, N) in [0, 1]."""
    return _to_planes(image_HWC.reshape(1, -1, 3)[:, indices])


def _take_alpha(alpha_HW: Floats, indices: NDArray[np.intp]) -> Tensor:
    return torch.from_numpy(alpha_HW.ravel()[indices])[None, None, None]


def _to_planes(pixels: Pixels) -> Tensor:
    """Convert (H, W, 3) or (H, W) uint8 to (1, C, H, W) in [0, 1]."""
    planes = np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))
    return torch.from_numpy(_to_floats(planes))[None]


def _to_floats(pixels: Pixels) -> Floats:
    return np.divide(pixels, 255, dtype=np.float32)


def _to_pixels(values: Floats) -> Pixels:
    return (values * 255 + 0.5).astype(np.uint8)
