"""augment, augment_draws: image and alpha stay aligned, and all random numbers come from the caller's generators."""

import numpy as np
import pytest
import torch
from torch import Tensor

from matting.nn import augment, augment_draws

SHAPES = [((1, 3, 8, 8), 8), ((5, 3, 16, 16), 16), ((4, 3, 32, 32), 16)]


CPU = torch.device("cpu")


def randomness(seed: int = 0) -> augment_draws.Randomness:
    return augment_draws.Randomness.seeded(seed, CPU)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return images whose red channel is the alpha, and the alphas."""
    image = torch.rand(shape, generator=generator(1))
    return image, image[:, :1].clone()


def ramp(side: int, count: int) -> Tensor:
    """Return images whose red grows from left to right and green from top to bottom, from 0 to 1; blue is 0."""
    steps = (torch.arange(side, dtype=torch.float32) + 0.5) / side
    image = torch.stack([steps.expand(side, side), steps[:, None].expand(side, side), torch.zeros(side, side)])
    return image.expand(count, -1, -1, -1)


def opaque(image: Tensor) -> Tensor:
    return torch.ones_like(image[:, :1])


def default_windows(count: int) -> Tensor:
    drawn = augment_draws.draw_windows(np.full(count, augment_draws.SCALE_RANGE[1]), np.random.default_rng(0))
    return torch.from_numpy(drawn).float()


def draws(count: int, photos: int = 0) -> augment_draws.Draws:
    return augment_draws.draw(count, photos, np.random.default_rng(0), CPU)


def all_on_neighbours(count: int) -> augment_draws.Draws:
    """Return draws by which each image gets the background of the next one."""
    numbers = torch.arange(count)
    return draws(count)._replace(composites=numbers, neighbours=(numbers + 1) % count)


def only_scale(monkeypatch: pytest.MonkeyPatch, scale_range: tuple[float, float]) -> None:
    """Switch rotation and stretching off."""
    for name, value in {"MAX_ROTATION": 0.0, "MAX_STRETCH": 0.0, "SCALE_RANGE": scale_range}.items():
        monkeypatch.setattr(augment_draws, name, value)


# All steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_result_has_the_size_and_range(shape: tuple[int, ...], size: int) -> None:
    image, alpha = augment.augment(*noise(shape), size, randomness())
    assert (image.shape, image.dtype) == ((shape[0], 3, size, size), torch.float32)
    assert (alpha.shape, alpha.dtype) == ((shape[0], 1, size, size), torch.float32)
    for changed in (image, alpha):
        assert changed.min() >= 0
        assert changed.max() <= 1


def test_generator_is_the_only_randomness() -> None:
    images = noise((8, 3, 16, 16))
    before = [each.clone() for each in images]
    global_state = torch.get_rng_state()
    first, again, other = (augment.augment(*images, 16, randomness(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), global_state)
    assert all(torch.equal(old, new) for old, new in zip(before, images, strict=True))


# random_affine --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_alpha_stays_aligned_with_its_image(shape: tuple[int, ...], size: int) -> None:
    image, alpha, _ = augment.random_affine(*noise(shape), size, default_windows(shape[0]))
    assert torch.equal(image[:, :1], alpha)


def test_halving_averages_four_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    only_scale(monkeypatch, (1.0, 1.0))
    image, alpha = noise((6, 3, 16, 16))
    small, _, inside = augment.random_affine(image, alpha, 8, default_windows(6))
    means = torch.nn.functional.avg_pool2d(image, 2)
    assert inside.min() == 1
    for one, mean in zip(small, means, strict=True):
        assert torch.allclose(one, mean, atol=1e-5) or torch.allclose(one, mean.flip(2), atol=1e-5)


def test_windows_span_the_ranges_of_the_constants() -> None:
    count = 300
    image, alpha = ramp(64, count), torch.zeros(count, 1, 64, 64)
    moved, _, _ = augment.random_affine(image, alpha, 64, default_windows(count))
    # In the middle, away from reflections: slopes of red and green across and down, in image pixels per pixel.
    across = moved[:, :2, 32, 28:36].diff(dim=2).median(dim=2).values * 64
    down = moved[:, :2, 28:36, 32].diff(dim=2).median(dim=2).values * 64
    sides = torch.linalg.norm(across, dim=1), torch.linalg.norm(down, dim=1)
    scale = (sides[0] * sides[1]).sqrt()
    low, high = augment_draws.SCALE_RANGE
    assert low - 0.01 < scale.min() < low * 1.05
    assert high * 0.95 < scale.max() < high + 0.01
    assert 0.4 * count < (across[:, 0] < 0).sum() < 0.6 * count
    angle = torch.atan2(down[:, 0], down[:, 1]).abs()
    assert 0.9 * augment_draws.MAX_ROTATION < angle.max() < augment_draws.MAX_ROTATION + 0.05
    stretch = torch.log(sides[0] / sides[1])
    assert -augment_draws.MAX_STRETCH - 0.02 < stretch.min() < -0.9 * augment_draws.MAX_STRETCH
    assert 0.9 * augment_draws.MAX_STRETCH < stretch.max() < augment_draws.MAX_STRETCH + 0.02


def test_inside_marks_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    only_scale(monkeypatch, (1.5, 1.5))
    image = ramp(64, 20)
    moved, _, inside = augment.random_affine(image, opaque(image), 64, default_windows(20))
    fractions = inside.mean(dim=(1, 2, 3))
    torch.testing.assert_close(fractions, torch.full_like(fractions, 1 / 1.5**2), atol=0.03, rtol=0)
    # The bottom edge of the window stays on the image's.
    assert (inside[:, 0, -1].sum(dim=1) > 40).all()
    assert inside[:, 0, :20].sum() == 0
    assert (moved[:, 1, -1] > 0.97).all()


def test_small_window_lies_inside_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    only_scale(monkeypatch, (0.6, 1.0))
    image = ramp(64, 100)
    moved, _, inside = augment.random_affine(image, opaque(image), 64, default_windows(100))
    assert inside.min() == 1
    corners = moved[:, :2, 0, 0]
    assert corners.min() < 0.1
    assert corners[:, 1].max() > 0.3  # windows differ


# color_jitter ---------------------------------------------------------------------------------------------------------


def test_color_jitter_is_uniform_over_an_image() -> None:
    gray = torch.full((50, 3, 8, 8), 0.5)
    jittered = augment.color_jitter(gray, draws(50).colors)
    assert (jittered - jittered[:, :, :1, :1]).abs().max() < 1e-6  # a uniform image stays uniform
    brightness = torch.log(jittered.mean(dim=(1, 2, 3)) / 0.5)
    assert 0.6 * augment_draws.JITTER_STD < brightness.std() < 1.4 * augment_draws.JITTER_STD
    assert (jittered[:, 0] - jittered[:, 2]).abs().max() > 0.02  # the tint


# composite ------------------------------------------------------------------------------------------------------------


def test_background_comes_from_the_next_image() -> None:
    colors = torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.6, 0.7], [0.9, 0.8, 0.4]])
    image = colors[:, :, None, None].repeat(1, 1, 16, 16)
    alpha = torch.zeros(3, 1, 16, 16)
    alpha[:, :, 6:, 4:12] = 1
    alpha[:, :, 5, 4:12] = 0.5
    image = torch.lerp(image, torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 16, 16), alpha)
    placed, new_alpha = augment.composite(image, alpha, torch.ones_like(alpha), all_on_neighbours(3))
    assert torch.equal(new_alpha, alpha)
    for number in range(3):
        background = colors[(number + 1) % 3][:, None]
        torch.testing.assert_close(placed[number, :, 0], background.expand(3, 16), atol=1e-3, rtol=0)
        assert torch.equal(placed[number, :, 8, 6], torch.tensor([1.0, 0, 0]))
        half = 0.5 * image[number, :, 5, 6] + 0.5 * placed[number, :, 4, 6]
        torch.testing.assert_close(placed[number, :, 5, 6], half, atol=0.15, rtol=0)


def test_no_outline_of_a_person_stays_behind() -> None:
    image, alpha = torch.full((2, 3, 128, 128), 0.5), torch.zeros(2, 1, 128, 128)
    image[0, :, 30:98, 30:98] = torch.tensor([1.0, 0, 0])[:, None, None]  # a red person
    alpha[0, :, 32:96, 32:96] = 1  # with a mask that lacks two pixels on every side
    placed, _ = augment.composite(image, alpha, torch.ones_like(alpha), all_on_neighbours(2))
    torch.testing.assert_close(placed[1], torch.full((3, 128, 128), 0.5), atol=0.01, rtol=0)


def test_people_in_reflections_are_left_out() -> None:
    image, alpha = torch.rand(2, 3, 8, 8, generator=generator()), torch.ones(2, 1, 8, 8)
    inside = torch.ones_like(alpha)
    inside[:, :, :, :3] = 0
    _, new_alpha = augment.composite(image, alpha, inside, all_on_neighbours(2))
    assert torch.equal(new_alpha, inside)


def test_photos_replace_a_fraction_of_backgrounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"JITTER_STD": 0.0, "TINT_STD": 0.0, "COMPOSITE_FRACTION": 1.0}.items():
        monkeypatch.setattr(augment_draws, name, value)
    count = 400
    image, alpha = torch.ones(count, 3, 16, 16), torch.zeros(count, 1, 16, 16)
    alpha[:, :, 8:, 4:12] = 1
    photos = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    photos[0, 0], photos[1, 2] = 255, 51  # one is red, the other dark blue
    placed, new_alpha = augment.composite(image, alpha, torch.ones_like(alpha), draws(count, 2), photos)
    assert torch.equal(new_alpha, alpha)
    torch.testing.assert_close(placed * alpha, image * alpha)
    corners = placed[:, :, 0, 0]
    fractions = [
        (corners - torch.tensor(color)).abs().amax(dim=1).lt(0.01).float().mean().item()
        for color in ((1.0, 0, 0), (0, 0, 0.2), (1.0, 1, 1))
    ]
    on_photo = augment_draws.BACKGROUND_PHOTO_FRACTION
    assert fractions == pytest.approx([on_photo / 2, on_photo / 2, 1 - on_photo], abs=0.08)


def test_each_random_background_differs() -> None:
    photo = (ramp(32, 1) * 255).to(torch.uint8)
    drawn = augment.random_backgrounds(photo, 16, draws(40, 1))[:5]
    assert (drawn.shape, drawn.dtype) == ((5, 3, 16, 16), torch.float32)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    for number in range(4):
        assert not torch.allclose(drawn[number], drawn[number + 1], atol=0.02)


def test_composites_have_larger_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    only_scale(monkeypatch, (1.2, 1.3))
    count = 400
    image = torch.rand((count, 3, 32, 32), generator=generator())
    _, alpha = augment.augment(
        image, opaque(image), 32, randomness()
    )  # of images that are not composites, reflections are opaque too
    sides = alpha.mean(dim=(1, 2, 3)).sqrt()
    is_composite = sides < 1
    assert abs(is_composite.float().mean() - augment_draws.COMPOSITE_FRACTION) < 0.06
    assert (
        1 / augment_draws.COMPOSITE_MAX_SCALE - 0.03
        < sides[is_composite].min()
        < 1 / augment_draws.COMPOSITE_MAX_SCALE + 0.03
    )
    assert sides[is_composite].max() > 1 / 1.3


def test_images_not_chosen_do_not_change() -> None:
    image, alpha = noise((4, 3, 8, 8))
    chosen = torch.tensor([True, False, False, True])
    some = draws(4)._replace(composites=torch.tensor([0, 3]), neighbours=torch.tensor([1, 0]))
    placed, _ = augment.composite(image, alpha, torch.ones_like(alpha), some)
    assert torch.equal((placed != image).flatten(1).any(dim=1), chosen)


def test_inpainting_keeps_known_pixels() -> None:
    image, known = ramp(32, 1), torch.ones(1, 1, 32, 32)
    known[:, :, 10:22, 10:22] = 0
    hidden = torch.where(known == 1, image, torch.full_like(image, 0.9))
    filled = augment.inpaint(hidden, 1 - known)
    torch.testing.assert_close(filled[:, :, :8], image[:, :, :8])
    torch.testing.assert_close(filled, image, atol=0.2, rtol=0)
    assert (filled[:, 2] == 0).all()  # nothing of the hidden 0.9


def test_random_flip_flips_half_with_their_alphas() -> None:
    image, alpha = noise((400, 3, 8, 8))
    flipped, flipped_alpha = augment.random_flip(image, alpha, np.random.default_rng(0))
    same = (flipped == image).flatten(1).all(dim=1)
    torch.testing.assert_close(torch.where(same[:, None, None, None], image, image.flip(3)), flipped, rtol=0, atol=0)
    torch.testing.assert_close(
        torch.where(same[:, None, None, None], alpha, alpha.flip(3)), flipped_alpha, rtol=0, atol=0
    )
    assert abs(same.float().mean() - 0.5) < 0.08


# degrade --------------------------------------------------------------------------------------------------------------


def test_fractions_of_blurred_and_noisy_images() -> None:
    count = 400
    image = torch.full((count, 3, 16, 16), 0.5)
    image[:, :, ::2] = 0.4
    degraded = augment.degrade(image, draws(count), generator())
    blurred = (degraded[:, :, 4:12].std(dim=(1, 2, 3)) < 0.03).float().mean()
    untouched = (degraded == image).flatten(1).all(dim=1).float().mean()
    assert abs(blurred - augment_draws.BLUR_FRACTION) < 0.08
    expected = (1 - augment_draws.BLUR_FRACTION) * (1 - augment_draws.NOISE_FRACTION)
    assert abs(untouched - expected) < 0.08
    assert (degraded - image).abs().max() < 6 * augment_draws.MAX_NOISE_STD
