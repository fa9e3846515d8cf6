"""Squashing, interpolation and guided refinement of whole batches, as matrix products on the device of their tensors.

    pixels_BHWC (uint8)                 -> squash_batch   -> squashed_BHWC (uint8)
    small_alpha_BHW (uint8)             -> upsample_batch -> alpha_BHW (uint8)
    small_alpha_BHW, pixels_BHWC        -> guided_batch   -> alpha_BHW (uint8)

They are the functions of :mod:`matting.inference.refine`, which handle a photo after the other and are faster on CPUs.
Photos of several sizes share a batch: each is padded at its ends, and its own span along rows and columns decides its
matrices. Nothing here reads a value of the device, so that the host never waits for it. All arithmetic is in float32.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from matting.inference.refine import CUBIC, DETAIL, LINEAR, NOISE, SHARPENING, SOLID, SPREAD, local_mean


class Spans(NamedTuple):
    """Rows, or columns, that each photo of a batch covers in a padded tensor.

    Attributes:
        start_B, length_B: First index and number of indices of each photo, float32 on the batch's device.
        size: Number of indices of the padded tensor.
    """

    start_B: Tensor
    length_B: Tensor
    size: int


class Area(NamedTuple):
    """Rows and columns that each photo of a batch covers in a padded tensor."""

    rows: Spans
    columns: Spans


def whole_area(shape: Sequence[int], like_B: Tensor) -> Area:
    """Return the area of photos that all cover height × width pixels, as many as `like_B` has elements."""
    rows, columns = (Spans(torch.zeros_like(like_B), torch.full_like(like_B, length), length) for length in shape[:2])
    return Area(rows, columns)


@torch.inference_mode()
def squash_batch(pixels_BHWC: Tensor, source: Area, width: int, height: int) -> Tensor:
    """Resize the parts of photos that `source` names: uint8 (B, H, W, 3) -> uint8 (B, height, width, 3).

    Equal to :func:`~matting.inference.refine.squash` up to rounding.
    """
    target = whole_area((height, width), source.rows.start_B)
    return _to_bytes(_resample(_to_planes(pixels_BHWC), source, target, LINEAR)).permute(0, 1, 3, 2).contiguous()


@torch.inference_mode()
def upsample_batch(small_alpha_BHW: Tensor, target: Area) -> Tensor:
    """Interpolate alphas: uint8 (B, h, w) -> uint8 (B, H, W), which is 0 outside of `target`.

    Equal to :func:`~matting.inference.refine.upsample` up to rounding.
    """
    return _to_bytes(_interpolate(small_alpha_BHW, target)[:, :, 0])


@torch.inference_mode()
def guided_batch(small_alpha_BHW: Tensor, pixels_BHWC: Tensor, source: Area, target: Area) -> Tensor:
    """Bring alphas to their photos' sizes, with soft edges where the photos' colours change.

    Equal to :func:`~matting.inference.refine.guided` up to rounding, which says how and why.

    Args:
        small_alpha_BHW: Small alphas, uint8, 255 is opaque.
        pixels_BHWC: Photos, padded, uint8 RGB.
        source: Parts of `pixels_BHWC` that the small alphas cover.
        target: Parts of the result that they cover; alpha is 0 elsewhere.

    Returns:
        Alphas (B, H, W), uint8.
    """
    detail = Area(*(_at_most(spans, size) for spans, size in zip(target, small_alpha_BHW.shape[1:], strict=True)))
    shift_BHCW = _alpha_shift(small_alpha_BHW, _to_planes(pixels_BHWC), source, detail)
    shift_BHCW = _resample(shift_BHCW, detail, target, LINEAR)
    return _to_bytes((_interpolate(small_alpha_BHW, target) + shift_BHCW)[:, :, 0].clamp_(0, 1))


def _at_most(target: Spans, small: int) -> Spans:
    """Return spans of the photos' own lengths, but no longer than DETAIL times the small alpha's side."""
    longest = round(DETAIL * small)
    length_B = target.length_B.clamp(max=longest)
    return Spans(torch.zeros_like(length_B), length_B, min(longest, target.size))


def _alpha_shift(small_alpha_BHW: Tensor, image_BHCW: Tensor, source: Area, detail: Area) -> Tensor:
    """Return the shifts of alpha (B, H, 1, W) that explain the photos' colours best; 0 outside of soft pixels."""
    whole = whole_area(small_alpha_BHW.shape[1:], source.rows.start_B)
    photo = _to_bytes(_resample(image_BHCW, source, detail, LINEAR)).float() / 255
    small = (_to_bytes(_resample(photo, detail, whole, LINEAR)).float() / 255).permute(0, 2, 1, 3)
    moments = torch.cat([small, small.square().sum(1, keepdim=True)], 1)
    small_alpha = small_alpha_BHW.float() / 255
    weights = torch.stack([small_alpha, 1 - small_alpha], 1)[:, :, None]
    moments = local_mean(moments[:, None], weights)
    sampled = _resample(moments.flatten(1, 2).permute(0, 2, 1, 3), whole, detail, LINEAR, averages=False)
    front, back = torch.split(sampled, 4, 2)

    alpha = _interpolate(small_alpha_BHW, detail)
    front_color, back_color = front[:, :, :3], back[:, :, :3]
    variance = (front + back)[:, :, 3:] - (front_color.square() + back_color.square()).sum(2, keepdim=True)
    across = front_color - back_color
    residual = photo - back_color - alpha * across
    alpha_variance = alpha * (1 - alpha)
    shift = alpha_variance * (across * residual).sum(2, keepdim=True)
    shift = shift / (alpha_variance * across.square().sum(2, keepdim=True) + SPREAD * variance + NOISE)
    return torch.where((alpha > SOLID) & (alpha < 1 - SOLID), shift, 0)


