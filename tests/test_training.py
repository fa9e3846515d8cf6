"""The step, the epoch and the validation pass; data parallelism in real processes over gloo."""

import copy
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from jobs.config import parse
from jobs.recipe import TrainConfig, presets
from matting.metrics import image_metrics
from matting.synthetic import draw_person
from matting.training import Batch, NonFiniteLoss, Plan, Score, Trainer, TrainingConfig, mean_scores, rate
from matting.unet import UNet, UNetConfig

SIZE = 32
GOLDEN = Path(__file__).parent / "reference" / "golden_losses.json"


def new_trainer(width: int = 4, **changes: Any) -> Trainer:
    torch.manual_seed(0)
    config = TrainingConfig(**{"precision": "fp32", **changes})
    return Trainer(UNet(UNetConfig(width=width)), config, torch.device("cpu"))


def batch(*numbers: int) -> Batch:
    drawn = [draw_person(0, number, SIZE, SIZE) for number in numbers]
    return {
        "key": np.array([f"person-{number}" for number in numbers], object),
        "image": np.stack([image for image, _ in drawn]),
        "alpha": np.stack([alpha for _, alpha in drawn]),
    }


def noise_batches(orders: Iterable[Sequence[int]], size: int = SIZE) -> list[Batch]:
    """Batches of sixteen pictures of noise: in flat ones max-pooling has ties, which rounding breaks by chance."""
    pictures = np.random.default_rng(0).integers(0, 256, (16, size, size, 4), np.uint8)
    return [
        {"key": np.array(order, str), "image": pictures[list(order), ..., :3], "alpha": pictures[list(order), ..., 3]}
        for order in orders
    ]


def test_learns() -> None:
    trainer = new_trainer(learning_rate=1e-2)
    first = trainer.train_epoch([batch(*range(8))])
    for _ in range(30):
        last = trainer.train_epoch([batch(*range(8))])
    assert last.loss < 0.5 * first.loss
    assert (trainer.epochs, trainer.steps) == (31, 31)


def twenty_steps(recipe: str) -> list[float]:
    """The losses of a recipe's first twenty steps, of an epoch of forty, with a narrow network."""
    options = parse(TrainConfig, ["--data=x", f"--recipe={recipe}", "--precision=fp32"], presets)
    torch.manual_seed(0)
    model = UNet(replace(options.network(), width=4))
    trainer = Trainer(model, options.training(), torch.device("cpu"))
    losses: list[float] = []
    # At this size the deepest level still has several pixels: a norm over a few values makes much of rounding errors.
    batches = noise_batches([range(4)] * 20, options.size)
    trainer.train_epoch(batches, Plan(epochs=1, samples=160), on_step=lambda step: losses.append(step.loss))
    return losses


# Summed by one thread in place of two, the losses differ by 0.05 % and, five times the learning rate, by 0.6 %.
@pytest.mark.parametrize(("recipe", "tolerance"), [("seed", 2e-3), ("matting", 2e-2)])
def test_twenty_steps_follow_the_golden_curve(recipe: str, tolerance: float) -> None:
    losses = twenty_steps(recipe)
    np.testing.assert_allclose(losses, json.loads(GOLDEN.read_text())[recipe], rtol=tolerance)
    assert twenty_steps(recipe) == losses


def test_reports_the_same_loss_whatever_the_reduction() -> None:
    epochs = [new_trainer(reduction=reduction).train_epoch([batch(0, 1, 2)]) for reduction in ("mean", "sum")]
    assert epochs[0].loss == pytest.approx(epochs[1].loss, rel=1e-5)


