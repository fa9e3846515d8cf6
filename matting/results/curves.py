"""Training curves as inline SVG: a small panel for the training loss and for each validation metric."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matting.nn.metrics import METRICS
from matting.results.metric_labels import metric_title

COLUMNS = 3
MAX_MARKERS = 200  # longer curves have no markers, each of which takes a hundred bytes of the page
_LINE = "#4c7fd9"
_INK = "#010203"  # replaced by currentColor, which matplotlib cannot name

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "matting",  # the same history gives the same text
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _INK,
    "grid.alpha": 0.12,
    "axes.titlelocation": "left",
}

History = Sequence[Mapping[str, float]]


class _Panel(NamedTuple):
    """A curve: the entry of each row on either axis. Rows without any of `reported` are skipped."""

    x: str
    y: str
    title: str
    reported: list[str]


def draw_curves(history: History) -> str:
    """Draw train_loss over steps, and each val_* of the history over epochs, in a small panel each.

    val_n, the number of images, is left out: training does not change it.

    Args:
        history: One mapping per report, in order, such as {"epoch": 1, "step": 100, "train_loss": …, "val_mad": …}.
            Training and validation may report in rows of their own. A row with some val_* but without others breaks the
            curves of the others.

    Returns:
        Inline SVG, the same text for the same history. Axes and letters take the colour of the text around them. ""
        if there is nothing to draw.
    """
    panels = _list_panels(history)
    if not panels:
        return ""

    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = math.ceil(len(panels) / COLUMNS)
    with rc_context(_STYLE):
        figure = Figure(figsize=(10, 2.3 * rows), layout="constrained")
        for place, panel in enumerate(panels, start=1):
            points = [row for row in history if any(name in row for name in panel.reported)]
            axes = figure.add_subplot(rows, COLUMNS, place)
            axes.plot(
                [row.get(panel.x, math.nan) for row in points],
                [row.get(panel.y, math.nan) for row in points],
                color=_LINE,
                marker="." if len(points) <= MAX_MARKERS else "",
            )
            axes.set_title(panel.title)
            axes.set_xlabel(panel.x)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        svg = io.StringIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    text = svg.getvalue()
    return text[text.index("<svg") :].replace(_INK, "currentColor")  # the XML declaration has no place inside HTML


def _list_panels(history: History) -> list[_Panel]:
    names = dict.fromkeys(name for row in history for name in row)
    validation = [name for name in names if name.startswith("val_") and name != "val_n"]
    training = ["train_loss"] if "train_loss" in names else []
    panels = [_Panel("step", name, "training loss", training) for name in training]
    return panels + [_Panel("epoch", name, _validation_title(name), validation) for name in validation]


def _validation_title(name: str) -> str:
    metric = name.removeprefix("val_")
    return f"validation {metric_title(metric)}" if metric in METRICS else name
