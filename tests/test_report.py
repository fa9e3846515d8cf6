"""The contact sheet and the page: the right pixels in the right places, and nothing from outside."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from matting.report import CAPTION, GAP, HEADER, LETTERBOX, PANELS, Case, contact_sheet, curves, page, pick_cases
from matting.report import format_number as number

TILE = 40
HISTORY = [
    {"epoch": 1, "step": 10, "train_loss": 3.0, "val_mad": 20.0, "val_iou": 0.8, "samples_per_second": 5.0},
    {"epoch": 2, "step": 20, "train_loss": 2.0, "val_mad": 15.0, "val_iou": 0.85},
    {"epoch": 3, "step": 30, "train_loss": 1.5, "val_mad": 12.0, "val_iou": 0.9},
]


def random_case(key="a/b.jpg", height=TILE, width=TILE):
    """Left half clear in both alphas, the top right quarter opaque in both, noise elsewhere."""
    rng = np.random.default_rng(0)
    image, true, pred = (
        rng.integers(0, 256, shape, np.uint8) for shape in [(height, width, 3), *[(height, width)] * 2]
    )
    for alpha in true, pred:
        alpha[:, : width // 2] = 0
        alpha[: height // 2, width // 2 :] = 255
    return Case(key, image, true, pred, {"mad": 12.3456, "iou": 0.97})


def tiles(sheet, row=0):
    """The panels of one row by name, as arrays of TILE × TILE."""
    pixels = np.asarray(sheet).astype(int)
    top = HEADER + row * (CAPTION + TILE + GAP) + CAPTION
    lefts = [GAP + column * (TILE + GAP) for column in range(len(PANELS))]
    return {name: pixels[top : top + TILE, left : left + TILE] for name, left in zip(PANELS, lefts, strict=True)}


def test_contact_sheet_has_a_row_per_case_and_a_column_per_panel():
    sheet = contact_sheet([random_case()] * 3, tile=TILE)
    assert sheet.size == (GAP + 6 * (TILE + GAP), HEADER + 3 * (CAPTION + TILE + GAP))
    assert contact_sheet([], tile=TILE).height == HEADER


def test_contact_sheet_tiles_hold_the_case():
    case = random_case()
    shown = tiles(contact_sheet([random_case("other"), case], tile=TILE), row=1)
    half = TILE // 2
    np.testing.assert_array_equal(shown["photo"], case.image_HWC)
    for cutout, alpha in ("true cutout", case.true_alpha_HW), ("predicted cutout", case.pred_alpha_HW):
        opacity = alpha[..., None] / 255
        np.testing.assert_allclose(shown[cutout], case.image_HWC * opacity + 255 * (1 - opacity), atol=1)
        assert (shown[cutout][:, :half] == 255).all()
        np.testing.assert_array_equal(shown[cutout][:half, half:], case.image_HWC[:half, half:])
    np.testing.assert_array_equal(shown["true alpha"], np.dstack([case.true_alpha_HW] * 3))
    np.testing.assert_array_equal(shown["predicted alpha"], np.dstack([case.pred_alpha_HW] * 3))


def test_contact_sheet_error_goes_from_black_over_red_to_yellow():
    true = np.zeros((TILE, TILE), np.uint8)
    pred = np.zeros((TILE, TILE), np.uint8)
    pred[10, :3] = 64, 128, 255
    error = tiles(contact_sheet([Case("k", np.dstack([true] * 3), true, pred, {})], tile=TILE))["absolute error"]
    assert error[10, :4].tolist() == [[128, 0, 0], [255, 1, 0], [255, 255, 0], [0, 0, 0]]
    assert error.sum() == 128 + 256 + 510


@pytest.mark.parametrize(("height", "width"), [(80, 40), (20, 10)])
def test_contact_sheet_keeps_the_aspect_ratio(height, width):
    tall = Case("k", *(np.full(shape, 9, np.uint8) for shape in [(height, width, 3), *[(height, width)] * 2]), {})
    photo = tiles(contact_sheet([tall], tile=TILE))["photo"]
    quarter = TILE // 4
    assert (photo[:, quarter:-quarter] == 9).all()
    assert (photo[:, :quarter] == LETTERBOX).all()
    assert (photo[:, -quarter:] == LETTERBOX).all()


def test_contact_sheet_shortens_a_key_in_its_middle():
    def caption(key):
        sheet = np.asarray(contact_sheet([random_case(key)], tile=120))
        return sheet[HEADER : HEADER + CAPTION]

    long = caption("collection/" + "x" * 500 + "/IMG_0001.jpg")
    ink = np.flatnonzero((caption("collection/") < 255).any(axis=(0, 2)))
    np.testing.assert_array_equal(long[:, ink], caption("collection/")[:, ink])
    metrics = np.flatnonzero((caption("") < 255).any(axis=(0, 2)))
    np.testing.assert_array_equal(long[:, metrics.min() - GAP :], caption("")[:, metrics.min() - GAP :])
    caption("two\nlines\udce9.jpg")  # names that file systems allow and fonts do not


def test_a_case_of_two_sizes_is_an_error():
    image = np.zeros((4, 5, 3), np.uint8)
    alpha = np.zeros((4, 5), np.uint8)
    with pytest.raises(ValueError, match=r"case 'a.jpg'.*\(4, 5\), \(4, 5\), \(2, 2\)"):
        Case("a.jpg", image, alpha, alpha[:2, :2], {})


def test_pick_cases_by_head():
    rows = [(f"{mad:02}", float(mad)) for mad in range(20)]
    assert pick_cases(rows[::-1], per_group=2) == {"best": ["00", "01"], "median": ["09", "10"], "worst": ["19", "18"]}
    assert pick_cases([("b", 1.0), ("a", 1.0), ("c", 1.0)]) == {"best": ["a"], "median": ["b"], "worst": ["c"]}
    assert pick_cases([("a", 2.0), ("b", 1.0)]) == {"best": ["b"], "median": [], "worst": ["a"]}
    assert pick_cases([("a", 1.0)]) == {"best": ["a"], "median": [], "worst": []}
    assert pick_cases([]) == {"best": [], "median": [], "worst": []}


@given(st.dictionaries(st.text(), st.floats(0, 1000), max_size=20), st.integers(1, 5), st.randoms())
def test_pick_cases_never_overlap_and_ignore_the_order(mad, per_group, random):
    rows = list(mad.items())
    groups = pick_cases(rows, per_group)
    picked = [key for group in groups.values() for key in group]
    assert len(picked) == len(set(picked)) == min(len(rows), 3 * per_group)
    in_order = [mad[key] for key in [*groups["best"], *groups["median"], *groups["worst"][::-1]]]
    assert in_order == sorted(in_order)
    random.shuffle(rows)
    assert pick_cases(rows, per_group) == groups


def lines(svg):
    """The pieces each curve is drawn in, as counts of points: [[3], [1, 1]] is a whole line and a broken one."""
    paths = re.findall(r'<path d="([^"]*)"[^>]*fill: none; stroke: #4c7fd9', svg)
    return [[piece.count("L") + 1 for piece in path.split("M")[1:]] for path in paths]


def test_curves_draw_the_loss_and_every_validation_metric():
    svg = curves([{**row, "val_n": 160, "val_new": 1.0} for row in HISTORY])
    assert re.findall(r">([^<>]*(?:training|validation|val_)[^<>]*)<", svg) == [
        "training loss",
        "validation MAD (×1e-3)",
        "validation IoU",
        "val_new",
    ]
    assert "samples_per_second" not in svg
    assert lines(svg) == [[3], [3], [3], [3]]


def test_curves_of_one_history_are_one_text():
    assert curves(HISTORY) == curves(HISTORY)
    assert "date>" not in curves(HISTORY)


def test_curves_break_where_a_metric_is_missing():
    gap = [HISTORY[0], {"epoch": 2, "step": 20, "train_loss": 2.0, "val_iou": 0.8}, HISTORY[2]]
    assert lines(curves(gap)) == [[3], [1, 1], [3]]


def test_curves_hold_together_when_training_and_validation_report_apart():
    apart = [{"step": step, "train_loss": 1.0 / step} for step in range(1, 10)]
    apart[3:3] = [{"epoch": 1, "val_mad": 2.0}]
    apart += [{"epoch": 2, "val_mad": 1.0}]
    assert lines(curves(apart)) == [[9], [2]]


def test_curves_of_nothing():
    assert curves([]) == curves([{"epoch": 1, "samples_per_second": 5.0}]) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (202599, "202,599"),
        (np.int64(3), "3"),
        (0.97, "0.9700"),
        (np.float32(12.34567), "12.35"),
        (0.0, "0.000"),
        (999.94, "999.9"),
        (999.96, "1,000"),
        (-12345.6, "-12,346"),
        (float("nan"), "nan"),
        ("validation", "validation"),
    ],
)
def test_numbers_have_four_significant_digits(value, text):
    assert number(value) == text


class Reader(HTMLParser):
    """Fails on tags that do not nest, and keeps what the page refers to and shows."""

    VOID = ("meta", "img", "input")

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.references, self.ids, self.images, self.text = [], [], [], [], [], ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "action")]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag in ("img", "image"):
            self.images.append(dict(attrs))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def demo_page(**changes):
    options = {
        "title": "Run <7>",
        "command": "python jobs/train.py --data 'a & b'",
        "facts": {"Model": "U-Net, width 32"},
        "figures": [{"Set": "test", "Images": 12100, "MAD (×1e-3)": 14.35671}, {"Set": "street", "IoU": 0.9}],
        "history": HISTORY,
        "groups": {"best": [random_case()], "median": [], "worst": [random_case("<script>x</script>.jpg", 30, 20)]},
        "skipped": [("bad.jpg", "truncated file")],
    }
    return page(**options | changes)


def test_page_is_well_formed_and_shows_everything():
    reader = Reader(demo_page())
    assert len(reader.ids) == len(set(reader.ids))
    cells = ["12,100", "14.36", "0.9000", "–", "MAD", "12.35", "U-Net, width 32", "a & b", "bad.jpg", "truncated file"]
    for shown in ["Run <7>", *cells, "best", "worst", "training loss"]:
        assert shown in reader.text
    assert "median" not in reader.text


def test_page_holds_its_pictures_and_refers_to_nothing_outside():
    html = demo_page()
    reader = Reader(html)
    assert len(reader.images) == 2 * len(PANELS)
    assert all(reference.startswith(("data:image/webp;base64,", "#")) for reference in reader.references)
    assert set(re.findall(r"url\((.)", html)) == {"#"}
    assert not {"script", "link", "iframe", "object"} & set(reader.tags)
    assert reader.images[0]["alt"] == "photo of a/b.jpg"
    for shown in reader.images:
        picture = Image.open(io.BytesIO(base64.b64decode(shown["src"].partition(",")[2])))
        assert picture.size == (int(shown["width"]), int(shown["height"]))
    assert picture.size == (20, 30)  # small ones stay as they are


def test_page_escapes_keys():
    html = demo_page(skipped=[("<b>.jpg", "<i>")], facts={"<u>": "<s>"}, command="<a>")
    assert not {"script", "b.jpg", "i", "u", "s", "a"} & set(Reader(html).tags)
    assert "&lt;script&gt;x&lt;/script&gt;.jpg" in html


def test_page_shows_the_first_hundred_skipped_and_counts_all():
    reader = Reader(demo_page(skipped=[(f"{i:04}.jpg", "no matte") for i in range(1234)]))
    assert "1,234 left out" in reader.text
    assert "0099.jpg" in reader.text
    assert "0100.jpg" not in reader.text
    assert "None." in Reader(demo_page(skipped=[])).text


def test_page_of_a_run_without_training_has_no_curves():
    assert "svg" not in Reader(demo_page(history=[], groups={})).tags