def test_sum_has_the_gradient_of_mean_times_the_number_of_values() -> None:
    # Adam hides the scale of a gradient; its second moment after one step is (1 - beta2) times the square.
    squares = {}
    for reduction in ("mean", "sum"):
        trainer = new_trainer(reduction=reduction)
        trainer.train_epoch([batch(0, 1)])
        moments = trainer.state()["optimizer"]["state"]
        squares[reduction] = moments[0]["exp_avg_sq"]
    values = 2 * 4 * SIZE * SIZE
    torch.testing.assert_close(squares["sum"].sqrt(), squares["mean"].sqrt() * values, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_goes_on_from_its_state_as_if_never_stopped(average: float) -> None:
    epochs = [[batch(0, 1, 2), batch(3, 4)], [batch(4, 0), batch(1, 2, 3)], [batch(2, 1)]]
    recipe: dict[str, Any] = {"augment_until": 0.7, "average": average, "schedule": "cosine", "weight_decay": 0.1}
    plan = Plan(epochs=3, samples=5)
    whole = new_trainer(**recipe)
    for batches in epochs:
        whole.train_epoch(batches, plan)
    first = new_trainer(**recipe)
    first.train_epoch(epochs[0], plan)
    second = new_trainer(**recipe)
    second.resume(copy.deepcopy(first.model.state_dict()), copy.deepcopy(first.state()))
    for batches in epochs[1:]:
        second.train_epoch(batches, plan)
    assert (second.epochs, second.steps) == (whole.epochs, whole.steps)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


def test_stops_when_time_is_up() -> None:
    trainer = new_trainer()
    epoch = trainer.train_epoch((batch(0) for _ in range(1000)), Plan(seconds=0))
    assert epoch.steps == 1
    assert trainer.seconds >= epoch.seconds > 0


@pytest.mark.parametrize(
    ("plan", "epochs", "seconds", "progress"),
    [
        (Plan(epochs=10, samples=100), 2.5, 1e6, 0.25),
        (Plan(epochs=10, samples=100, seconds=60), 2.5, 30, 0.5),
        (Plan(epochs=10, samples=100, seconds=60), 2.5, 70, 1),
        (Plan(seconds=60), 1000, 15, 0.25),
        (Plan(), 1000, 1e6, 0),
    ],
)
def test_progress_is_by_epochs_or_seconds_whichever_is_ahead(
    plan: Plan, epochs: float, seconds: float, progress: float
) -> None:
    assert plan.progress(epochs, seconds) == progress
    assert plan.finished(int(epochs), seconds) == (progress == 1)


def test_the_learning_rate_rises_and_falls_by_the_progress_of_the_run() -> None:
    assert rate("constant", 0.3) == 1
    rates = [rate("cosine", number / 1000) for number in range(1001)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[20] == pytest.approx(1)
    assert rates[510] == pytest.approx(0.5)
    assert rates[1000] == pytest.approx(0)
    assert np.all(np.diff(rates[:20]) > 0)
    assert np.all(np.diff(rates[20:]) < 0)
    # And the steps take it: at the end of the run nothing changes any more.
    trainer = new_trainer(schedule="cosine")
    trainer.epochs = 10
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train_epoch([batch(0, 1)], Plan(epochs=10, samples=2))
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))


def test_the_mean_of_the_weights_follows_them_slowly() -> None:
    trainer, plain = new_trainer(average=0.6, learning_rate=1e-2), new_trainer(learning_rate=1e-2)
    means: dict[str, torch.Tensor] = {}
    for number in range(8):
        trainer.train_epoch([batch(number)])
        plain.train_epoch([batch(number)])
        decay = min(0.6, (1 + number) / (10 + number)) if number else 0.0
        for name, value in plain.model.state_dict().items():
            means[name] = decay * means.get(name, 0) + (1 - decay) * value if value.is_floating_point() else value
    saved = trainer.model.state_dict()
    assert saved.keys() == means.keys()
    for name, value in means.items():
        torch.testing.assert_close(saved[name], value, atol=1e-5, rtol=1e-4, msg=name)
    assert not torch.equal(saved["head.2.weight"], plain.model.state_dict()["head.2.weight"])


