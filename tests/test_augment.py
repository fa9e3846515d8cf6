"""augment: image and alpha change alike, from the caller's randomness alone."""

import pytest
import torch
from torch import Tensor

from matting.augment import flips_and_crops

SHAPES = [(1, 3, 8, 8), (5, 3, 16, 16), (4, 3, 12, 20)]


def augmented(image: Tensor, alpha: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    return flips_and_crops(image, alpha, torch.Generator().manual_seed(seed))


def noise(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """An image whose red channel is the alpha."""
    image = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    return image, image[:, :1].clone()


def ramp(side: int, count: int) -> Tensor:
    """Red grows from left to right, green from top to bottom, by 1 a pixel; blue is 0."""
    steps = torch.arange(side, dtype=torch.float32)
    picture = torch.stack([steps.expand(side, side), steps[:, None].expand(side, side), torch.zeros(side, side)])
    return picture.expand(count, -1, -1, -1)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_alpha_stays_on_its_image(shape: tuple[int, ...]) -> None:
    image, alpha = augmented(*noise(shape))
    assert torch.equal(image[:, :1], alpha)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_and_ranges_stay(shape: tuple[int, ...]) -> None:
    before = noise(shape)
    after = augmented(*before)
    for old, new in zip(before, after, strict=True):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)
        assert new.min() >= 0
        assert new.max() <= 1
    assert not torch.equal(before[0], after[0])


def test_the_generator_decides_everything() -> None:
    pictures = noise((4, 3, 16, 16))
    global_state = torch.get_rng_state()
    first, again, other = (augmented(*pictures, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), global_state)


def test_a_plain_picture_stays_as_it_is() -> None:
    image = torch.tensor([0.1, 0.5, 1.0]).view(1, 3, 1, 1).expand(8, 3, 16, 16)
    alpha = torch.full((8, 1, 16, 16), 0.7)
    new_image, new_alpha = augmented(image, alpha)
    torch.testing.assert_close(new_image, image)
    torch.testing.assert_close(new_alpha, alpha)


def test_half_are_mirrored_and_each_is_zoomed_alike_in_both_directions() -> None:
    count = 200
    image, _ = augmented(ramp(64, count), torch.zeros(count, 1, 64, 64))
    across = image[:, 0].diff(dim=2).flatten(1).median(dim=1).values
    down = image[:, 1].diff(dim=1).flatten(1).median(dim=1).values
    torch.testing.assert_close(across.abs(), down, atol=1e-3, rtol=0)
    assert 0.4 * count < (across < 0).sum() < 0.6 * count
    assert 0.7 - 1e-3 <= down.min() < 0.72  # all of the range, none beyond
    assert 0.98 < down.max() <= 1 + 1e-3


def test_the_window_lies_inside_of_the_picture() -> None:
    image, _ = augmented(ramp(64, 200), torch.zeros(200, 1, 64, 64))
    mirrored = image[:, 0, 0, 0] > image[:, 0, 0, -1]
    across = torch.where(mirrored[:, None, None], image[:, 0].flip(2), image[:, 0])
    down = image[:, 1].transpose(1, 2)
    for rising in (across, down):
        # A window that left the picture would show its reflection, where the ramp turns round.
        assert (rising.diff(dim=2) > -1e-4).all()
        # Yet it is not always the same corner.
        assert rising[..., 0].min() < 3 < 15 < rising[..., 0].max()
        assert rising[..., -1].min() < 48 < 60 < rising[..., -1].max()
