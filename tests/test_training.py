"""The step, the epoch and the validation pass; data parallelism in real processes over gloo."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from matting.metrics import image_metrics
from matting.synthetic import draw_person
from matting.training import Batch, NonFiniteLoss, Score, Trainer, TrainingConfig, mean_scores
from matting.unet import UNet, UNetConfig

SIZE = 32
GOLDEN = Path(__file__).parent / "reference" / "golden_losses.json"


def config(**changes: Any) -> TrainingConfig:
    values: dict[str, Any] = {
        "learning_rate": 2e-4,
        "betas": (0.5, 0.99),
        "reduction": "mean",
        "augment": False,
        "precision": "fp32",
        "seed": 0,
    }
    return TrainingConfig(**{**values, **changes})


def new_trainer(width: int = 4, **changes: Any) -> Trainer:
    torch.manual_seed(0)
    return Trainer(UNet(UNetConfig(width=width)), config(**changes), torch.device("cpu"))


def batch(*numbers: int) -> Batch:
    drawn = [draw_person(0, number, SIZE, SIZE) for number in numbers]
    return {
        "key": np.array([f"person-{number}" for number in numbers], object),
        "image": np.stack([image for image, _ in drawn]),
        "alpha": np.stack([alpha for _, alpha in drawn]),
    }


def noise_batches(orders: Iterable[Sequence[int]]) -> list[Batch]:
    """Batches of sixteen pictures of noise: in flat ones max-pooling has ties, which rounding breaks by chance."""
    pictures = np.random.default_rng(0).integers(0, 256, (16, SIZE, SIZE, 4), np.uint8)
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


@pytest.mark.parametrize("augment", [False, True])
def test_twenty_steps_follow_the_golden_curve(augment: bool) -> None:
    losses: list[float] = []
    trainer = new_trainer(augment=augment)
    trainer.train_epoch(noise_batches([range(4)] * 20), on_step=lambda step: losses.append(step.loss))
    golden = json.loads(GOLDEN.read_text())["matting" if augment else "seed"]
    np.testing.assert_allclose(losses, golden, rtol=2e-3)


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


def test_goes_on_from_its_state_as_if_never_stopped() -> None:
    epochs = [[batch(0, 1, 2), batch(3, 4)], [batch(4, 0), batch(1, 2, 3)], [batch(2, 1)]]
    whole = new_trainer(augment=True)
    for batches in epochs:
        whole.train_epoch(batches)
    first = new_trainer(augment=True)
    first.train_epoch(epochs[0])
    second = new_trainer(augment=True)
    second.resume(first.model.state_dict(), first.state())
    for batches in epochs[1:]:
        second.train_epoch(batches)
    assert (second.epochs, second.steps) == (whole.epochs, whole.steps)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


def test_stops_when_time_is_up() -> None:
    trainer = new_trainer()
    epoch = trainer.train_epoch((batch(0) for _ in range(1000)), seconds_left=0)
    assert epoch.steps == 1
    assert trainer.seconds >= epoch.seconds > 0


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
