"""The gallery: its text and pictures as written, and the page as a browser shows it.

The browser is the headless Chromium on the PATH (Debian's package `chromium`), driven by Playwright, which downloads
none of its own. Where there is none, those tests are skipped.
"""

import base64
import io
import re
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image, ImageFilter
from playwright.sync_api import expect, sync_playwright

from matting.gallery import THUMBNAIL, Card, page
from matting.synthetic import draw_person
from tests.test_report import Reader

HOSTILE = [
    "<script>window.injected = 1</script>.jpg",
    "\"><img src=x onerror='window.injected = 1'>.jpg",
    "two\nlines and a tab\t.jpg",
    "x" * 500,
    "名前/\u202egnp.jpg ﷽ 👩‍👩‍👧.jpg",
    "not utf-8 \udce9.jpg",
    "{{ 7 * 7 }} </style></script> --> &amp; `${1}`",
]


def card(key="a/b.jpg", group="sample", number=0, width=40, height=60):
    image, alpha = draw_person(0, number, width, height)
    facts = {"size": f"{width}×{height}", "coverage": alpha.mean() / 255}
    return Card(key, group, facts, image, alpha, np.dstack([image, alpha]))


def failed(key, image=None):
    return Card(key, "failed", {"reason": "cut short: <b>9 of 10</b> bytes"}, image)


def gallery(**changes):
    options = {
        "title": "Mattes of <faces>",
        "command": "python jobs/predict.py --images 'a & b'",
        "facts": {"Throughput": "41 photos/s", "Photos": 12345},
        "counts": {"done": 12334, "failed": 11, "left": 0},
        "failures": {"HTML or XML?": 1, "cut short": 10},
        "coverage": [1, 2, 0, 4],
        "cards": [
            card("x/sure.jpg", number=1),
            card("x/Doubt.png", "least confident", number=2),
            failed("y/bad.jpg"),
            failed("y/late.jpg", card().image_HWC),
            card("y/sure.jpg", number=3),
        ],
    }
    return page(**options | changes)


def pictures(html):
    """All that the page embeds, in order, decoded."""
    shown = [tag.get("src") or tag["href"] for tag in Reader(html).images]
    return [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in shown]


# As written -----------------------------------------------------------------------------------------------------------


def test_page_is_well_formed_and_shows_everything():
    reader = Reader(gallery())
    assert len(reader.ids) == len(set(reader.ids))
    headline = ["Mattes of <faces>", "12,334", "done", "11", "failed", "41 photos/s", "12,345", "a & b"]
    for text in [*headline, "cut short: <b>9 of 10</b> bytes", "40×60", "7 photos; the highest bar is 4"]:
        assert text in reader.text
    assert reader.text.index("cut short") < reader.text.index("HTML or XML?"), "the most frequent reason first"
    places = [reader.text.index(key) for key in ("y/bad.jpg", "x/Doubt.png", "x/sure.jpg", "y/sure.jpg")]
    assert places == sorted(places), "what failed comes first, the sample last"


def test_coverage_is_drawn_to_scale():
    bars = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="0.9" height="([\d.]+)"><title>([^<]*)', gallery())
    assert [float(height) for _, _, height, _ in bars] == [25, 50, 0, 100]
    assert all(float(y) + float(height) == 100 for _, y, height, _ in bars)
    assert [title for *_, title in bars] == ["0.00 to 0.25: 1", "0.25 to 0.50: 2", "0.50 to 0.75: 0", "0.75 to 1.00: 4"]


def test_each_picture_is_there_once_and_nothing_is_outside():
    html = gallery()
    references = Reader(html).references
    assert sum(reference.startswith("data:image/webp;base64,") for reference in references) == 3 * 3 + 1
    assert len(set(references)) == len(references)
    assert all(reference.startswith(("data:image/webp;base64,", "#cutout-")) for reference in references)
    assert "url(" not in html


def test_pictures_are_those_of_the_card():
    shown = card(width=178, height=218)
    photo, alpha, cutout = pictures(gallery(cards=[shown]))
    assert (photo.mode, cutout.mode) == ("RGB", "RGBA")
    np.testing.assert_array_equal(np.asarray(cutout)[..., 3], shown.alpha_HW)
    assert np.abs(np.asarray(photo).astype(int) - shown.image_HWC).mean() < 4
    assert np.abs(np.asarray(alpha)[..., 0].astype(int) - shown.alpha_HW).mean() < 1
    opaque = shown.alpha_HW == 255
    assert np.abs(np.asarray(cutout)[opaque, :3].astype(int) - shown.cutout_HWC[opaque, :3]).mean() < 6


@pytest.mark.parametrize(("width", "height", "size"), [(400, 640, (200, 320)), (900, 2, (320, 1)), (1, 1, (1, 1))])
def test_pictures_are_thumbnails(width, height, size):
    image = np.zeros((height, width, 3), np.uint8)
    cards = [Card("k", "sample", {}, image, image[..., 0], image)]
    assert [picture.size for picture in pictures(gallery(cards=cards))] == [size] * 3
    assert max(size) <= THUMBNAIL


