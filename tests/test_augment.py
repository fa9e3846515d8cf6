"""augment: image and alpha change alike, from the caller's randomness alone."""

import pytest
import torch
from torch import Tensor

from matting import augment

SHAPES = [((1, 3, 8, 8), 8), ((5, 3, 16, 16), 16), ((4, 3, 32, 32), 16)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """An image whose red channel is the alpha."""
    image = torch.rand(shape, generator=generator(1))
    return image, image[:, :1].clone()


def ramp(side: int, count: int) -> Tensor:
    """Red grows from left to right, green from top to bottom, from 0 to 1; blue is 0."""
    steps = (torch.arange(side, dtype=torch.float32) + 0.5) / side
    picture = torch.stack([steps.expand(side, side), steps[:, None].expand(side, side), torch.zeros(side, side)])
    return picture.expand(count, -1, -1, -1)


def opaque(image: Tensor) -> Tensor:
    return torch.ones_like(image[:, :1])


def usual(count: int) -> Tensor:
    """The largest windows of people who are not placed."""
    return torch.full((count,), augment.ZOOM[1])


def everyone(count: int) -> Tensor:
    return torch.ones(count, dtype=torch.bool)


def only_zoom(monkeypatch: pytest.MonkeyPatch, zoom: tuple[float, float]) -> None:
    """No turning and no stretching."""
    for name, value in {"TURN": 0.0, "STRETCH": 0.0, "ZOOM": zoom}.items():
        monkeypatch.setattr(augment, name, value)


# All of it ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_the_shape_is_as_wanted_and_the_range_stays(shape: tuple[int, ...], size: int) -> None:
    image, alpha = augment.vary(*noise(shape), size, generator())
    assert (image.shape, image.dtype) == ((shape[0], 3, size, size), torch.float32)
    assert (alpha.shape, alpha.dtype) == ((shape[0], 1, size, size), torch.float32)
    for changed in (image, alpha):
        assert changed.min() >= 0
        assert changed.max() <= 1


def test_the_generator_decides_everything() -> None:
    pictures = noise((8, 3, 16, 16))
    before = [each.clone() for each in pictures]
    global_state = torch.get_rng_state()
    first, again, other = (augment.vary(*pictures, 16, generator(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), global_state)
    assert all(torch.equal(old, new) for old, new in zip(before, pictures, strict=True))


# Geometry -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_the_alpha_stays_on_its_image(shape: tuple[int, ...], size: int) -> None:
    image, alpha, _ = augment.move(*noise(shape), size, usual(shape[0]), generator())
    assert torch.equal(image[:, :1], alpha)


def test_half_the_size_is_the_mean_of_four_pixels_where_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    only_zoom(monkeypatch, (1.0, 1.0))
    image, alpha = noise((6, 3, 16, 16))
    small, _, inside = augment.move(image, alpha, 8, usual(6), generator())
    means = torch.nn.functional.avg_pool2d(image, 2)
    assert inside.min() == 1
    for one, mean in zip(small, means, strict=True):
        assert torch.allclose(one, mean, atol=1e-5) or torch.allclose(one, mean.flip(2), atol=1e-5)


def test_windows_of_all_sizes_turned_both_ways_and_half_of_them_mirrored() -> None:
    count = 300
    image, alpha = ramp(64, count), torch.zeros(count, 1, 64, 64)
    moved, _, _ = augment.move(image, alpha, 64, usual(count), generator())
    # In the middle, away from reflections: how red and green grow across and down, in pixels of the picture a pixel.
    across = moved[:, :2, 32, 28:36].diff(dim=2).median(dim=2).values * 64
    down = moved[:, :2, 28:36, 32].diff(dim=2).median(dim=2).values * 64
    sides = torch.linalg.norm(across, dim=1), torch.linalg.norm(down, dim=1)
    scale = (sides[0] * sides[1]).sqrt()
    low, high = augment.ZOOM
    assert low - 0.01 < scale.min() < low * 1.05
    assert high * 0.95 < scale.max() < high + 0.01
    assert 0.4 * count < (across[:, 0] < 0).sum() < 0.6 * count
    turn = torch.atan2(down[:, 0], down[:, 1]).abs()
    assert 0.9 * augment.TURN < turn.max() < augment.TURN + 0.05
    stretch = torch.log(sides[0] / sides[1])
    assert -augment.STRETCH - 0.02 < stretch.min() < -0.9 * augment.STRETCH
    assert 0.9 * augment.STRETCH < stretch.max() < augment.STRETCH + 0.02


def test_inside_is_where_the_picture_is(monkeypatch: pytest.MonkeyPatch) -> None:
    only_zoom(monkeypatch, (1.5, 1.5))
    image = ramp(64, 20)
    moved, _, inside = augment.move(image, opaque(image), 64, usual(20), generator())
    shares = inside.mean(dim=(1, 2, 3))
    torch.testing.assert_close(shares, torch.full_like(shares, 1 / 1.5**2), atol=0.03, rtol=0)
    # A person farther away still stands on the lower edge.
    assert (inside[:, 0, -1].sum(dim=1) > 40).all()
    assert inside[:, 0, :20].sum() == 0
    assert (moved[:, 1, -1] > 0.97).all()


def test_a_window_smaller_than_the_picture_lies_inside_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    only_zoom(monkeypatch, (0.6, 1.0))
    image = ramp(64, 100)
    moved, _, inside = augment.move(image, opaque(image), 64, usual(100), generator())
    assert inside.min() == 1
    corners = moved[:, :2, 0, 0]
    assert corners.min() < 0.1
    assert corners[:, 1].max() > 0.3  # not always the same corner


# Light ----------------------------------------------------------------------------------------------------------------


def test_light_changes_every_picture_and_no_shape() -> None:
    grey = torch.full((50, 3, 8, 8), 0.5)
    lit = augment.relight(grey, generator())
    assert (lit - lit[:, :, :1, :1]).abs().max() < 1e-6  # an even picture stays even
    brightness = torch.log(lit.mean(dim=(1, 2, 3)) / 0.5)
    assert 0.6 * augment.LIGHT < brightness.std() < 1.4 * augment.LIGHT
    assert (lit[:, 0] - lit[:, 2]).abs().max() > 0.02  # and gets a tint


# Backgrounds ----------------------------------------------------------------------------------------------------------


def test_people_are_placed_before_the_background_of_the_next_picture() -> None:
    colours = torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.6, 0.7], [0.9, 0.8, 0.4]])
    image = colours[:, :, None, None].repeat(1, 1, 16, 16)
    alpha = torch.zeros(3, 1, 16, 16)
    alpha[:, :, 6:, 4:12] = 1
    alpha[:, :, 5, 4:12] = 0.5
    image = torch.lerp(image, torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 16, 16), alpha)
    placed, new_alpha = augment.place(image, alpha, torch.ones_like(alpha), everyone(3), generator())
    assert torch.equal(new_alpha, alpha)
    for number in range(3):
        behind = colours[(number + 1) % 3][:, None]
        torch.testing.assert_close(placed[number, :, 0], behind.expand(3, 16), atol=1e-3, rtol=0)
        assert torch.equal(placed[number, :, 8, 6], torch.tensor([1.0, 0, 0]))
        half = 0.5 * image[number, :, 5, 6] + 0.5 * placed[number, :, 4, 6]
        torch.testing.assert_close(placed[number, :, 5, 6], half, atol=0.15, rtol=0)


