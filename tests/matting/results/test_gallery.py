"""The gallery page as text: everything is in it, once, and nothing is outside."""

import re

import numpy as np
import pytest

from matting.data.synthetic import draw_person
from matting.results.gallery import THUMBNAIL, Card
from tests.support.galleries import sample_card, sample_gallery
from tests.support.pages import PageReader, embedded_images


def test_page_shows_everything():
    reader = PageReader(sample_gallery())
    assert len(reader.ids) == len(set(reader.ids))
    headline = ["Mattes of <faces>", "12,334", "done", "11", "failed", "41 photos/s", "12,345", "a & b"]
    for text in [*headline, "cut short: <b>9 of 10</b> bytes", "40×60", "7 photos; the highest bar has 4"]:
        assert text in reader.text
    assert reader.text.index("cut short") < reader.text.index("HTML or XML?"), "the most frequent reason first"
    places = [reader.text.index(key) for key in ("y/bad.jpg", "x/Doubt.png", "x/sure.jpg", "y/sure.jpg")]
    assert places == sorted(places), "failed photos come first, the sample last"


def test_coverage_bars_are_to_scale():
    bars = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="0.9" height="([\d.]+)"><title>([^<]*)', sample_gallery())
    assert [float(height) for _, _, height, _ in bars] == [25, 50, 0, 100]
    assert all(float(y) + float(height) == 100 for _, y, height, _ in bars)
    assert [title for *_, title in bars] == ["0.00 to 0.25: 1", "0.25 to 0.50: 2", "0.50 to 0.75: 0", "0.75 to 1.00: 4"]


def test_each_image_is_embedded_once():
    html = sample_gallery()
    references = PageReader(html).references
    assert sum(reference.startswith("data:image/webp;base64,") for reference in references) == 3 * 3 + 1
    assert len(set(references)) == len(references)
    assert all(reference.startswith(("data:image/webp;base64,", "#cutout-")) for reference in references)
    assert "url(" not in html


def test_images_match_the_card():
    shown = sample_card(width=178, height=218)
    photo, alpha, cutout = embedded_images(sample_gallery(cards=[shown]))
    assert (photo.mode, cutout.mode) == ("RGB", "RGBA")
    np.testing.assert_array_equal(np.asarray(cutout)[..., 3], shown.alpha_HW)
    assert np.abs(np.asarray(photo).astype(int) - shown.image_HWC).mean() < 4
    assert np.abs(np.asarray(alpha)[..., 0].astype(int) - shown.alpha_HW).mean() < 1
    opaque = shown.alpha_HW == 255
    assert np.abs(np.asarray(cutout)[opaque, :3].astype(int) - shown.cutout_HWC[opaque, :3]).mean() < 6


@pytest.mark.parametrize(("width", "height", "size"), [(400, 640, (200, 320)), (900, 2, (320, 1)), (1, 1, (1, 1))])
def test_images_are_thumbnails(width, height, size):
    image = np.zeros((height, width, 3), np.uint8)
    cards = [Card("k", "sample", {}, image, image[..., 0], image)]
    assert [image.size for image in embedded_images(sample_gallery(cards=cards))] == [size] * 3
    assert max(size) <= THUMBNAIL


def test_page_of_sixty_photos_is_small():
    noise = np.random.default_rng(0).normal(0, 6, (218, 178, 3))
    cards = []
    for number in range(4):
        image, alpha = draw_person(0, number, 178, 218)
        image = (image + noise).clip(0, 255).astype(np.uint8)
        cards.append(Card(f"{number}.jpg", "sample", {}, image, alpha, image))
    assert (len(sample_gallery(cards=cards)) - len(sample_gallery(cards=[]))) / 4 * 60 < 4e6


def test_card_of_two_sizes_is_refused():
    image = np.zeros((4, 5, 3), np.uint8)
    alpha, small = image[..., 0], image[:2]
    for wrong in (image, alpha, None), (image, small[..., 0], image), (None, alpha, image), (image, alpha, small):
        with pytest.raises(ValueError, match=r"card 'k': image is .*expected all of one height"):
            Card("k", "sample", {}, *wrong)


@pytest.mark.parametrize(("channels", "name"), [(3, "composite"), (4, "cutout")])
def test_finished_cutout_has_any_size(channels, name):
    photo, _ = draw_person(0, 0, 40, 60)
    cutout = np.full((10, 20, channels), 200, np.uint8)
    html = sample_gallery(cards=[Card("a.jpg", "sample", {}, photo, cutout_HWC=cutout)])
    assert [image.size for image in embedded_images(html)] == [(40, 60), (20, 10)]
    assert f'"{name} of a.jpg' in html
    assert "alpha of a.jpg" not in html


def test_only_frequent_reasons_are_listed():
    reader = PageReader(sample_gallery(failures={f"reason {i:03}": i + 1 for i in range(150)}))
    assert "The 100 most frequent of 150 reasons." in reader.text
    assert "reason 050" in reader.text
    assert "reason 049" not in reader.text


def test_coverage_and_confidence_are_explained():
    reader = PageReader(sample_gallery())
    assert "Coverage is the mean alpha" in reader.text
    assert "Confidence is how decided" in reader.text
    assert any(title.startswith("Coverage is") for title in reader.titles)