def test_sixty_photos_stay_small():
    noise = np.random.default_rng(0).normal(0, 6, (218, 178, 3))
    cards = []
    for number in range(4):
        image, alpha = draw_person(0, number, 178, 218)
        image = (image + noise).clip(0, 255).astype(np.uint8)
        cards.append(Card(f"{number}.jpg", "sample", {}, image, alpha, image))
    assert (len(gallery(cards=cards)) - len(gallery(cards=[]))) / 4 * 60 < 4e6


def test_a_card_of_two_sizes_or_half_a_prediction_is_an_error():
    image = np.zeros((4, 5, 3), np.uint8)
    for wrong in (image, image[..., 0], None), (image, image[:2, :, 0], image), (None, image[..., 0], image):
        with pytest.raises(ValueError, match=r"card 'k': image is .*expected all of one height"):
            Card("k", "sample", {}, *wrong)


def test_many_reasons_are_cut_to_the_most_frequent():
    reader = Reader(gallery(failures={f"reason {i:03}": i + 1 for i in range(150)}))
    assert "The 100 most frequent of 150 reasons." in reader.text
    assert "reason 050" in reader.text
    assert "reason 049" not in reader.text


# In a browser ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on the PATH (Debian: apt-get install chromium)")
    expect.set_options(timeout=60_000)
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=arguments, timeout=120_000)
        yield running
        running.close()


@pytest.fixture
def show(browser, tmp_path):
    """Opens a page for the length of a `with`. What it says on its console, or asks for besides itself, is an error."""

    @contextmanager
    def opened(html, width=1280, **options):
        file = tmp_path / "report.html"
        file.write_text(html, encoding="utf-8")
        said, asked = [], []
        context = browser.new_context(viewport={"width": width, "height": 740}, **options)
        context.set_default_timeout(60_000)
        tab = context.new_page()
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(file.as_uri())
        yield tab
        context.close()
        assert said == []
        assert {url for url in asked if not url.startswith("data:")} == {file.as_uri()}

    return opened


def keys(tab):
    """Of the cards that can be seen."""
    return [key.inner_text() for key in tab.locator(".cards .key").all() if key.is_visible()]


def fits(tab):
    return tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


ALL = ["y/bad.jpg", "y/late.jpg", "x/Doubt.png", "x/sure.jpg", "y/sure.jpg"]


def test_every_picture_is_drawn(show):
    with show(gallery()) as tab:
        assert tab.locator(".cards img").count() == 3 * 2 + 1
        tab.wait_for_function("[...document.images].every((image) => image.complete && image.naturalWidth)")
        assert keys(tab) == ALL
        first, second = (tab.locator(f".cards .{kind}").first.bounding_box() for kind in ("checkered", "coloured"))
        assert first["width"] == second["width"] > 50
        assert first["height"] == pytest.approx(first["width"] * 60 / 40, abs=1)
        assert tab.get_by_text("could not be decoded").count() == 1


def test_both_cutouts_show_the_person_each_on_its_ground(show):
    with show(gallery(cards=[card(width=160, height=160)]), device_scale_factor=1) as tab:
        tab.locator("input[type=color]").fill("#ff00ff")
        shots = [tab.locator(f".cards .{kind}").screenshot() for kind in ("checkered", "coloured")]
    checkered, coloured = (np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int) for shot in shots)
    alpha = Image.fromarray(card(width=160, height=160).alpha_HW).resize(coloured.shape[1::-1])
    inner = (slice(6, -6),) * 2  # without the line around each
    clear = np.asarray(alpha.filter(ImageFilter.MaxFilter(9)))[inner] == 0
    solid = np.asarray(alpha.filter(ImageFilter.MinFilter(9)))[inner] == 255
    checkered, coloured = checkered[inner], coloured[inner]
    assert clear.any()
    assert solid.any()
    assert (coloured[clear] == [255, 0, 255]).all()
    assert set(np.unique(checkered[clear])) == {212, 255}
    assert np.median(np.abs(checkered[solid] - coloured[solid])) < 8  # each is drawn at its own part of a pixel


def test_groups_filter_the_cards(show):
    with show(gallery()) as tab:
        for group, expected in {
            "Failed 2": ALL[:2],
            "Least confident 1": ALL[2:3],
            "Sample 2": ALL[3:],
            "All 5": ALL,
        }.items():
            tab.get_by_label(group, exact=True).click()
            expect(tab.locator(".controls output")).to_have_text(f"{len(expected)} shown")
            assert keys(tab) == expected
            assert tab.get_by_role("heading", name="Sample").is_visible() == (expected[-1] == ALL[-1])


def test_text_filters_the_cards_within_the_group(show):
    with show(gallery()) as tab:
        search = tab.get_by_label("Find in the name")
        search.fill("SURE")
        expect(tab.locator(".controls output")).to_have_text("2 shown")
        assert keys(tab) == ALL[3:]
        search.press("Enter")  # nor does this send the form anywhere
        tab.get_by_label("Failed 2").focus()
        tab.keyboard.press("Space")
        expect(tab.locator(".controls output")).to_have_text("0 shown")
        search.fill("y/")
        expect(tab.locator(".controls output")).to_have_text("2 shown")
        assert keys(tab) == ALL[:2]


