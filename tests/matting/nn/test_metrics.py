"""metrics: against published evaluators, mental arithmetic, the slow reference and other libraries."""

import subprocess
import sys

import numpy as np
import pytest
import skimage.measure
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from matting.nn.metrics import (
    METRICS,
    MetricSums,
    batch_metrics,
    confidence,
    coverage,
    image_metrics,
    risk_coverage_area,
)
from tests.reference import metrics as reference

# Results of two published evaluators for golden_pair(), with all digits on record.
GOLDEN = {
    "mad": "78.3109",
    "mse": "28.0149",
    "sad": "0.601427",
    "grad": "0.817637",
    "conn": "0.629161",
    "iou": "0.792042",
}


def golden_pair():
    """Return a disc with a soft rim, and a prediction that is smaller, softer, shifted, and has an island."""
    rows, columns = np.mgrid[:96, :80].astype(np.float32)

    def distance(row, column):
        return np.hypot(rows - row, columns - column)

    true = np.clip((30 - distance(48, 40)) / 10 + 0.5, 0, 1)
    pred = np.clip((27 - distance(46, 42)) / 14 + 0.5, 0, 1)
    pred[distance(12, 68) < 5] = 0.8
    return to_uint8(pred), to_uint8(true)


def to_uint8(alpha):
    return np.round(255 * alpha).astype(np.uint8)