def _interpolate(small_alpha_BHW: Tensor, target: Area) -> Tensor:
    """Sharpen and interpolate uint8 (B, h, w) -> (B, H, 1, W) in [0, 1]."""
    sharp = _sharpen(small_alpha_BHW.float() / 255, target.rows, 1)
    sharp = _sharpen(sharp, target.columns, 2)
    source = whole_area(small_alpha_BHW.shape[1:], target.rows.start_B)
    return _resample(sharp[:, :, None], source, target, CUBIC).clamp_(0, 1)


def _sharpen(values: Tensor, target: Spans, axis: int) -> Tensor:
    """Undo, along an axis, the averaging of the target's pixels into the pixels that are there."""
    last = values.shape[axis] - 1
    share = SHARPENING * (1 - (values.shape[axis] / target.length_B).clamp(max=1) ** 2)[:, None, None]
    before = torch.cat([values.narrow(axis, 0, 1), values.narrow(axis, 0, last)], axis)
    after = torch.cat([values.narrow(axis, 1, last), values.narrow(axis, last, 1)], axis)
    return (1 + 2 * share) * values - share * (before + after)


def _resample(planes_BHCW: Tensor, source: Area, target: Area, radius: int, averages: bool = True) -> Tensor:
    """Interpolate where the target is larger, average where it is smaller: (B, H, C, W) -> (B, height, C, width).

    Args:
        planes_BHCW: Planes; with the channels between the axes, both passes are single matrix products.
        source, target: Areas of the planes and of the result, which is 0 outside of its area.
        radius: Radius of the filter: CUBIC or LINEAR.
        averages: Whether the filter widens where the target is smaller; without it, this samples points.
    """
    rows_BTS, columns_BTS = (_matrix(*spans, radius, averages) for spans in zip(source, target, strict=True))
    channels, width = planes_BHCW.shape[2:]
    planes = torch.bmm(rows_BTS, planes_BHCW.flatten(2))
    planes = planes.view(len(planes), -1, width)
    planes = torch.bmm(planes, columns_BTS.transpose(1, 2))
    return planes.view(len(planes), -1, channels, target.columns.size)


def _matrix(source: Spans, target: Spans, radius: int, averages: bool) -> Tensor:
    """Return the weight of each of the source's pixels in each of the target's: (B, target, source).

    Literature: Keys, "Cubic convolution interpolation for digital image processing", IEEE TASSP 1981.
    """
    device = source.start_B.device
    index_T = torch.arange(target.size, device=device) - target.start_B[:, None]
    index_S = torch.arange(source.size, device=device) - source.start_B[:, None]
    scale = (source.length_B / target.length_B)[:, None]
    stretch = scale.clamp(min=1) if averages else torch.ones_like(scale)
    distances = ((index_S + 0.5)[:, None] - ((index_T + 0.5) * scale)[:, :, None]).abs_() / stretch[:, None]
    if radius == CUBIC:
        near = (1.5 * distances - 2.5) * distances**2 + 1
        far = ((2.5 - 0.5 * distances) * distances - 4) * distances + 2
        weights = torch.where(distances < 1, near, far)
    else:
        weights = 1 - distances
    weights = torch.where((distances < radius) & _inside(index_S, source)[:, None], weights, 0)
    weights = weights / weights.sum(2, keepdim=True)
    return torch.where(_inside(index_T, target)[:, :, None], weights, 0)


def _inside(index: Tensor, spans: Spans) -> Tensor:
    """Return whether indices, counted from each span's start, are inside of it."""
    return (index >= 0) & (index < spans.length_B[:, None])


def _to_planes(pixels_BHWC: Tensor) -> Tensor:
    """Convert uint8 (B, H, W, 3) to (B, H, 3, W) in [0, 1]."""
    return pixels_BHWC.transpose(2, 3).float().contiguous() / 255


def _to_bytes(values: Tensor) -> Tensor:
    return (values * 255 + 0.5).to(torch.uint8)
