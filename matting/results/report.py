"""The page of a training or an evaluation: figures, cases with their errors, curves, and files that were left out.

Callers have the arrays and write the returned text; this module knows no models and no storage. The template is
templates/report.html.j2.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageOps

from matting.data.images import Pixels, resize
from matting.nn.metrics import image_metrics
from matting.results.curves import History, draw_curves
from matting.results.html import embed_image, render
from matting.results.metric_labels import metric_explanations, metric_name

PANELS = ("photo", "true cutout", "predicted cutout", "true alpha", "predicted alpha", "absolute error")
# Absolute error 0 is black, half is red, 1 is yellow: a Pillow palette, R, G, B for each of 256 levels.
ERROR_PALETTE = [c for level in range(256) for c in (min(2 * level, 255), max(2 * level - 255, 0), 0)]

MAX_PANEL_SIDE = 480  # longest side in pixels of an image on the page; twelve cases take about a megabyte
SHOWN_SKIPPED = 100


@dataclass(frozen=True)
class Case:
    """One evaluated pair.

    Args:
        key: Key of the pair.
        image_HWC, true_alpha_HW, pred_alpha_HW: Arrays of one height and width, uint8, 255 is opaque.
        metrics: Metrics of the predicted alpha, in the units of METRICS.
    """

    key: str
    image_HWC: Pixels
    true_alpha_HW: Pixels
    pred_alpha_HW: Pixels
    metrics: Mapping[str, float]

    def __post_init__(self) -> None:
        shapes = self.image_HWC.shape[:2], self.true_alpha_HW.shape, self.pred_alpha_HW.shape
        if len(set(shapes)) > 1:
            raise ValueError(
                f"case {self.key!r}: image, true_alpha and pred_alpha are {shapes}, expected one height and width; "
                "resize pred_alpha to true_alpha first"
            )


def make_case(key: str, image_HWC: Pixels, true_alpha_HW: Pixels, pred_alpha_HW: Pixels) -> Case:
    """Return a case at the size of the true alpha, with its metrics."""
    height, width = true_alpha_HW.shape
    pred_alpha_HW = resize(pred_alpha_HW, width, height)
    metrics = image_metrics(pred_alpha_HW, true_alpha_HW)
    return Case(key, resize(image_HWC, width, height), true_alpha_HW, pred_alpha_HW, metrics)


def pick_cases(rows: Sequence[tuple[str, float]], per_group: int = 4) -> dict[str, list[str]]:
    """Return the keys of cases that are worth a look: {"best": …, "median": …, "worst": …}.

    "best" begins with the best case, "worst" with the worst. The order of rows does not matter: ties go by key.

    Args:
        rows: (key, MAD) of every case.
        per_group: Highest number of keys in a group. If there are fewer than three times as many rows, the groups share
            all of them.
    """
    keys = [key for _, key in sorted((mad, key) for key, mad in rows)]
    best, worst, median = (min(per_group, (len(keys) + spare) // 3) for spare in (2, 1, 0))
    middle = keys[best : len(keys) - worst]
    start = (len(middle) - median) // 2
    return {
        "best": keys[:best],
        "median": middle[start : start + median],
        "worst": keys[::-1][:worst],
    }


def report_page(
    *,
    title: str,
    command: str,
    facts: Mapping[str, str],
    figures: Sequence[Mapping[str, str | float]],
    history: History,
    groups: Mapping[str, Sequence[Case]],
    skipped: Sequence[tuple[str, str]],
    suspicious: Sequence[tuple[str, str]] = (),
) -> str:
    """Return the page as HTML: one file that loads nothing and has no script.

    Args:
        title: Title and heading of the page.
        command: Command that reproduces the run.
        facts: Circumstances of the figures: data fingerprint, model, settings, times.
        figures: Rows of the table on top. Names of columns include units; a row may lack columns.
        history: History of the training, as for `draw_curves`; empty if nothing was trained.
        groups: Cases to show under each heading, such as the groups of `pick_cases`.
        skipped: (key, reason) of every file that was left out. The page has their number and the first hundred.
        suspicious: (key, reason) of every pair that was used and may be wrong; shown likewise.
    """
    return render(
        "report.html.j2",
        title=title,
        command=command,
        facts=facts,
        columns=list(dict.fromkeys(itertools.chain.from_iterable(figures))),
        figures=figures,
        explanations=metric_explanations(),
        curves=draw_curves(history),
        groups={name: [_shown_case(case) for case in cases] for name, cases in groups.items() if cases},
        lists=[
            {"id": "suspicious", "title": "Suspicious pairs", "what": "used all the same", "files": suspicious},
            {"id": "skipped", "title": "Skipped files", "what": "left out", "files": skipped},
        ],
        shown_skipped=SHOWN_SKIPPED,
    )


def _shown_case(case: Case) -> dict[str, object]:
    """Return the values of a case that the template shows."""
    side = min(MAX_PANEL_SIDE, max(case.true_alpha_HW.shape))
    return {
        "key": case.key,
        "metrics": {metric_name(metric): value for metric, value in case.metrics.items()},
        "panels": [embed_image(name, panel) for name, panel in zip(PANELS, _panel_images(case, side), strict=True)],
    }


def _panel_images(case: Case, side: int) -> list[Image.Image]:
    """Return the images that PANELS names, RGB, scaled to fit into side × side pixels.

    They are composed at full size and then scaled, so that thin errors stay visible.
    """
    photo, true, pred = (Image.fromarray(a) for a in (case.image_HWC, case.true_alpha_HW, case.pred_alpha_HW))
    white = Image.new("RGB", photo.size, "white")
    cutouts = [Image.composite(photo, white, alpha) for alpha in (true, pred)]
    panels = [photo, *cutouts, true, pred, ImageChops.difference(true, pred)]
    panels = [ImageOps.contain(panel, (side, side)) for panel in panels]
    panels[-1].putpalette(ERROR_PALETTE)  # after scaling, which would mix colours into ones outside the palette
    return [panel.convert("RGB") for panel in panels]