def structured_noise(seed, shape=(60, 50)):
    """Return an alpha with islands, soft rims and flat areas of several sizes."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return to_uint8(np.clip(noise * 6 + 0.4, 0, 1))


@st.composite
def alpha_pairs(draw):
    shape = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    constant = st.integers(0, 255).map(st.just)
    hard = st.just(st.sampled_from([0, 255]))
    near_thresholds = st.just(st.sampled_from([0, 25, 26, 51, 102, 127, 128, 153, 204, 229, 230, 255]))
    anything = st.just(st.integers(0, 255))
    values = constant | hard | near_thresholds | anything
    return tuple(draw(hnp.arrays(np.uint8, shape, elements=draw(values), fill=st.nothing())) for _ in range(2))


def test_golden_pair_has_not_changed():
    pred, true = golden_pair()
    assert (pred.sum(), true.sum()) == (611107, 727591)


@pytest.mark.parametrize("evaluate", [image_metrics, reference.image_metrics], ids=["ours", "reference"])
def test_golden_values_to_the_last_digit(evaluate):
    values = evaluate(*golden_pair())
    shown = {name: f"{values[name]:.{len(golden.split('.')[1])}f}" for name, golden in GOLDEN.items()}
    assert shown == GOLDEN


def test_table_lists_the_metrics_in_order():
    assert list(image_metrics(*golden_pair())) == list(METRICS)


def test_differences_by_hand():
    true = np.zeros((4, 4), np.uint8)
    pred = true.copy()
    pred[0, 0], pred[2, 3] = 255, 51  # d = 1 and 0.2 in two of 16 pixels
    values = image_metrics(pred, true)
    assert values["mad"] == pytest.approx(1000 * 1.2 / 16)
    assert values["mse"] == pytest.approx(1000 * 1.04 / 16)
    assert values["sad"] == pytest.approx(1.2 / 1000)
    assert values["iou"] == 0


def test_iou_by_hand():
    true = np.repeat(np.uint8([[255], [128], [127], [0]]), 4, axis=1)  # the upper two rows are at least half opaque
    pred = np.repeat(np.uint8([[0, 255, 255, 0]]), 4, axis=0)  # the middle two columns are
    assert image_metrics(pred, true)["iou"] == pytest.approx(4 / 12)


def test_empty_union_has_iou_1():
    empty, faint = np.zeros((4, 4), np.uint8), np.full((4, 4), 127, np.uint8)
    assert image_metrics(empty, faint)["iou"] == 1


def test_grad_ignores_contrast():
    step = np.repeat(np.uint8([[0, 0, 254, 254]]), 4, axis=0)
    assert image_metrics(step // 2, step)["grad"] == pytest.approx(0, abs=1e-12)
    assert image_metrics(255 - step, step)["grad"] == pytest.approx(0, abs=1e-12)
    assert image_metrics(step.T, step)["grad"] > 0


def test_grad_of_a_step_by_hand():
    step = np.repeat(np.uint8([[0, 0, 255, 255]]), 4, axis=0)
    flat = np.full((4, 4), 77, np.uint8)
    # Gaussian g(x) = exp(-x²/3.92) at x = 0..4. The derivative's taps from x on reach a step x pixels away.
    g = np.array([1.0, 0.77483, 0.36045, 0.10067, 0.01688])
    x = np.arange(5)
    smooth = (g[0] + 2 * g[1:].sum()) / np.sqrt(g[0] ** 2 + 2 * (g[1:] ** 2).sum())
    slope = x * g / np.sqrt(2 * ((x * g) ** 2).sum())
    next_to_step, one_further = smooth * slope[1:].sum(), smooth * slope[2:].sum()
    expected = 8 * next_to_step**2 + 8 * one_further**2  # the edges are replicated, so all four rows are alike
    assert image_metrics(flat, step)["grad"] == pytest.approx(expected / 1000, rel=1e-4)


def test_conn_neighbors_share_a_side():
    true = np.zeros((4, 4), np.uint8)
    true[0, :2] = 255
    pred = true.copy()
    true[1, 2], pred[1, 2] = 26, 255  # touches the largest component at a corner only
    # Its level is 0: φ(pred) = 1 - 1, and φ(true) = 1, since 0.102 is within the dead zone of 0.15.
    assert image_metrics(pred, true)["conn"] == pytest.approx(1 / 1000)
    true[1, 1] = pred[1, 1] = 255  # a bridge: the level is 0.1, φ(pred) = 1 - 0.9
    assert image_metrics(pred, true)["conn"] == pytest.approx(0.9 / 1000)


def test_conn_compares_thresholds_in_float32():
    true, pred = np.full((4, 4), 255, np.uint8), np.full((4, 4), 153, np.uint8)
    # 153/255 reaches 0.6 in float32: Δφ is 1 - 0.6. In float64 it falls back to 0.5, and Δφ would be 1 - 0.5.
    assert image_metrics(pred, true)["conn"] == pytest.approx(16 * 0.4 / 1000)


@given(alpha_pairs())
def test_metrics_agree_with_the_reference(pair):
    assert image_metrics(*pair) == pytest.approx(reference.image_metrics(*pair), rel=1e-5, abs=1e-7)


@given(alpha_pairs())
def test_metrics_are_symmetric(pair):
    pred, true = pair
    assert image_metrics(pred, true) == pytest.approx(image_metrics(true, pred), rel=1e-12)


@given(alpha_pairs())
def test_perfect_prediction_has_no_error(pair):
    perfect = {"mad": 0, "mse": 0, "sad": 0, "grad": 0, "conn": 0, "iou": 1}
    assert image_metrics(pair[0], pair[0]) == perfect


@given(alpha_pairs())
def test_batch_metrics_agree_with_image_metrics(pair):
    pred, true = pair
    pred_BHW, true_BHW = np.stack([pred, true, true]), np.stack([true, pred, true])
    batch = batch_metrics(torch.from_numpy(pred_BHW) / 255, torch.from_numpy(true_BHW) / 255)
    assert list(batch) == ["mad", "mse", "iou"]
    for name, values in batch.items():
        images = [image_metrics(p, t)[name] for p, t in zip(pred_BHW, true_BHW, strict=True)]
        assert values.tolist() == pytest.approx(images, rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_conn_agrees_with_labels_of_skimage(seed):
    def largest_component(mask_HW):
        labels_HW = skimage.measure.label(mask_HW, connectivity=1)
        regions = skimage.measure.regionprops(labels_HW)
        return labels_HW == max(regions, key=lambda region: region.area).label if regions else mask_HW

    pred, true = structured_noise(seed), structured_noise(seed + 100)
    pred = np.maximum(pred, true // 2)  # so that they overlap
    expected = reference.conn(pred, true, largest_component)
    assert image_metrics(pred, true)["conn"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_grad_agrees_with_derivatives_of_scipy(seed):
    impulse = np.zeros((9, 9))
    impulse[4, 4] = 1

    def derivative(array, order):
        return ndimage.gaussian_filter(array, 1.4, order=order, mode="nearest", radius=4)

    def magnitude(alpha):
        normalized = (alpha - alpha.min()) / np.ptp(alpha)
        norm = np.linalg.norm(derivative(impulse, (0, 1)))
        return np.hypot(derivative(normalized, (0, 1)), derivative(normalized, (1, 0))) / norm

    pred, true = structured_noise(seed), structured_noise(seed + 100)
    expected = ((magnitude(pred / 255) - magnitude(true / 255)) ** 2).sum() / 1000
    assert image_metrics(pred, true)["grad"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("pred", "true"),
    [
        (np.zeros((4, 5), np.uint8), np.zeros((5, 4), np.uint8)),
        (np.zeros((4, 4), np.float32), np.zeros((4, 4), np.uint8)),
        (np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4, 1), np.uint8)),
    ],
    ids=["other shape", "not 8 bits", "a channel axis"],
)
def test_unsuitable_alphas_are_refused(pred, true):
    with pytest.raises(ValueError, match=r"expected uint8 \(H, W\) twice"):
        image_metrics(pred, true)


def test_batches_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 4, 4\).*\(1, 4, 4\).*expected \(B, H, W\) twice"):
        batch_metrics(torch.zeros(3, 4, 4), torch.zeros(1, 4, 4))


def test_mean_over_workers_is_over_images():
    busy, idle, other = MetricSums(), MetricSums(), MetricSums()
    for mad in (1.0, 2.0, 3.0):
        busy.add({"mad": mad, "iou": 1.0})
    other.add({"mad": 10.0, "iou": 0.5})
    total = MetricSums()
    for worker in (idle, busy, other, idle):
        total.merge(worker)
    assert total.mean() == {"mad": 16 / 4, "iou": 3.5 / 4, "n": 4}  # the mean of the workers' means is 6


def test_batch_is_added_as_its_sums():
    batch, one_by_one = MetricSums(), MetricSums()
    batch.add({"mad": 6.0}, n=3)
    for mad in (1.0, 2.0, 3.0):
        one_by_one.add({"mad": mad})
    assert batch == one_by_one


def test_sums_of_other_metrics_are_refused():
    sums = MetricSums()
    sums.add({"mad": 1.0, "iou": 1.0})
    with pytest.raises(ValueError, match=r"got the metrics \['mad'\], expected \['iou', 'mad'\]"):
        sums.add({"mad": 1.0})
    assert sums.n == 1


def test_mean_of_no_images_is_refused():
    with pytest.raises(ValueError, match="no image was measured"):
        MetricSums().mean()


def test_training_workers_do_not_load_scipy():
    program = """
