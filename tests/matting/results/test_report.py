"""The page of trainings and evaluations: its cases, panels and text, and nothing from outside."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matting.nn.metrics import METRICS
from matting.results.metric_labels import metric_explanations
from matting.results.report import PANELS, Case, _panel_images, make_case, pick_cases, report_page
from tests.support.pages import PageReader, embedded_images

SIDE = 40


def random_case(key="a/b.jpg", height=SIDE, width=SIDE):
    """Return a case whose alphas are clear on the left, opaque in the top right quarter, and noise elsewhere."""
    rng = np.random.default_rng(0)
    image, true, pred = (
        rng.integers(0, 256, shape, np.uint8) for shape in [(height, width, 3), *[(height, width)] * 2]
    )
    for alpha in true, pred:
        alpha[:, : width // 2] = 0
        alpha[: height // 2, width // 2 :] = 255
    return Case(key, image, true, pred, {"mad": 12.3456, "iou": 0.97})


def panels(case, side=SIDE):
    """Return the panels of a case by name, as arrays."""
    shown = zip(PANELS, _panel_images(case, side), strict=True)
    return {name: np.asarray(panel).astype(int) for name, panel in shown}


# Cases ----------------------------------------------------------------------------------------------------------------


def test_case_has_the_size_of_the_true_alpha():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 256, (30, 20), np.uint8)
    case = make_case("k", rng.integers(0, 256, (60, 40, 3), np.uint8), true, true[::2, ::2])
    assert case.image_HWC.shape == (30, 20, 3)
    assert case.pred_alpha_HW.shape == (30, 20)
    assert case.metrics.keys() == METRICS.keys()


def test_case_of_two_sizes_is_refused():
    image = np.zeros((4, 5, 3), np.uint8)
    alpha = np.zeros((4, 5), np.uint8)
    with pytest.raises(ValueError, match=r"case 'a.jpg'.*\(4, 5\), \(4, 5\), \(2, 2\)"):
        Case("a.jpg", image, alpha, alpha[:2, :2], {})


def test_best_median_and_worst_are_picked():
    rows = [(f"{mad:02}", float(mad)) for mad in range(20)]
    assert pick_cases(rows[::-1], per_group=2) == {"best": ["00", "01"], "median": ["09", "10"], "worst": ["19", "18"]}
    assert pick_cases([("b", 1.0), ("a", 1.0), ("c", 1.0)]) == {"best": ["a"], "median": ["b"], "worst": ["c"]}
    assert pick_cases([("a", 2.0), ("b", 1.0)]) == {"best": ["b"], "median": [], "worst": ["a"]}
    assert pick_cases([("a", 1.0)]) == {"best": ["a"], "median": [], "worst": []}
    assert pick_cases([]) == {"best": [], "median": [], "worst": []}


@given(st.dictionaries(st.text(), st.floats(0, 1000), max_size=20), st.integers(1, 5), st.randoms())
def test_picked_cases_never_overlap(mad, per_group, random):
    rows = list(mad.items())
    groups = pick_cases(rows, per_group)
    picked = [key for group in groups.values() for key in group]
    assert len(picked) == len(set(picked)) == min(len(rows), 3 * per_group)
    in_order = [mad[key] for key in [*groups["best"], *groups["median"], *groups["worst"][::-1]]]
    assert in_order == sorted(in_order)
    random.shuffle(rows)
    assert pick_cases(rows, per_group) == groups


# Panels ---------------------------------------------------------------------------------------------------------------


def test_panels_show_the_case():
    case = random_case()
    shown = panels(case)
    np.testing.assert_array_equal(shown["photo"], case.image_HWC)
    for cutout, alpha in ("true cutout", case.true_alpha_HW), ("predicted cutout", case.pred_alpha_HW):
        opacity = alpha[..., None] / 255
        np.testing.assert_allclose(shown[cutout], case.image_HWC * opacity + 255 * (1 - opacity), atol=1)
    np.testing.assert_array_equal(shown["true alpha"], np.dstack([case.true_alpha_HW] * 3))
    np.testing.assert_array_equal(shown["predicted alpha"], np.dstack([case.pred_alpha_HW] * 3))


def test_error_goes_from_black_over_red_to_yellow():
    true = np.zeros((SIDE, SIDE), np.uint8)
    pred = np.zeros((SIDE, SIDE), np.uint8)
    pred[10, :3] = 64, 128, 255
    error = panels(Case("k", np.dstack([true] * 3), true, pred, {}))["absolute error"]
    assert error[10, :4].tolist() == [[128, 0, 0], [255, 1, 0], [255, 255, 0], [0, 0, 0]]
    assert error.sum() == 128 + 256 + 510


def test_panels_keep_the_aspect_ratio():
    assert panels(random_case(height=80, width=40), side=40)["photo"].shape == (40, 20, 3)


# Page -----------------------------------------------------------------------------------------------------------------

HISTORY = [{"epoch": 1, "step": 10, "train_loss": 3.0, "val_mad": 20.0}, {"epoch": 2, "step": 20, "train_loss": 2.0}]


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
    return report_page(**options | changes)


def test_page_shows_everything():
    reader = PageReader(demo_page())
    assert len(reader.ids) == len(set(reader.ids))
    cells = ["12,100", "14.36", "0.9000", "–", "MAD", "12.35", "U-Net, width 32", "a & b", "bad.jpg", "truncated file"]
    for shown in ["Run <7>", *cells, "best", "worst", "training loss"]:
        assert shown in reader.text
    assert "median" not in reader.text


def test_page_refers_to_nothing_outside():
    html = demo_page()
    reader = PageReader(html)
    assert len(reader.images) == 2 * len(PANELS)
    assert all(reference.startswith(("data:image/webp;base64,", "#")) for reference in reader.references)
    assert set(re.findall(r"url\((.)", html)) == {"#"}
    assert not {"script", "link", "iframe", "object"} & set(reader.tags)
    assert reader.images[0]["alt"] == "photo of a/b.jpg"
    sizes = [image.size for image in embedded_images(html)]
    assert sizes == [(int(tag["width"]), int(tag["height"])) for tag in reader.images]
    assert sizes[-1] == (20, 30), "small images keep their size"


def test_page_escapes_its_text():
    html = demo_page(skipped=[("<b>.jpg", "<i>")], facts={"<u>": "<s>"}, command="<a>")
    assert not {"script", "b.jpg", "i", "u", "s", "a"} & set(PageReader(html).tags)
    assert "&lt;script&gt;x&lt;/script&gt;.jpg" in html


def test_page_lists_the_first_hundred_skipped():
    reader = PageReader(demo_page(skipped=[(f"{i:04}.jpg", "no matte") for i in range(1234)]))
    assert "1,234 left out" in reader.text
    assert "0099.jpg" in reader.text
    assert "0100.jpg" not in reader.text
    assert "None." in PageReader(demo_page(skipped=[])).text


def test_page_without_training_has_no_curves():
    assert "svg" not in PageReader(demo_page(history=[], groups={})).tags


def test_page_explains_its_metrics():
    reader = PageReader(demo_page())
    assert metric_explanations().keys() == {metric.name for metric in METRICS.values()}
    for name, explanation in metric_explanations().items():
        assert name in reader.text
        assert explanation in reader.text
    mad = metric_explanations()["MAD"]
    assert reader.titles.count(mad) == 1 + 2, "the table's heading, and each case"