def test_no_outline_of_a_person_stays_in_the_background_where_its_mask_is_too_small() -> None:
    image, alpha = torch.full((2, 3, 128, 128), 0.5), torch.zeros(2, 1, 128, 128)
    image[0, :, 30:98, 30:98] = torch.tensor([1.0, 0, 0])[:, None, None]  # a red person,
    alpha[0, :, 32:96, 32:96] = 1  # whose mask lacks two pixels on every side
    placed, _ = augment.place(image, alpha, torch.ones_like(alpha), everyone(2), generator())
    torch.testing.assert_close(placed[1], torch.full((3, 128, 128), 0.5), atol=0.01, rtol=0)


def test_reflections_are_no_people_where_the_background_is_another() -> None:
    image, alpha = torch.rand(2, 3, 8, 8, generator=generator()), torch.ones(2, 1, 8, 8)
    inside = torch.ones_like(alpha)
    inside[:, :, :, :3] = 0
    _, new_alpha = augment.place(image, alpha, inside, everyone(2), generator())
    assert torch.equal(new_alpha, inside)


def test_some_of_the_placed_people_are_before_photos_without_people(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LIGHT": 0.0, "TINT": 0.0}.items():
        monkeypatch.setattr(augment, name, value)
    count = 400
    image, alpha = torch.ones(count, 3, 16, 16), torch.zeros(count, 1, 16, 16)
    alpha[:, :, 8:, 4:12] = 1
    photos = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    photos[0, 0], photos[1, 2] = 255, 51  # one is red, the other dark blue
    placed, new_alpha = augment.place(image, alpha, torch.ones_like(alpha), everyone(count), generator(), photos)
    assert torch.equal(new_alpha, alpha)
    torch.testing.assert_close(placed * alpha, image * alpha)
    corners = placed[:, :, 0, 0]
    shares = [
        (corners - torch.tensor(colour)).abs().amax(dim=1).lt(0.01).float().mean().item()
        for colour in ((1.0, 0, 0), (0, 0, 0.2), (1.0, 1, 1))
    ]
    elsewhere = augment.ELSEWHERE
    assert shares == pytest.approx([elsewhere / 2, elsewhere / 2, 1 - elsewhere], abs=0.08)


def test_photos_without_people_come_at_the_size_of_the_pictures_and_never_twice_the_same() -> None:
    photo = (ramp(32, 1) * 255).to(torch.uint8)
    shown = augment.scenes(photo, 5, 16, generator())
    assert (shown.shape, shown.dtype) == ((5, 3, 16, 16), torch.float32)
    assert shown.min() >= 0
    assert shown.max() <= 1
    for number in range(4):
        assert not torch.allclose(shown[number], shown[number + 1], atol=0.02)


def test_a_share_is_placed_and_seen_from_farther_away_than_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    only_zoom(monkeypatch, (1.2, 1.3))
    count = 400
    image = torch.rand((count, 3, 32, 32), generator=generator())
    _, alpha = augment.vary(image, opaque(image), 32, generator())  # reflections of the others are opaque, too
    sides = alpha.mean(dim=(1, 2, 3)).sqrt()
    is_placed = sides < 1
    assert abs(is_placed.float().mean() - augment.PLACED) < 0.06
    assert 1 / augment.FAR - 0.03 < sides[is_placed].min() < 1 / augment.FAR + 0.03
    assert sides[is_placed].max() > 1 / 1.3


def test_the_others_stay_as_they_are() -> None:
    image, alpha = noise((4, 3, 8, 8))
    chosen = torch.tensor([True, False, False, True])
    placed, _ = augment.place(image, alpha, torch.ones_like(alpha), chosen, generator())
    assert torch.equal((placed != image).flatten(1).any(dim=1), chosen)


def test_what_is_known_stays_and_the_rest_is_carried_on() -> None:
    image, known = ramp(32, 1), torch.ones(1, 1, 32, 32)
    known[:, :, 10:22, 10:22] = 0
    hidden = torch.where(known == 1, image, torch.full_like(image, 0.9))
    filled = augment.carry_on(hidden, known)
    torch.testing.assert_close(filled[:, :, :8], image[:, :, :8])
    torch.testing.assert_close(filled, image, atol=0.2, rtol=0)
    assert (filled[:, 2] == 0).all()  # nothing of the 0.9 that was hidden


def test_a_mirror_shows_about_half_of_the_pictures_with_their_alphas() -> None:
    image, alpha = noise((400, 3, 8, 8))
    mirrored, its_alpha = augment.mirror(image, alpha, generator())
    same = (mirrored == image).flatten(1).all(dim=1)
    torch.testing.assert_close(torch.where(same[:, None, None, None], image, image.flip(3)), mirrored, rtol=0, atol=0)
    torch.testing.assert_close(torch.where(same[:, None, None, None], alpha, alpha.flip(3)), its_alpha, rtol=0, atol=0)
    assert abs(same.float().mean() - 0.5) < 0.08


# Wear -----------------------------------------------------------------------------------------------------------------


def test_some_lose_detail_some_get_noise_and_most_stay() -> None:
    count = 400
    image = torch.full((count, 3, 16, 16), 0.5)
    image[:, :, ::2] = 0.4
    worn = augment.wear(image, generator())
    blurred = (worn[:, :, 4:12].std(dim=(1, 2, 3)) < 0.03).float().mean()
    untouched = (worn == image).flatten(1).all(dim=1).float().mean()
    assert abs(blurred - augment.WORN) < 0.08
    assert abs(untouched - (1 - augment.WORN) ** 2) < 0.08
    assert (worn - image).abs().max() < 6 * augment.NOISE