def test_weights_decay_and_those_of_norms_do_not() -> None:
    before = new_trainer().model.state_dict()
    trainer = new_trainer(weight_decay=1e6, learning_rate=1e-6)
    trainer.train_epoch([batch(0, 1)])  # one step, after which kernels are next to nothing
    for name, value in trainer.model.named_parameters():
        if value.ndim > 1:
            assert value.abs().max() < 1e-5, name
        else:
            torch.testing.assert_close(value, before[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("augment_until", [0.0, 1.0])
def test_the_first_share_of_a_run_is_trained_at_half_the_size(augment_until: float) -> None:
    trainer = new_trainer(small_until=0.5, augment_until=augment_until)
    sides: list[int] = []
    trainer.model.register_forward_hook(lambda _, inputs, __: sides.append(inputs[0].shape[-1]))
    trainer.train_epoch([batch(0, 1)] * 4, Plan(epochs=1, samples=8))
    assert sides == [SIZE // 2] * 2 + [SIZE] * 2


@pytest.mark.parametrize("varied_size", [24, 48])
def test_varied_pictures_are_smaller_if_so_asked_and_never_larger(varied_size: int) -> None:
    trainer = new_trainer(small_until=0.25, augment_until=0.5, varied_size=varied_size)
    sides: list[int] = []
    trainer.model.register_forward_hook(lambda _, inputs, __: sides.append(inputs[0].shape[-1]))
    trainer.train_epoch([batch(0, 1)] * 4, Plan(epochs=1, samples=8))
    varied = min(SIZE, varied_size)
    assert sides == [varied // 2, varied, SIZE, SIZE]


@pytest.mark.parametrize(
    ("augment_until", "expected"), [(0.0, [{"as is"}] * 4), (0.5, [{"varied"}] * 2 + [{"as is", "mirrored"}] * 2)]
)
def test_the_last_share_of_a_run_learns_from_pictures_that_are_mirrored_at_most(
    augment_until: float, expected: list[set[str]]
) -> None:
    trainer = new_trainer(augment_until=augment_until)
    shown: list[torch.Tensor] = []
    trainer.model.register_forward_hook(lambda _, inputs, __: shown.append(inputs[0]))
    pictures = batch(*range(8))
    as_is = torch.from_numpy(pictures["image"]).permute(0, 3, 1, 2) / 255
    trainer.train_epoch([pictures] * 4, Plan(epochs=1, samples=32))

    def look(picture: torch.Tensor, original: torch.Tensor) -> str:
        for name, same in (("as is", original), ("mirrored", original.flip(2))):
            if torch.allclose(picture, same, atol=1e-6):
                return name
        return "varied"

    assert [{look(*both) for both in zip(images, as_is, strict=True)} for images in shown] == expected


@pytest.mark.parametrize("is_given", [False, True])
def test_some_of_the_varied_pictures_have_a_photo_without_people_behind_them(is_given: bool) -> None:
    green = np.broadcast_to(np.array([0, 200, 0], np.uint8), (3, SIZE, SIZE, 3))
    model, config = UNet(UNetConfig(width=4)), TrainingConfig(precision="fp32", augment_until=0.5)
    trainer = Trainer(model, config, torch.device("cpu"), green if is_given else None)
    shown: list[torch.Tensor] = []
    trainer.model.register_forward_hook(lambda _, inputs, __: shown.append(inputs[0]))
    nobody = {
        "key": np.array(["grey"] * 64),
        "image": np.full((64, SIZE, SIZE, 3), 128, np.uint8),
        "alpha": np.zeros((64, SIZE, SIZE), np.uint8),
    }
    trainer.train_epoch([nobody] * 2, Plan(epochs=1, samples=128))
    varied, as_is = ((images[:, 1] > 1.5 * images[:, [0, 2]].amax(1)).float().mean((1, 2)) > 0.9 for images in shown)
    assert bool(varied.any()) == is_given
    assert not varied.all()
    assert not as_is.any()


@pytest.mark.parametrize("term", ["mse", "l1", "cross_entropy", "laplacian"])
def test_each_term_alone_brings_alpha_nearer(term: str) -> None:
    trainer = new_trainer(**{"learning_rate": 1e-2, "mse": 0.0, term: 1.0})
    pairs = [batch(*range(8))]
    errors = []
    for _ in range(30):
        trainer.train_epoch(pairs)
        errors.append(mean_scores(trainer.validate(pairs))["mad"])
    assert errors[-1] < 0.6 * errors[0]


@pytest.mark.parametrize(("epochs_before", "counts"), [(0, True), (1, True), (2, False)])
def test_cross_entropy_counts_until_the_run_is_over(epochs_before: int, counts: bool) -> None:
    kernels = []
    for weight in (0.0, 1.0):
        trainer = new_trainer(cross_entropy=weight)
        trainer.epochs = epochs_before
        trainer.train_epoch([batch(0, 1)], Plan(epochs=2, samples=2))
        kernels.append(trainer.state()["optimizer"]["state"][0]["exp_avg"])
    assert torch.equal(*kernels) != counts


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_keys() -> None:
    trainer = new_trainer()
    with torch.no_grad():
        trainer.model.head[2].weight[:] = math.nan
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items() if "running" not in name}
    with pytest.raises(NonFiniteLoss, match=r"step 1 of epoch 1.*person-7, person-9"):
        trainer.train_epoch([batch(7, 9)])
    for name, tensor in before.items():
        if "num_batches" not in name:
            torch.testing.assert_close(trainer.model.state_dict()[name], tensor, equal_nan=True)


def test_validation_scores_each_picture_as_the_metrics_do() -> None:
    trainer = new_trainer()
    pairs = batch(0, 1, 2, 3, 4)
    parts = [{name: column[part] for name, column in pairs.items()} for part in (slice(0, 3), slice(3, 5))]
    scores = trainer.validate(parts)
    assert [score.key for score in scores] == list(pairs["key"])
    with torch.no_grad():
        image = torch.from_numpy(pairs["image"]).permute(0, 3, 1, 2).float() / 255
        pred = (trainer.model.eval()(image)[:, 3] + 1) / 2
    for number, score in enumerate(scores):
        # The metrics take bytes: rounding moves a mean by less than half of 1/255.
        expected = image_metrics((pred[number].numpy() * 255).round().astype(np.uint8), pairs["alpha"][number])
        assert score.mad == pytest.approx(expected["mad"], abs=0.5 / 255 * 1e3)
        assert score.iou == pytest.approx(expected["iou"], abs=0.02)


def test_the_mean_is_over_pictures() -> None:
    assert mean_scores([Score("a", 1, 2, 0.5), Score("b", 3, 6, 1)]) == {"n": 2, "mad": 2, "mse": 4, "iou": 0.75}


# Data parallelism ----------------------------------------------------------------------------------------------------


def in_two_processes(work: Callable[[int, str], None], folder: Path) -> list[Any]:
    """What work(rank, folder) leaves in <folder>/<rank>.pt, of two processes that share a gloo group."""
    mp.start_processes(join_group, args=(work, str(folder)), nprocs=2, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def join_group(rank: int, work: Callable[[int, str], None], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    work(rank, folder)
    dist.destroy_process_group()


def train_on_sixteen(trainer: Trainer, numbers: slice) -> dict[str, Any]:
    """Twenty steps over these of sixteen pairs, in a different order every step."""
    losses: list[float] = []
    start = torch.cat([tensor.detach().flatten() for tensor in trainer.model.parameters()])
    orders = [np.random.default_rng(step).permutation(16)[numbers] for step in range(20)]
    batches = noise_batches(orders)
    trainer.train_epoch(batches[:1], on_step=lambda step: losses.append(step.loss))
    gradient = torch.cat([moments["exp_avg"].flatten() for moments in trainer.state()["optimizer"]["state"].values()])
    trainer.train_epoch(batches[1:], on_step=lambda step: losses.append(step.loss))
    weights = torch.cat([tensor.detach().flatten() for tensor in trainer.model.parameters()])
    statistics = torch.cat([tensor.flatten() for name, tensor in trainer.model.named_buffers() if "running" in name])
    return {"losses": losses, "gradient": gradient, "update": weights - start, "statistics": statistics}


def half_of_sixteen(rank: int, folder: str) -> None:
    results = {}
    for reduction in ("mean", "sum"):
        results[reduction] = train_on_sixteen(new_trainer(reduction=reduction), slice(8 * rank, 8 * rank + 8))
    torch.save(results, f"{folder}/{rank}.pt")


def distance(a: Any, b: Any) -> float:
    """Relative to the second."""
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return float((a - b).norm() / b.norm())


def test_two_workers_with_batch_8_train_as_one_with_batch_16(tmp_path: Path) -> None:
    workers = in_two_processes(half_of_sixteen, tmp_path)
    for reduction in ("mean", "sum"):
        alone = train_on_sixteen(new_trainer(reduction=reduction), slice(None))
        # Floating-point noise, which Adam's division amplifies: the same batches, added up in another order.
        noisy = train_on_sixteen(new_trainer(reduction=reduction), slice(None, None, -1))
        for worker in workers:
            assert distance(worker[reduction]["gradient"], alone["gradient"]) < 1e-4
            for what in ("losses", "update", "statistics"):
                noise = distance(noisy[what], alone[what])
                assert distance(worker[reduction][what], alone[what]) < 5 * noise, (reduction, what, noise)


def uneven_work(rank: int, folder: str) -> None:
    trainer = new_trainer()
    own = [batch(0, 1), batch(2)] if rank == 0 else []
    scores = trainer.validate(own)
    failure = ""
    with torch.no_grad():
        trainer.model.head[2].weight[:] = math.nan if rank == 1 else 0.1
    try:
        trainer.train_epoch([batch(3 + rank)])
    except NonFiniteLoss as error:
        failure = str(error)
    torch.save({"scores": [tuple(score) for score in scores], "failure": failure}, f"{folder}/{rank}.pt")


def test_workers_share_scores_and_stop_together(tmp_path: Path) -> None:
    workers = in_two_processes(uneven_work, tmp_path)
    alone = new_trainer().validate([batch(0, 1, 2)])
    for worker in workers:
        assert [key for key, *_ in worker["scores"]] == [score.key for score in alone]
        np.testing.assert_allclose(
            [values for _, *values in worker["scores"]], [values for _, *values in alone], rtol=1e-4
        )
        assert "person-" in worker["failure"]
    assert "person-4" in workers[0]["failure"]