def test_zoom_by_mouse(show):
    with show(gallery()) as tab:
        zoom = tab.locator("dialog")
        for number in (3, 1, 0):
            shown = tab.locator(".cards .card").nth(number)
            shown.locator(".panels").click()
            expect(zoom.locator("code")).to_have_text(ALL[number])
            sources = [image.get_attribute("src") for image in zoom.locator("img").all()]
            assert sources == [image.get_attribute("src") for image in shown.locator("img").all()]
            zoom.get_by_role("button", name="Close").click()
            expect(zoom).to_be_hidden()
        tab.locator(".cards .card").nth(3).click()
        assert zoom.locator("img").first.bounding_box()["width"] > 200
        zoom.get_by_role("button", name="Next").click()
        expect(zoom.locator("code")).to_have_text(ALL[4])
        zoom.get_by_role("button", name="Previous").click()
        expect(zoom.locator("code")).to_have_text(ALL[3])
        tab.mouse.click(3, 3)  # beside the dialog
        expect(zoom).to_be_hidden()


def test_zoom_by_keyboard_goes_through_the_visible_cards(show):
    with show(gallery()) as tab:
        tab.get_by_label("Find in the name").fill("sure")
        zoom, key = tab.locator("dialog"), tab.locator("dialog code")
        tab.locator(".cards .key", has_text="x/sure.jpg").focus()
        tab.keyboard.press("Enter")
        expect(key).to_have_text("x/sure.jpg")
        expect(zoom.locator("nav span")).to_have_text("1 of 2")
        for press, expected in [("Right", "y/sure.jpg"), ("Right", "x/sure.jpg"), ("Left", "y/sure.jpg")]:
            tab.keyboard.press(f"Arrow{press}")
            expect(key).to_have_text(expected)
            assert zoom.locator("img").first.get_attribute("alt") == f"photo of {expected}"
        tab.keyboard.press("Escape")
        expect(zoom).to_be_hidden()
        expect(tab.locator(".cards .key", has_text="y/sure.jpg")).to_be_focused()


@pytest.mark.parametrize("cards", [[], [failed("a.jpg"), failed("b.jpg")]], ids=["none", "all failed"])
@pytest.mark.parametrize("width", [360, 1280])
def test_a_page_of_nothing_good_is_whole(show, cards, width):
    with show(gallery(cards=cards, failures={}, coverage=[], counts={"done": 0}), width) as tab:
        expect(tab.get_by_text("None.", exact=True)).to_be_visible()
        expect(tab.get_by_text("None measured.")).to_be_visible()
        assert tab.get_by_text("No pictures.").count() == (not cards)
        assert keys(tab) == [shown.key for shown in cards]
        assert fits(tab)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_keys_of_strangers_break_nothing_on_a_phone(show, scheme):
    cards = [card(key, number=number) for number, key in enumerate(HOSTILE)]
    cards += [failed(key) for key in HOSTILE]
    html = gallery(cards=cards, failures=dict.fromkeys(HOSTILE, 1), facts=dict.fromkeys(HOSTILE, HOSTILE[3]))
    with show(html, 360, color_scheme=scheme) as tab:
        assert fits(tab)
        assert len(keys(tab)) == 2 * len(HOSTILE)
        tab.locator(".cards .key", has_text="x" * 500).last.click()
        expect(tab.get_by_role("button", name="Close")).to_be_in_viewport()
        expect(tab.locator("dialog img").first).to_be_in_viewport(ratio=0.9)
        for _ in cards:
            assert tab.locator("dialog").evaluate("(zoom) => zoom.scrollWidth <= zoom.clientWidth")
            tab.keyboard.press("ArrowRight")
        assert fits(tab)
        assert tab.evaluate("window.injected") is None
        assert tab.locator(".cards img").first.get_attribute("alt") == f"photo of {HOSTILE[0]}"
        ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground))) < 200) == (scheme == "dark")


def test_without_script_the_cards_are_simply_there(show):
    with show(gallery(), java_script_enabled=False) as tab:
        assert keys(tab) == ALL
        expect(tab.locator(".controls")).to_be_hidden()
        expect(tab.locator("dialog")).to_be_hidden()


def test_the_policy_lets_no_other_script_run_and_nothing_be_fetched(browser, tmp_path):
    file = tmp_path / "report.html"
    foreign = "<script>window.injected = 1</script><img src='http://192.0.2.1/x.png' onerror='window.injected = 1'>"
    file.write_text(gallery().replace("</main>", f"{foreign}</main>"))
    context = browser.new_context()
    tab, refused = context.new_page(), []
    tab.on("requestfailed", lambda request: refused.append((request.url, request.failure)))
    tab.goto(file.as_uri())
    assert tab.evaluate("window.injected") is None
    assert refused == [("http://192.0.2.1/x.png", "csp")]
    expect(tab.locator(".controls")).to_be_visible()
    context.close()
