"""What a run leaves to look at: contact sheets, curves, and one HTML page that needs nothing but itself.

Cases (photo, true and predicted alpha, metrics), the run's history (one mapping per report) and its facts
-> contact_sheet: a picture; curves: SVG; page: HTML from report.html.j2, with every picture inside as a data URI.
Knows no models and no storage: whoever calls has the arrays, and writes what comes back.
"""

import base64
import functools
import hashlib
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path

import jinja2
from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageOps

from matting.images import Pixels, resize
from matting.metrics import METRICS, image_metrics

PANELS = ("photo", "true cutout", "predicted cutout", "true alpha", "predicted alpha", "absolute error")
# Absolute error 0 is black, half is red, 1 is yellow: the palette Pillow wants, R, G, B for each of 256 levels.
ERROR_PALETTE = [c for level in range(256) for c in (min(2 * level, 255), max(2 * level - 255, 0), 0)]

# Contact sheet, in pixels: tile (row, column) begins at y = HEADER + row * (CAPTION + tile + GAP) + CAPTION,
# x = GAP + column * (tile + GAP).
GAP = 8
HEADER = 28
CAPTION = 22
LETTERBOX = (232, 232, 232)

PAGE_PANEL = 480  # longest side of a picture inside the page; twelve cases stay around a megabyte
SHOWN_SKIPPED = 100
CURVE_COLUMNS = 3
CURVE_MARKERS = 200  # more points than this go without: each weighs a hundred bytes of page


@dataclass(frozen=True)
class Case:
    """One evaluated pair. Arrays are uint8 of one height and width, 255 is opaque; metrics in the units of METRICS."""

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


def case(key: str, image_HWC: Pixels, true_alpha_HW: Pixels, pred_alpha_HW: Pixels) -> Case:
    """A case and its metrics, at the size of the true alpha."""
    height, width = true_alpha_HW.shape
    pred_alpha_HW = resize(pred_alpha_HW, width, height)
    metrics = image_metrics(pred_alpha_HW, true_alpha_HW)
    return Case(key, resize(image_HWC, width, height), true_alpha_HW, pred_alpha_HW, metrics)


