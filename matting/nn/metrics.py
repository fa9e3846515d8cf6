"""Metrics of predicted alphas, as the matting literature reports them.

(pred_alpha_HW, true_alpha_HW) uint8 -> {"mad": …, "mse": …, "sad": …, "grad": …, "conn": …, "iou": …} per image, in the
units of METRICS -> MetricSums -> mean over images. Both alphas have the size of `true_alpha`, and every pixel counts:
there is no trimap. `batch_metrics` computes the cheap metrics on tensors, for validation during training; `coverage`
and `confidence` need no true alpha.

This module has no models, no workers and no files: callers resize predictions, and merge the sums of workers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True)
class Metric:
    """Label of a metric in reports. In `formula`, d is pred_alpha - true_alpha, both in [0, 1]."""

    name: str
    formula: str
    unit: str
    better: Literal["lower", "higher"]


METRICS: Final = {
    "mad": Metric("MAD", "mean |d|", "×1e-3", "lower"),
    "mse": Metric("MSE", "mean d²", "×1e-3", "lower"),
    "sad": Metric("SAD", "Σ |d| / 1000", "thousands of pixels", "lower"),
    "grad": Metric("Grad", "Σ (Δ gradient magnitude, σ = 1.4)² / 1000", "/1000", "lower"),
    "conn": Metric("Conn", "Σ |Δ connectivity φ| / 1000", "/1000", "lower"),
    "iou": Metric("IoU", "|intersection| / |union| of alpha ≥ 0.5", "1", "higher"),
}

GRAD_SIGMA = 1.4
GRAD_RADIUS = 4  # first whole pixel at which the Gaussian of that sigma is under 1e-2
CONN_THRESHOLDS = np.arange(0, 1.1, 0.1)  # float64, so that one is 0.6000000000000001
CONN_DEAD_ZONE = 0.15
IOU_THRESHOLD = 0.5

Alpha = npt.NDArray[np.float32]


def coverage(alpha_HW: npt.NDArray[np.uint8]) -> float:
    """Return the mean alpha in [0, 1]: the fraction of the image that shows people."""
    return _mean(alpha_HW) / 255


def confidence(alpha_HW: npt.NDArray[np.uint8]) -> float:
    """Return the mean of |2 alpha - 1| of a predicted alpha, in [0, 1]; 1 if every pixel is transparent or opaque.

    It needs no true alpha and ranks photos: the lower it is, the likelier is a bad matte.
    """
    farther = np.maximum(alpha_HW, ~alpha_HW)  # |2 alpha - 1| = 2 max(alpha, 1 - alpha) - 1, and ~a is 255 - a
    return 2 * _mean(farther) / 255 - 1


def _mean(values_HW: npt.NDArray[np.uint8]) -> float:
    # The sum of a row fits in 32 bits. numpy's own mean adds in float64, which takes three times as long.
    return float(values_HW.sum(axis=1, dtype=np.uint32).sum() / values_HW.size)


def risk_coverage_area(errors: Sequence[float], confidences: Sequence[float]) -> float:
    """Return the area under the risk-coverage curve (Geifman and El-Yaniv, Selective Classification, NIPS 2017).

    The curve shows the mean error of the n images with the highest confidences, over n; the area is its mean, in the
    unit of the errors. For a confidence without information it is the mean error; it is least for a confidence that
    orders the images as their errors do.

    Args:
        errors: Error of each image; at least one.
        confidences: Confidence of each image, in the same order.
    """
    order = np.argsort(-np.asarray(confidences), kind="stable")
    covered = np.cumsum(np.asarray(errors)[order]) / np.arange(1, len(order) + 1)
    return float(covered.mean())


def image_metrics(pred_alpha_HW: npt.NDArray[np.uint8], true_alpha_HW: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Return all of METRICS for one image, in their reported units.

    If no alpha reaches 0.5 in either, both show nobody, and IoU is 1. A constant alpha cannot be normalized by its
    range; Grad takes it as 0 everywhere, since it has no gradient on any scale.

    Args:
        pred_alpha_HW: Predicted alpha, uint8, 255 is opaque.
        true_alpha_HW: True alpha, uint8, of the same shape.

    Raises:
        ValueError: An alpha is not uint8 or not two-dimensional, or their shapes differ.

    Literature: Rhemann et al., "A perceptually motivated online benchmark for image matting", CVPR 2009 (Grad, Conn).
    """
    pred_dtype, true_dtype = pred_alpha_HW.dtype, true_alpha_HW.dtype
    pred_shape, true_shape = pred_alpha_HW.shape, true_alpha_HW.shape
    if not (pred_dtype == true_dtype == np.uint8 and pred_shape == true_shape and len(true_shape) == 2):
        raise ValueError(
            f"pred_alpha is {pred_dtype} {pred_shape}, true_alpha is {true_dtype} {true_shape}; "
            "expected uint8 (H, W) twice: resize pred_alpha to true_alpha and round it to 0..255"
        )
    # In float32, as in the published evaluators, 153/255 reaches Conn's threshold of 0.6; in float64 it would not.
    pred, true = (alpha_HW.astype(np.float32) / np.float32(255) for alpha_HW in (pred_alpha_HW, true_alpha_HW))
    difference = np.abs(pred - true)
    return {
        "mad": float(difference.mean()) * 1e3,
        "mse": float(np.square(difference).mean()) * 1e3,
        "sad": float(difference.sum()) / 1e3,
        "grad": float(np.square(_gradient_magnitude(pred) - _gradient_magnitude(true)).sum()) / 1e3,
        "conn": _connectivity_error(pred, true) / 1e3,
        "iou": _iou(pred, true),
    }


