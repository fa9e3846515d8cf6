"""Helpers of all pages: numbers, embedded images, and text that UTF-8 cannot hold."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from matting.results.html import embed_image, format_number


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
    assert format_number(value) == text


def test_embedded_image_keeps_its_alpha():
    rgba = np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)
    embedded = embed_image("cutout", Image.fromarray(rgba))
    assert (embedded["name"], embedded["width"], embedded["height"]) == ("cutout", 30, 20)
    found = Image.open(io.BytesIO(base64.b64decode(str(embedded["uri"]).partition(",")[2])))
    np.testing.assert_array_equal(np.asarray(found)[..., 3], rgba[..., 3])