def pick_cases(rows: Sequence[tuple[str, float]], per_group: int = 4) -> dict[str, list[str]]:
    """Keys of the cases worth looking at: {"best": …, "median": …, "worst": …}.

    Args:
        rows: (key, MAD) of every case.
        per_group: most keys in a group. With fewer than three times as many rows, the groups share all of them.
    The best group starts with the best, the worst with the worst. Ties go by key: the order of rows does not matter.
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


def contact_sheet(cases: Sequence[Case], tile: int = 160) -> Image.Image:
    """A picture of one row per case and one column per PANELS, each letterboxed into tile × tile pixels.

    A caption over each row has the key, shortened in its middle if need be, and the case's metrics.
    """
    step = tile + GAP
    width = GAP + len(PANELS) * step
    sheet = Image.new("RGB", (width, HEADER + len(cases) * (CAPTION + step)), "white")
    draw = ImageDraw.Draw(sheet)
    font = _font()
    for column, name in enumerate(PANELS):
        draw.text((GAP + column * step, HEADER // 2), name, "black", font, anchor="lm")
    for row, case in enumerate(cases):
        top = HEADER + row * (CAPTION + step)
        metrics = "   ".join(f"{_label(name)} {format_number(value)}" for name, value in case.metrics.items())
        room = width - 4 * GAP - font.getlength(metrics)
        draw.text((GAP, top + CAPTION // 2), _shortened(case.key, font, room), "black", font, anchor="lm")
        draw.text((width - GAP, top + CAPTION // 2), metrics, "black", font, anchor="rm")
        for column, panel in enumerate(_panels(case, tile)):
            left, over = GAP + column * step, top + CAPTION
            draw.rectangle((left, over, left + tile - 1, over + tile - 1), LETTERBOX)
            sheet.paste(panel, (left + (tile - panel.width) // 2, over + (tile - panel.height) // 2))
    return sheet


def curves(history: Sequence[Mapping[str, float]]) -> str:
    """Inline SVG: train_loss by step, and each val_* of the history by epoch, in a small panel of its own; but for
    val_n, the number of pictures, which no training changes.

    Args:
        history: one mapping per report, in order, such as {"epoch": 1, "step": 100, "train_loss": …, "val_mad": …}.
            Reports of training and of validation may be rows of their own; a row that lacks one val_* of several
            breaks that line.
    The same history gives the same text. Axes and letters take the colour of the text around them. Nothing to draw: "".
    """
    names = dict.fromkeys(name for row in history for name in row)
    validation = [name for name in names if name.startswith("val_") and name != "val_n"]
    training = ["train_loss"] if any("train_loss" in row for row in history) else []
    panels = [("step", "training loss", name, training) for name in training]
    panels += [("epoch", _validation_title(name), name, validation) for name in validation]
    if not panels:
        return ""

    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    ink = "#010203"  # becomes currentColor, which matplotlib has no name for
    lines = math.ceil(len(panels) / CURVE_COLUMNS)
    with rc_context(
        {
            "svg.hashsalt": "matting",
            "svg.fonttype": "none",
            "font.size": 9,
            "text.color": ink,
            "axes.edgecolor": ink,
            "axes.labelcolor": ink,
            "xtick.color": ink,
            "ytick.color": ink,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": ink,
            "grid.alpha": 0.12,
            "axes.titlelocation": "left",
        }
    ):
        figure = Figure(figsize=(10, 2.3 * lines), layout="constrained")
        for place, (x, title, name, reported) in enumerate(panels, start=1):
            rows = [row for row in history if any(other in row for other in reported)]
            axes = figure.add_subplot(lines, CURVE_COLUMNS, place)
            axes.plot(
                [row.get(x, math.nan) for row in rows],
                [row.get(name, math.nan) for row in rows],
                color="#4c7fd9",
                marker="." if len(rows) <= CURVE_MARKERS else "",
            )
            axes.set_title(title)
            axes.set_xlabel(x)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        svg = io.StringIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    # What comes before is for a file of its own: the XML declaration and a document type.
    return svg.getvalue()[svg.getvalue().index("<svg") :].replace(ink, "currentColor")


def page(
    *,
    title: str,
    command: str,
    facts: Mapping[str, str],
    figures: Sequence[Mapping[str, str | float]],
    history: Sequence[Mapping[str, float]],
    groups: Mapping[str, Sequence[Case]],
    skipped: Sequence[tuple[str, str]],
) -> str:
    """The run's HTML page: one file, no network, no script.

    Args:
        title: also the page's heading.
        command: what to type to get this run again.
        facts: what the numbers rest on: data fingerprint, model, settings, times.
        figures: rows of the table on top. Column names carry their units; a row may lack some columns.
        history: as `curves` takes it; empty for a run that trained nothing.
        groups: cases to show under each heading, such as `pick_cases` names them.
        skipped: (key, reason) of every file that was left out. The page has their count and the first hundred.
    """
    return render(
        "report.html.j2",
        title=title,
        command=command,
        facts=facts,
        columns=list(dict.fromkeys(itertools.chain.from_iterable(figures))),
        figures=figures,
        curves=curves(history),
        groups={name: [(case, _page_panels(case)) for case in cases] for name, cases in groups.items() if cases},
        skipped=skipped,
        shown_skipped=SHOWN_SKIPPED,
    )


def render(template: str, **values: object) -> str:
    """A template beside this file, filled in. Text is escaped; what of odd file names UTF-8 cannot hold becomes "?".

    Filters: `number` (format_number), `label` (a metric's name), and `digest`, by which a Content-Security-Policy
    allows an inline style or script of this very text.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": format_number, "label": _label, "digest": _digest}
    return environment.get_template(template).render(values).encode(errors="replace").decode()


def embedded(name: str, picture: Image.Image) -> dict[str, str | int]:
    """A picture for a template: name, uri (WebP inside, an alpha channel exact, the rest lossy), width and height."""
    encoded = io.BytesIO()
    picture.save(encoded, format="WEBP", quality=85)
    uri = "data:image/webp;base64," + base64.b64encode(encoded.getvalue()).decode()
    return {"name": name, "uri": uri, "width": picture.width, "height": picture.height}


def format_number(value: object) -> str:
    """Whole numbers in full, others with four significant digits; what is no number as it is."""
    if isinstance(value, Integral):
        return f"{int(value):,}"
    if isinstance(value, Real):
        # From here on "#.4g" would end in a bare point or turn to exponents.
        return f"{float(value):,.0f}" if abs(float(value)) >= 999.95 else f"{float(value):#.4g}"
    return str(value)


def labelled(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics among these, under the names and units that a table shows."""
    return {_with_unit(name): metrics[name] for name in METRICS if name in metrics}


def _label(name: str) -> str:
    return METRICS[name].name if name in METRICS else name


def _with_unit(name: str) -> str:
    return f"{METRICS[name].name} ({METRICS[name].unit})".removesuffix(" (1)")


def _validation_title(name: str) -> str:
    metric = name.removeprefix("val_")
    return f"validation {_with_unit(metric)}" if metric in METRICS else name


def _panels(case: Case, size: int) -> list[Image.Image]:
    """The pictures PANELS names, RGB, composed at full size, so that thin errors count, and scaled into size × size."""
    photo, true, pred = (Image.fromarray(a) for a in (case.image_HWC, case.true_alpha_HW, case.pred_alpha_HW))
    white = Image.new("RGB", photo.size, "white")
    cutouts = [Image.composite(photo, white, alpha) for alpha in (true, pred)]
    panels = [photo, *cutouts, true, pred, ImageChops.difference(true, pred)]
    panels = [ImageOps.contain(panel, (size, size)) for panel in panels]
    panels[-1].putpalette(ERROR_PALETTE)  # after scaling, which would mix colours into ones the scale does not have
    return [panel.convert("RGB") for panel in panels]


def _page_panels(case: Case) -> list[dict[str, str | int]]:
    size = min(PAGE_PANEL, max(case.true_alpha_HW.shape))
    return [embedded(name, panel) for name, panel in zip(PANELS, _panels(case, size), strict=True)]


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@functools.lru_cache
def _font() -> ImageFont.FreeTypeFont:
    from matplotlib import get_data_path

    # Pillow's own font stops at ASCII.
    return ImageFont.truetype(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf", 12)


def _shortened(key: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """The key on one line at most `room` pixels wide: start…end, which hold the folder and the file's name."""
    key = "".join(c if c.isprintable() else "�" for c in key)
    if font.getlength(key) <= room:
        return key
    for kept in range(len(key) // 2, 0, -1):
        text = f"{key[:kept]}…{key[-kept:]}"
        if font.getlength(text) <= room:
            return text
    return "…"
