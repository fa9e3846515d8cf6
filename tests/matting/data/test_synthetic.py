"""synthetic: people are reproducible, the same at every size, and have the alpha that they are composited with."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from matting.data import drawing, synthetic
from matting.data.synthetic import draw_person

SIZE = 64


@pytest.fixture(scope="module")
def alphas():
    """Alphas of 100 people, in [0, 1]."""
    return np.stack([draw_person(7, index, SIZE, SIZE)[1] for index in range(100)]) / 255


def shrunk(pixels, factor):
    """Return the mean of each factor × factor block."""
    height, width = pixels.shape[:2]
    return pixels.reshape(height // factor, factor, width // factor, factor, -1).mean(axis=(1, 3)).squeeze()


def test_shapes_and_types_follow_the_size():
    image, alpha = draw_person(0, 0, width=48, height=80)
    assert image.shape == (80, 48, 3)
    assert alpha.shape == (80, 48)
    assert image.dtype == alpha.dtype == np.uint8


def test_another_process_draws_the_same_bytes():
    program = """if True:
        import hashlib
        from matting.data.synthetic import draw_person
        print(hashlib.sha256(b"".join(part.tobytes() for part in draw_person(3, 5, 50, 40))).hexdigest())
    """
    elsewhere = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    for other in range(3):
        draw_person(3, other, 32, 32)
    here = hashlib.sha256(b"".join(part.tobytes() for part in draw_person(3, 5, 50, 40))).hexdigest()
    assert here == elsewhere.strip()


def test_global_random_state_is_unchanged():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    draw_person(0, 0, 32, 32)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_every_seed_and_index_is_another_person():
    alphas = {draw_person(seed, index, 32, 32)[1].tobytes() for seed in range(5) for index in range(20)}
    assert len(alphas) == 100


@pytest.mark.parametrize("index", range(8))
@pytest.mark.parametrize("factor", [2, 5])
def test_person_is_the_same_at_every_size(index, factor):
    small_image, small_alpha = draw_person(1, index, SIZE, SIZE)
    image, alpha = draw_person(1, index, SIZE * factor, SIZE * factor)
    assert np.abs(shrunk(alpha, factor) - small_alpha).mean() < 2
    # Apart from edges, only the sensor's noise differs: up to 0.03 of the range.
    assert np.abs(shrunk(image, factor) - small_image).mean() < 9


@pytest.mark.parametrize("index", range(8))
def test_alpha_matches_two_backdrops(index, monkeypatch):
    """Triangulation (Smith and Blinn 1996): images before black and before white differ by 1 - alpha."""
    monkeypatch.setattr(synthetic, "photograph", lambda scene_HWC, _: drawing.to_bytes(scene_HWC))
    photos = []
    for backdrop in (0, 1):
        monkeypatch.setattr(synthetic, "draw_background", lambda *_, level=backdrop: np.float32(level))
        image, alpha = draw_person(2, index, SIZE, SIZE)
        photos.append(image.astype(int))
    black, white = photos
    np.testing.assert_allclose(255 - (white - black), np.repeat(alpha[..., None], 3, axis=2), atol=1)


@pytest.mark.parametrize("index", range(8))
def test_backdrop_shows_only_where_alpha_allows(index, monkeypatch):
    image, alpha = draw_person(2, index, SIZE, SIZE)
    monkeypatch.setattr(synthetic, "draw_background", lambda *_: np.float32(0.5))
    elsewhere, same_alpha = draw_person(2, index, SIZE, SIZE)
    np.testing.assert_array_equal(same_alpha, alpha)
    np.testing.assert_array_equal(image[alpha == 255], elsewhere[alpha == 255])
    # A bare backdrop in the camera's colours and noise shows no trace of the person.
    assert elsewhere[alpha == 0].std(axis=0).max() < 0.035 * 255


def test_most_images_are_portraits(alphas):
    coverage = alphas.mean(axis=(1, 2))
    assert coverage.min() > 0.08
    assert coverage.max() < 0.85
    assert np.mean((coverage > 0.15) & (coverage < 0.6)) > 0.85


def test_every_alpha_has_some_soft_pixels(alphas):
    soft = np.mean((alphas > 0) & (alphas < 1), axis=(1, 2))
    assert soft.min() > 0.005
    assert soft.max() < 0.3
    assert np.median(soft) < 0.1


def test_single_hairs_are_translucent(monkeypatch):
    haired = np.stack([draw_person(4, index, 128, 128)[1] for index in range(20)])
    monkeypatch.setattr(drawing.Drawing, "hatch", lambda *_: None)
    shaved = np.stack([draw_person(4, index, 128, 128)[1] for index in range(20)])
    assert np.all(haired >= shaved)
    hairs = haired[(shaved == 0) & (haired > 0)]
    assert len(hairs) > 20 * 100
    assert np.mean(hairs < 255) > 0.95
