"""trainer: the step, the epoch, the validation pass, and resuming."""

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from matting.nn import steps
from matting.nn.metrics import image_metrics
from matting.nn.schedule import Budget
from matting.nn.steps import NonFiniteLoss
from matting.nn.trainer import Score, Trainer, TrainingConfig, mean_scores, scale_to_batch
from matting.nn.unet import UNet, UNetConfig
from tests.support.training import SIZE, new_trainer, person_batch


def test_training_lowers_the_loss() -> None:
    trainer = new_trainer(learning_rate=1e-2)
    first = trainer.train_epoch([person_batch(*range(8))])
    for _ in range(30):
        last = trainer.train_epoch([person_batch(*range(8))])
    assert last.loss < 0.5 * first.loss
    assert (trainer.epochs_done, trainer.steps) == (31, 31)


def test_reported_loss_does_not_depend_on_reduction() -> None:
    epochs = [new_trainer(reduction=reduction).train_epoch([person_batch(0, 1, 2)]) for reduction in ("mean", "sum")]
    assert epochs[0].loss == pytest.approx(epochs[1].loss, rel=1e-5)


def test_sum_reduction_scales_the_gradient() -> None:
    # Adam hides the scale of a gradient; its second moment after one step is (1 - beta2) times the square.
    squares = {}
    for reduction in ("mean", "sum"):
        trainer = new_trainer(reduction=reduction)
        trainer.train_epoch([person_batch(0, 1)])
        moments = trainer.state()["optimizer"]["state"]
        squares[reduction] = moments[0]["exp_avg_sq"]
    values = 2 * 4 * SIZE * SIZE
    torch.testing.assert_close(squares["sum"].sqrt(), squares["mean"].sqrt() * values, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_resumed_run_equals_an_uninterrupted_one(ema_decay: float) -> None:
    epochs = [
        [person_batch(0, 1, 2), person_batch(3, 4)],
        [person_batch(4, 0), person_batch(1, 2, 3)],
        [person_batch(2, 1)],
    ]
    recipe: dict[str, Any] = {
        "augment_fraction": 0.7,
        "ema_decay": ema_decay,
        "schedule": "cosine",
        "weight_decay": 0.1,
    }
    budget = Budget(epochs=3, samples=5)
    whole = new_trainer(**recipe)
    for batches in epochs:
        whole.train_epoch(batches, budget)
    first = new_trainer(**recipe)
    first.train_epoch(epochs[0], budget)
    second = new_trainer(**recipe)
    second.resume(copy.deepcopy(first.model.state_dict()), copy.deepcopy(first.state()))
    for batches in epochs[1:]:
        second.train_epoch(batches, budget)
    assert (second.epochs_done, second.steps) == (whole.epochs_done, whole.steps)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


def test_epoch_stops_when_time_is_up() -> None:
    trainer = new_trainer()
    epoch = trainer.train_epoch((person_batch(0) for _ in range(1000)), Budget(seconds=0))
    assert epoch.steps == 1
    assert trainer.seconds >= epoch.seconds > 0


def test_weight_decay_applies_to_kernels_only() -> None:
    before = new_trainer().model.state_dict()
    trainer = new_trainer(weight_decay=1e6, learning_rate=1e-6)
    trainer.train_epoch([person_batch(0, 1)])  # after this step, kernels are almost 0
    for name, value in trainer.model.named_parameters():
        if value.ndim > 1:
            assert value.abs().max() < 1e-5, name
        else:
            torch.testing.assert_close(value, before[name], atol=1e-5, rtol=0)


# Size and augmentation over the run -----------------------------------------------------------------------------------


def record_inputs(trainer: Trainer) -> list[torch.Tensor]:
    """Return a list that will hold every batch of images that the network receives."""
    shown: list[torch.Tensor] = []
    trainer.model.register_forward_hook(lambda _, inputs, __: shown.append(inputs[0]))
    return shown


@pytest.mark.parametrize("augment_fraction", [0.0, 1.0])
def test_run_starts_at_half_the_size(augment_fraction: float) -> None:
    trainer = new_trainer(half_res_fraction=0.5, augment_fraction=augment_fraction)
    shown = record_inputs(trainer)
    trainer.train_epoch([person_batch(0, 1)] * 4, Budget(epochs=1, samples=8))
    assert [images.shape[-1] for images in shown] == [SIZE // 2] * 2 + [SIZE] * 2


@pytest.mark.parametrize("augment_size", [24, 48])
def test_augment_size_limits_augmented_images(augment_size: int) -> None:
    trainer = new_trainer(half_res_fraction=0.25, augment_fraction=0.5, augment_size=augment_size)
    shown = record_inputs(trainer)
    trainer.train_epoch([person_batch(0, 1)] * 4, Budget(epochs=1, samples=8))
    side = min(SIZE, augment_size)
    assert [images.shape[-1] for images in shown] == [side // 2, side, SIZE, SIZE]


@pytest.mark.parametrize(
    ("augment_fraction", "expected"),
    [(0.0, [{"original"}] * 4), (0.5, [{"augmented"}] * 2 + [{"original", "flipped"}] * 2)],
)
def test_images_are_only_flipped_after_augmentation(augment_fraction: float, expected: list[set[str]]) -> None:
    trainer = new_trainer(augment_fraction=augment_fraction)
    shown = record_inputs(trainer)
    pairs = person_batch(*range(8))
    originals = torch.from_numpy(pairs["image"]).permute(0, 3, 1, 2) / 255
    trainer.train_epoch([pairs] * 4, Budget(epochs=1, samples=32))

    def kind(image: torch.Tensor, original: torch.Tensor) -> str:
        for name, same in (("original", original), ("flipped", original.flip(2))):
            if torch.allclose(image, same, atol=1e-6):
                return name
        return "augmented"

    assert [{kind(*both) for both in zip(images, originals, strict=True)} for images in shown] == expected


@pytest.mark.parametrize("is_given", [False, True])
def test_background_photos_appear_in_augmented_images(is_given: bool) -> None:
    green = np.broadcast_to(np.array([0, 200, 0], np.uint8), (3, SIZE, SIZE, 3))
    trainer = new_trainer(green if is_given else None, augment_fraction=0.5)
    shown = record_inputs(trainer)
    nobody = {
        "key": np.array(["gray"] * 64),
        "image": np.full((64, SIZE, SIZE, 3), 128, np.uint8),
        "alpha": np.zeros((64, SIZE, SIZE), np.uint8),
    }
    trainer.train_epoch([nobody] * 2, Budget(epochs=1, samples=128))
    augmented, originals = (
        (images[:, 1] > 1.5 * images[:, [0, 2]].amax(1)).float().mean((1, 2)) > 0.9 for images in shown
    )
    assert bool(augmented.any()) == is_given
    assert not augmented.all()
    assert not originals.any()


# Losses ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("term", ["mse", "l1", "cross_entropy", "laplacian"])
def test_each_loss_term_alone_improves_alpha(term: str) -> None:
    trainer = new_trainer(**{"learning_rate": 1e-2, "mse": 0.0, term: 1.0})
    pairs = [person_batch(*range(8))]
    errors = []
    for _ in range(30):
        trainer.train_epoch(pairs)
        errors.append(mean_scores(trainer.validate(pairs))["mad"])
    assert errors[-1] < 0.6 * errors[0]


@pytest.mark.parametrize(("epochs_done", "counts"), [(0, True), (1, True), (2, False)])
def test_cross_entropy_vanishes_at_the_end(epochs_done: int, counts: bool) -> None:
    kernels = []
    for weight in (0.0, 1.0):
        trainer = new_trainer(cross_entropy=weight)
        trainer.epochs_done = epochs_done
        trainer.train_epoch([person_batch(0, 1)], Budget(epochs=2, samples=2))
        kernels.append(trainer.state()["optimizer"]["state"][0]["exp_avg"])
    assert torch.equal(*kernels) != counts


def test_non_finite_loss_stops_before_the_step() -> None:
    trainer = new_trainer()
    with torch.no_grad():
        trainer.model.head[2].weight[:] = math.nan
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items() if "running" not in name}
    with pytest.raises(NonFiniteLoss, match=r"step 1 of epoch 1.*person-7, person-9"):
        trainer.train_epoch([person_batch(7, 9)])
    for name, tensor in before.items():
        if "num_batches" not in name:
            torch.testing.assert_close(trainer.model.state_dict()[name], tensor, equal_nan=True)


def test_a_step_that_is_found_later_was_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "CHECK_SECONDS", math.inf)  # the second step is read with the third and last
    after: list[torch.Tensor] = []
    weight = (trainer := new_trainer()).model.head[2].weight

    def spoil(_: torch.nn.Module, __: Any, pred: torch.Tensor) -> torch.Tensor:
        after.append(weight.detach().clone())
        return pred * math.nan if len(after) == 2 else pred

    trainer.model.register_forward_hook(spoil)
    with pytest.raises(NonFiniteLoss, match=r"step 2 of epoch 1.*person-3\. "):
        trainer.train_epoch([person_batch(number) for number in (2, 3, 4)])
    assert not torch.equal(after[0], after[1])
    assert torch.equal(after[1], after[2])
    assert not torch.equal(after[2], weight)


# Validation -----------------------------------------------------------------------------------------------------------


def test_validation_scores_agree_with_image_metrics() -> None:
    trainer = new_trainer()
    pairs = person_batch(0, 1, 2, 3, 4)
    parts = [{name: column[part] for name, column in pairs.items()} for part in (slice(0, 3), slice(3, 5))]
    scores = trainer.validate(parts)
    assert [score.key for score in scores] == list(pairs["key"])
    with torch.no_grad():
        image = torch.from_numpy(pairs["image"]).permute(0, 3, 1, 2).float() / 255
        pred = (trainer.model.eval()(image)[:, 3] + 1) / 2
    for number, score in enumerate(scores):
        # image_metrics takes bytes: rounding moves a mean by less than half of 1/255.
        expected = image_metrics((pred[number].numpy() * 255).round().astype(np.uint8), pairs["alpha"][number])
        assert score.mad == pytest.approx(expected["mad"], abs=0.5 / 255 * 1e3)
        assert score.iou == pytest.approx(expected["iou"], abs=0.02)


def test_mean_scores_average_over_images() -> None:
    assert mean_scores([Score("a", 1, 2, 0.5), Score("b", 3, 6, 1)]) == {"n": 2, "mad": 2, "mse": 4, "iou": 0.75}


RECIPE = TrainingConfig(recipe_batch=16, learning_rate=2e-3, betas=(0.9, 0.99), weight_decay=0.5, ema_decay=0.998)


def test_four_times_the_batch_trains_each_sample_as_much() -> None:
    scaled = scale_to_batch(RECIPE, 64)
    assert (scaled.learning_rate, scaled.weight_decay) == pytest.approx((4e-3, 1.0))
    assert scaled.betas == pytest.approx((0.9, 0.96))
    assert scaled.ema_decay == pytest.approx(0.998**4)
    # Over four batches of the recipe, kernels shrink as much as in one of the larger steps.
    small, large = (1 - config.learning_rate * config.weight_decay for config in (RECIPE, scaled))
    assert large == pytest.approx(small**4, abs=1e-5)


def test_scaling_keeps_what_it_should() -> None:
    for recipe in (RECIPE, TrainingConfig(), TrainingConfig(betas=(0.9, 0.5))):
        assert scale_to_batch(recipe, recipe.recipe_batch) == recipe  # exactly: runs on CPUs are those of the recipe
    for samples in (16 * 10, 16 * 1000):
        assert scale_to_batch(RECIPE, samples).betas == (0.9, pytest.approx(0.9))
    assert scale_to_batch(replace(RECIPE, ema_decay=0.0), 8).ema_decay == 0.0


def test_a_resumed_trainer_follows_its_own_batch() -> None:
    torch.manual_seed(0)
    first, second = (Trainer(UNet(UNetConfig(width=4)), RECIPE, torch.device("cpu"), None, batch) for batch in (16, 64))
    second.resume(first.model.state_dict(), first.state())
    kernels, others = second.state()["optimizer"]["param_groups"]
    assert (kernels["weight_decay"], others["weight_decay"]) == (1.0, 0.0)
    assert kernels["betas"] == others["betas"] == pytest.approx((0.9, 0.96))


OUT_OF_RANGE = {
    "recipe_batch": 0,
    "augment_size": 0,
    "half_res_fraction": 1.5,
    "augment_fraction": -0.1,
    "ema_decay": 1.1,
}


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE.items())
def test_options_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} .*is {value}$"):
        TrainingConfig(**{name: value})