import sys, torch
from matting.nn.metrics import batch_metrics
batch_metrics(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4))
assert "scipy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


# Confidence -----------------------------------------------------------------------------------------------------------


def test_coverage_is_the_mean_alpha() -> None:
    assert coverage(np.array([[0, 51], [204, 255]], np.uint8)) == 0.5
    large = np.full((4200, 4200), 255, np.uint8)  # the sum does not fit in 32 bits
    assert coverage(large) == 1
    assert confidence(large) == 1


def test_confidence_is_1_without_semitransparent_pixels() -> None:
    assert confidence(np.array([[0, 255], [255, 255]], np.uint8)) == 1
    assert confidence(np.array([[0, 51], [204, 255]], np.uint8)) == pytest.approx((1 + 0.6 + 0.6 + 1) / 4)


def test_risk_coverage_by_hand() -> None:
    # Sorted by confidence the errors are 1, 3, 2: means 1, 2, 2.
    assert risk_coverage_area([3, 1, 2], [0.5, 0.9, 0.1]) == pytest.approx((1 + 2 + 2) / 3)


def test_risk_coverage_of_random_and_perfect_confidence() -> None:
    generator = np.random.default_rng(0)
    errors = generator.random(2000)
    assert risk_coverage_area(errors, generator.random(2000)) == pytest.approx(errors.mean(), rel=0.05)
    best = risk_coverage_area(errors, -errors)
    assert best == pytest.approx(errors.mean() / 2, rel=0.05)
    assert all(risk_coverage_area(errors, generator.random(2000)) > best for _ in range(5))
