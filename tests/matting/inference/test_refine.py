"""Full-size alphas and cutouts: against a slow reference, and by how close they come to true ones."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from matting.data import images
from matting.data.pairs import find_pairs
from matting.data.synthetic import draw_person
from matting.inference import refine
from tests.reference import refine as reference
from tests.support.alphas import bicubic, mad
from tests.support.paths import SHARED

AISEGMENT = SHARED / "data" / "pairs" / "aisegment"

sides = st.integers(1, 90)


def disc(width, height, softness):
    """Draw the alpha of a disc with an edge that is `softness` pixels wide."""
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - 0.45 * height, columns - 0.5 * width)
    return np.rint(255 * np.clip((0.3 * height - distance) / softness + 0.5, 0, 1)).astype(np.uint8)


def composite(front, back, alpha):
    opacity = alpha[..., None] / 255
    return np.rint(opacity * front + (1 - opacity) * back).astype(np.uint8)


def textured(colour, shape, seed):
    noise = np.random.default_rng(seed).normal(0, 8, (*shape, 3))
    return np.clip(np.array(colour) + noise, 0, 255)


@given(st.integers(0, 255), sides, sides, sides, sides)
def test_constant_alpha_stays_constant(value, small_width, small_height, width, height):
    small_alpha = np.full((small_height, small_width), value, np.uint8)
    assert (refine.upsample(small_alpha, width, height) == np.full((height, width), value)).all()


@given(sides, sides, st.integers(0, 99))
def test_clear_and_solid_alphas_ignore_the_photo(width, height, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    for value in (0, 255):
        assert (refine.guided(np.full((16, 16), value, np.uint8), image, width, height) == value).all()


def test_alpha_at_full_size_is_unchanged():
    alpha = np.random.default_rng(0).integers(0, 256, (30, 20), np.uint8)
    assert (refine.upsample(alpha, 20, 30) == alpha).all()


@pytest.mark.parametrize(("width", "height"), [(64, 50), (41, 23), (16, 16), (7, 90), (1, 1)])
def test_upsample_matches_reference(width, height):
    small_alpha = np.random.default_rng(1).integers(0, 256, (16, 16), np.uint8)
    expected = reference.upsample(small_alpha / 255, width, height, refine.SHARPENING)
    assert np.abs(refine.upsample(small_alpha, width, height) - 255 * expected).max() < 0.51


@pytest.mark.parametrize(("width", "height"), [(64, 50), (23, 41)])
def test_guided_matches_reference(width, height):
    alpha = disc(width, height, softness=4)
    image = composite(textured((200, 120, 60), alpha.shape, 2), textured((60, 130, 160), alpha.shape, 3), alpha)
    small_alpha = images.resize(alpha, 16, 16)
    expected = reference.guided(
        small_alpha / 255,
        image / 255,
        refine.SHARPENING,
        refine.DETAIL,
        refine.SPREAD,
        refine.NOISE,
        refine.SOLID,
    )
    # The reference does not round the reduced photo to 8 bits.
    assert np.abs(refine.guided(small_alpha, image, width, height) - 255 * expected).max() < 2


@pytest.mark.parametrize("softness", [1, 3, 8])
def test_upsample_undoes_the_blur_of_reducing(softness):
    alpha = disc(480, 640, softness)
    small_alpha = images.resize(alpha, 128, 128)
    assert mad(refine.upsample(small_alpha, 480, 640), alpha) < 0.6 * mad(bicubic(small_alpha, 480, 640), alpha)


def test_guided_corrects_a_misplaced_edge():
    alpha = disc(240, 320, softness=2)
    image = composite(textured((190, 140, 110), alpha.shape, 4), textured((60, 90, 130), alpha.shape, 5), alpha)
    misplaced = images.resize(np.roll(alpha, (1, -1), (0, 1)), 64, 64)
    interpolated = refine.upsample(misplaced, 240, 320)
    assert mad(refine.guided(misplaced, image, 240, 320), alpha) < 0.85 * mad(interpolated, alpha)


def test_guided_ignores_a_photo_of_one_colour():
    small_alpha = images.resize(disc(240, 320, softness=5), 64, 64)
    grey = np.full((320, 240, 3), 127, np.uint8)
    guided = refine.guided(small_alpha, grey, 240, 320).astype(int)
    assert np.abs(guided - refine.upsample(small_alpha, 240, 320)).max() <= 1


@pytest.mark.parametrize("index", range(3))
def test_guided_beats_upsample_beats_bicubic(index):
    image, alpha = draw_person(0, index, 300, 400)
    small_alpha = images.resize(alpha, 128, 128)
    errors = [
        mad(pred, alpha)
        for pred in (
            refine.guided(small_alpha, image, 300, 400),
            refine.upsample(small_alpha, 300, 400),
            bicubic(small_alpha, 300, 400),
        )
    ]
    assert errors == sorted(errors)


@pytest.mark.skipif(not AISEGMENT.exists(), reason="needs ../shared")
@pytest.mark.parametrize("blur", [0, 0.8])
def test_guided_is_best_on_real_mattes(blur):
    errors = []
    for pair in find_pairs(str(AISEGMENT)).pairs[::5]:
        image = images.decode_image(Path(pair.image_uri).read_bytes())
        alpha = images.decode_alpha(Path(pair.matte_uri).read_bytes())
        height, width = alpha.shape
        small_alpha = gaussian_filter(images.resize(alpha, 128, 128), blur)
        preds = (
            refine.guided(small_alpha, image, width, height),
            refine.upsample(small_alpha, width, height),
            bicubic(small_alpha, width, height),
        )
        errors.append([mad(pred, alpha) for pred in preds])
    guided, upsampled, plain = np.mean(errors, axis=0)
    assert guided < 0.98 * upsampled < 0.8 * plain


def test_cutout_has_no_old_background():
    alpha = disc(240, 320, softness=12)
    front, back = textured((200, 150, 120), alpha.shape, 6), textured((20, 160, 40), alpha.shape, 7)
    image = composite(front, back, alpha)
    new_back = np.zeros_like(front)
    truth = composite(front, new_back, alpha).astype(int)
    soft = (alpha > 0) & (alpha < 255)
    naive = np.abs(composite(image, new_back, alpha) - truth)[soft].mean()
    ours = np.abs(composite(refine.cutout(image, alpha)[..., :3], new_back, alpha) - truth)[soft].mean()
    assert ours < 0.25 * naive


def test_cutout_keeps_and_extends_opaque_colours():
    alpha = disc(240, 320, softness=6)
    image = composite(np.array([200, 150, 120]), np.array([20, 160, 40]), alpha)
    colours, opacity = np.split(refine.cutout(image, alpha), [3], axis=2)
    assert (opacity[..., 0] == alpha).all()
    assert (colours[alpha == 255] == image[alpha == 255]).all()
    assert np.abs(colours.astype(int) - [200, 150, 120]).max() <= 6


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_cutout_accepts_any_size_and_alpha(width, height, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    alpha = rng.choice(np.array([0, 100, 255], np.uint8), (height, width))
    cutout = refine.cutout(image, alpha)
    assert (cutout[..., 3] == alpha).all()
    assert (cutout[alpha == 255, :3] == image[alpha == 255]).all()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (10, 20_000), (20_000, 10), (1, 300)])
def test_extreme_aspects_are_accepted(width, height):
    image = np.random.default_rng(8).integers(0, 256, (height, width, 3), np.uint8)
    alpha = refine.guided(disc(128, 128, softness=4), image, width, height)
    assert alpha.shape == (height, width)
    assert refine.cutout(image, alpha).shape == (height, width, 4)


def test_cutout_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"alpha is \(128, 128\), its image \(320, 240\)"):
        refine.cutout(np.zeros((320, 240, 3), np.uint8), np.zeros((128, 128), np.uint8))