def batch_metrics(pred_alpha_BHW: torch.Tensor, true_alpha_BHW: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return MAD, MSE and IoU per image, in their reported units, computed on the device of the alphas.

    On multiples of 1/255 the values are those of image_metrics, up to float32.

    Args:
        pred_alpha_BHW: Predicted alphas, float in [0, 1].
        true_alpha_BHW: True alphas, float in [0, 1], of the same shape.

    Returns:
        {"mad", "mse", "iou"}, each a tensor of length B.

    Raises:
        ValueError: An alpha is not three-dimensional, or their shapes differ (which would broadcast).
    """
    if pred_alpha_BHW.ndim != 3 or pred_alpha_BHW.shape != true_alpha_BHW.shape:
        raise ValueError(
            f"pred_alpha is {tuple(pred_alpha_BHW.shape)}, true_alpha is {tuple(true_alpha_BHW.shape)}; "
            "expected (B, H, W) twice: drop the channel axis"
        )
    pred, true = pred_alpha_BHW.flatten(1), true_alpha_BHW.flatten(1)
    difference = pred - true
    pred_inside, true_inside = pred >= IOU_THRESHOLD, true >= IOU_THRESHOLD
    intersection = (pred_inside & true_inside).sum(1)
    union = (pred_inside | true_inside).sum(1)
    return {
        "mad": difference.abs().mean(1) * 1e3,
        "mse": difference.square().mean(1) * 1e3,
        "iou": torch.where(union > 0, intersection / union, 1.0),
    }


@dataclass
class MetricSums:
    """Sums of metrics over images. They are divided once, at the end, so that a mean over workers is one over images.

    Args:
        sums: Sum of each metric.
        n: Number of images.
    """

    sums: dict[str, float] = field(default_factory=dict)
    n: int = 0

    def add(self, values: Mapping[str, float], n: int = 1) -> None:
        """Add the values of one image, or sums of the values of `n` images.

        Raises:
            ValueError: The names differ from those added before, so that one count does not fit all metrics.
        """
        if self.sums and values.keys() != self.sums.keys():
            raise ValueError(f"got the metrics {sorted(values)}, expected {sorted(self.sums)} as in the calls before")
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in values.items()}
        self.n += n

    def merge(self, other: "MetricSums") -> None:
        """Add the sums of another worker, which may be empty."""
        if other.n:
            self.add(other.sums, other.n)

    def mean(self) -> dict[str, float]:
        """Return the mean of each metric over all images, and the number of images as "n".

        Raises:
            ValueError: No image was added.
        """
        if not self.n:
            raise ValueError("no image was measured, so there is no mean; check that the split is not empty")
        return {"n": self.n} | {name: total / self.n for name, total in self.sums.items()}


def _gradient_magnitude(alpha_HW: Alpha) -> Alpha:
    """Return the gradient magnitude of the min-max normalized alpha, filtered by a Gaussian derivative of unit norm."""
    from scipy import ndimage  # here, so that a training worker, which only calls batch_metrics, does not load it

    normalized = (alpha_HW - alpha_HW.min()) / (np.ptp(alpha_HW) or 1.0)
    offsets = np.arange(-GRAD_RADIUS, GRAD_RADIUS + 1, dtype=np.float64)
    gaussian = np.exp(-(offsets**2) / (2 * GRAD_SIGMA**2))
    derivative = offsets * gaussian
    # The filter is the outer product of the two, and its norm is the product of their norms.
    gaussian /= np.linalg.norm(gaussian)
    derivative /= np.linalg.norm(derivative)

    def along(axis: int) -> Alpha:
        smooth: Alpha = ndimage.correlate1d(normalized, gaussian, axis=1 - axis, mode="nearest")
        slope: Alpha = ndimage.correlate1d(smooth, derivative, axis=axis, mode="nearest")
        return slope

    return np.hypot(along(0), along(1))


def _connectivity_error(pred_HW: Alpha, true_HW: Alpha) -> float:
    """Return Σ |φ(pred) - φ(true)|, where φ falls with alpha's distance to the level up to which a pixel is connected.

    This level is the last threshold before the pixel first leaves the largest 4-connected component of
    {pred ≥ threshold and true ≥ threshold}; of two equally large components the first in reading order counts.
    """
    shared_HW = np.minimum(pred_HW, true_HW)
    connected_HW = np.ones(shared_HW.shape, dtype=bool)
    steps_HW = np.zeros(shared_HW.shape, dtype=np.uint8)
    for threshold in CONN_THRESHOLDS[1:]:
        connected_HW &= _largest_component(shared_HW >= threshold)
        steps_HW += connected_HW
    differs_HW = pred_HW != true_HW  # usually few pixels; φ can differ only there
    level = CONN_THRESHOLDS[steps_HW[differs_HW]]

    def phi(alpha: Alpha) -> npt.NDArray[np.float64]:
        distance = alpha - level
        return np.where(distance >= CONN_DEAD_ZONE, 1 - distance, 1.0)

    return float(np.abs(phi(pred_HW[differs_HW]) - phi(true_HW[differs_HW])).sum())


def _largest_component(mask_HW: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    from scipy import ndimage  # here, as above

    labels_HW, count = ndimage.label(mask_HW)  # by default neighbours share a side; labels follow reading order
    if count < 2:
        return mask_HW
    sizes = np.bincount(labels_HW.ravel())
    largest: npt.NDArray[np.bool_] = labels_HW == 1 + sizes[1:].argmax()
    return largest


def _iou(pred_HW: Alpha, true_HW: Alpha) -> float:
    pred_inside, true_inside = pred_HW >= IOU_THRESHOLD, true_HW >= IOU_THRESHOLD
    union = np.count_nonzero(pred_inside | true_inside)
    return np.count_nonzero(pred_inside & true_inside) / union if union else 1.0
