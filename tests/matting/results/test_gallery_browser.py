"""The gallery page in a browser: filters, enlarged cards, phones, dark mode, and its content policy.

The browser is the headless Chromium on the PATH (Debian's package `chromium`), driven by Playwright, which downloads
none of its own. Without it, these tests are skipped.
"""

import io
import re
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image, ImageFilter
from playwright.sync_api import expect, sync_playwright

from tests.support.galleries import HOSTILE_KEYS, failed_card, sample_card, sample_gallery

pytestmark = pytest.mark.slow

ALL = ["y/bad.jpg", "y/late.jpg", "x/Doubt.png", "x/sure.jpg", "y/sure.jpg"]


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
    """Open a page in a `with` block. Messages on its console and requests for anything but the page are errors."""

    @contextmanager
    def opened(html, width=1280, **options):
        file = tmp_path / "report.html"
        file.write_text(html, encoding="utf-8")
        messages, requests = [], []
        context = browser.new_context(viewport={"width": width, "height": 740}, **options)
        context.set_default_timeout(60_000)
        tab = context.new_page()
        tab.on("console", lambda message: messages.append(message.text))
        tab.on("pageerror", lambda error: messages.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(file.as_uri())
        yield tab
        context.close()
        assert messages == []
        assert {url for url in requests if not url.startswith("data:")} == {file.as_uri()}

    return opened


def keys(tab):
    """Return the keys of the visible cards."""
    return [key.inner_text() for key in tab.locator(".cards .key").all() if key.is_visible()]


def fits(tab):
    return tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_every_image_is_drawn(show):
    with show(sample_gallery()) as tab:
        assert tab.locator(".cards img").count() == 3 * 2 + 1
        tab.wait_for_function("[...document.images].every((image) => image.complete && image.naturalWidth)")
        assert keys(tab) == ALL
        first, second = (tab.locator(f".cards .{kind}").first.bounding_box() for kind in ("checkered", "coloured"))
        assert first["width"] == second["width"] > 50
        assert first["height"] == pytest.approx(first["width"] * 60 / 40, abs=1)
        assert tab.get_by_text("could not be decoded").count() == 1


def test_cutouts_show_the_person_on_both_backgrounds(show):
    with show(sample_gallery(cards=[sample_card(width=160, height=160)]), device_scale_factor=1) as tab:
        tab.locator("input[type=color]").fill("#ff00ff")
        shots = [tab.locator(f".cards .{kind}").screenshot() for kind in ("checkered", "coloured")]
    checkered, coloured = (np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int) for shot in shots)
    alpha = Image.fromarray(sample_card(width=160, height=160).alpha_HW).resize(coloured.shape[1::-1])
    inner = (slice(6, -6),) * 2  # without the outline
    clear = np.asarray(alpha.filter(ImageFilter.MaxFilter(9)))[inner] == 0
    solid = np.asarray(alpha.filter(ImageFilter.MinFilter(9)))[inner] == 255
    checkered, coloured = checkered[inner], coloured[inner]
    assert clear.any()
    assert solid.any()
    assert (coloured[clear] == [255, 0, 255]).all()
    assert set(np.unique(checkered[clear])) == {212, 255}
    assert np.median(np.abs(checkered[solid] - coloured[solid])) < 8  # the two start at different fractions of a pixel


def test_groups_filter_the_cards(show):
    with show(sample_gallery()) as tab:
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


def test_text_filters_within_the_group(show):
    with show(sample_gallery()) as tab:
        search = tab.get_by_label("Find in the name")
        search.fill("SURE")
        expect(tab.locator(".controls output")).to_have_text("2 shown")
        assert keys(tab) == ALL[3:]
        search.press("Enter")  # which must not submit the form
        tab.get_by_label("Failed 2").focus()
        tab.keyboard.press("Space")
        expect(tab.locator(".controls output")).to_have_text("0 shown")
        search.fill("y/")
        expect(tab.locator(".controls output")).to_have_text("2 shown")
        assert keys(tab) == ALL[:2]


def test_card_is_enlarged_by_mouse(show):
    with show(sample_gallery()) as tab:
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


def test_keyboard_steps_through_visible_cards(show):
    with show(sample_gallery()) as tab:
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


@pytest.mark.parametrize("cards", [[], [failed_card("a.jpg"), failed_card("b.jpg")]], ids=["none", "all failed"])
@pytest.mark.parametrize("width", [360, 1280])
def test_page_without_mattes_is_whole(show, cards, width):
    with show(sample_gallery(cards=cards, failures={}, coverage=[], counts={"done": 0}), width) as tab:
        expect(tab.get_by_text("None.", exact=True)).to_be_visible()
        expect(tab.get_by_text("No photo has a matte yet.")).to_be_visible()
        assert tab.get_by_text("No photos.").count() == (not cards)
        assert keys(tab) == [shown.key for shown in cards]
        assert fits(tab)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_hostile_keys_break_nothing_on_a_phone(show, scheme):
    cards = [sample_card(key, number=number) for number, key in enumerate(HOSTILE_KEYS)]
    cards += [failed_card(key) for key in HOSTILE_KEYS]
    html = sample_gallery(
        cards=cards, failures=dict.fromkeys(HOSTILE_KEYS, 1), facts=dict.fromkeys(HOSTILE_KEYS, HOSTILE_KEYS[3])
    )
    with show(html, 360, color_scheme=scheme) as tab:
        assert fits(tab)
        assert len(keys(tab)) == 2 * len(HOSTILE_KEYS)
        tab.locator(".cards .key", has_text="x" * 500).last.click()
        expect(tab.get_by_role("button", name="Close")).to_be_in_viewport()
        expect(tab.locator("dialog img").first).to_be_in_viewport(ratio=0.9)
        for _ in cards:
            assert tab.locator("dialog").evaluate("(zoom) => zoom.scrollWidth <= zoom.clientWidth")
            tab.keyboard.press("ArrowRight")
        assert fits(tab)
        assert tab.evaluate("window.injected") is None
        assert tab.locator(".cards img").first.get_attribute("alt") == f"photo of {HOSTILE_KEYS[0]}"
        ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground))) < 200) == (scheme == "dark")


def test_cards_are_shown_without_scripts(show):
    with show(sample_gallery(), java_script_enabled=False) as tab:
        assert keys(tab) == ALL
        expect(tab.locator(".controls")).to_be_hidden()
        expect(tab.locator("dialog")).to_be_hidden()


def test_policy_blocks_foreign_scripts_and_requests(browser, tmp_path):
    file = tmp_path / "report.html"
    foreign = "<script>window.injected = 1</script><img src='http://192.0.2.1/x.png' onerror='window.injected = 1'>"
    file.write_text(sample_gallery().replace("</main>", f"{foreign}</main>"))
    context = browser.new_context()
    tab, refused = context.new_page(), []
    tab.on("requestfailed", lambda request: refused.append((request.url, request.failure)))
    tab.goto(file.as_uri())
    assert tab.evaluate("window.injected") is None
    assert refused == [("http://192.0.2.1/x.png", "csp")]
    expect(tab.locator(".controls")).to_be_visible()
    context.close()
