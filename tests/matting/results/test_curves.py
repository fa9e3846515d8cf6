"""Training curves as SVG."""

import re

from matting.results.curves import draw_curves

HISTORY = [
    {"epoch": 1, "step": 10, "train_loss": 3.0, "val_mad": 20.0, "val_iou": 0.8, "samples_per_second": 5.0},
    {"epoch": 2, "step": 20, "train_loss": 2.0, "val_mad": 15.0, "val_iou": 0.85},
    {"epoch": 3, "step": 30, "train_loss": 1.5, "val_mad": 12.0, "val_iou": 0.9},
]


def lines(svg):
    """Return the lengths of each curve's pieces in points: [[3], [1, 1]] is a whole curve and a broken one."""
    paths = re.findall(r'<path d="([^"]*)"[^>]*fill: none; stroke: #4c7fd9', svg)
    return [[piece.count("L") + 1 for piece in path.split("M")[1:]] for path in paths]


def test_loss_and_validation_metrics_are_drawn():
    svg = draw_curves([{**row, "val_n": 160, "val_new": 1.0} for row in HISTORY])
    assert re.findall(r">([^<>]*(?:training|validation|val_)[^<>]*)<", svg) == [
        "training loss",
        "validation MAD (×1e-3)",
        "validation IoU",
        "val_new",
    ]
    assert "samples_per_second" not in svg
    assert lines(svg) == [[3], [3], [3], [3]]


def test_same_history_gives_the_same_svg():
    assert draw_curves(HISTORY) == draw_curves(HISTORY)
    assert "date>" not in draw_curves(HISTORY)


def test_curve_breaks_where_a_metric_is_missing():
    gap = [HISTORY[0], {"epoch": 2, "step": 20, "train_loss": 2.0, "val_iou": 0.8}, HISTORY[2]]
    assert lines(draw_curves(gap)) == [[3], [1, 1], [3]]


def test_training_and_validation_may_report_apart():
    apart = [{"step": step, "train_loss": 1.0 / step} for step in range(1, 10)]
    apart[3:3] = [{"epoch": 1, "val_mad": 2.0}]
    apart += [{"epoch": 2, "val_mad": 1.0}]
    assert lines(draw_curves(apart)) == [[9], [2]]


def test_empty_history_has_no_curves():
    assert draw_curves([]) == draw_curves([{"epoch": 1, "samples_per_second": 5.0}]) == ""
