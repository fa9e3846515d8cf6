"""Training over any iterable of batches: the step, the epoch, the validation pass, and what it takes to go on later.

A batch is a dict of numpy arrays: ``key`` (B strings), ``image`` uint8 (B, H, W, 3), ``alpha`` uint8 (B, H, W).

    batch -> device, [0, 1], channels last -> augment -> network -> loss -> all workers agree that it is finite -> step

Data-parallel by torch.distributed where a process group exists: gradients are averaged, BatchNorm is synchronised, sums
travel and are divided once. Knows no Ray, no URIs, no files.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from matting.augment import flips_and_crops
from matting.devices import Precision, autocast_dtype, synchronise_batchnorm, to_device
from matting.losses import Reduction, mse, rgba_target
from matting.metrics import MetricSums, batch_metrics
from matting.unet import UNet, alpha_of

Batch = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class TrainingConfig:
    """How the network learns.

    Args:
        learning_rate: of Adam.
        betas: of Adam.
        reduction: of the squared error.
        augment: flips and crops, or the pictures as they are.
        precision: number format of the convolutions; "auto" is bfloat16 where the hardware has it.
        seed: of the weights and of the augmentation.
    """

    learning_rate: float
    betas: tuple[float, float]
    reduction: Reduction
    augment: bool
    precision: Precision
    seed: int


class NonFiniteLoss(RuntimeError):
    """A batch's loss is not a number. Raised on every worker, before any weight changes; names the batch's keys."""


class Epoch(NamedTuple):
    """What one pass over the training pairs did, over all workers."""

    loss: float  # mean squared error per value, whatever the reduction, so that recipes compare
    steps: int
    samples: float
    seconds: float
    waiting: float  # seconds of them, on this worker, spent waiting for data


class Step(NamedTuple):
    """What one step did: samples and loss over all workers (the loss as in :class:`Epoch`), seconds on this one."""

    samples: float
    loss: float
    waiting: float  # seconds for its batch
    seconds: float  # then, until the weights were changed


class _Sums(NamedTuple):
    """Of one step, over the workers."""

    squares: float  # squared errors
    values: float  # that they are summed over
    samples: float
    last: float  # not 0 if time is up


class Score(NamedTuple):
    """One picture of a validation pass, in the units of :mod:`matting.metrics`."""

    key: str
    mad: float
    mse: float
    iou: float


class Trainer:
    """A network, its optimizer, and how far they have come.

    Args:
        model: the network; it is moved to the device and stays reachable, unwrapped, as ``trainer.model``.
        config: how it learns.
        device: of this worker.
    """

    def __init__(self, model: UNet, config: TrainingConfig, device: torch.device) -> None:
        self.model = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.config = config
        self.device = device
        self.epochs = 0
        self.steps = 0
        self.seconds = 0.0  # of training and validation
        self.best_mad = math.inf
        self._dtype = autocast_dtype(device, config.precision)
        self._network: torch.nn.Module = self.model
        if world_size() > 1:
            synchronise_batchnorm(self.model, device)
            device_ids = [device] if device.type == "cuda" else None
            self._network = DistributedDataParallel(self.model, device_ids=device_ids)
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=config.learning_rate, betas=config.betas)

    def state(self) -> dict[str, Any]:
        """What :meth:`resume` needs beside the weights. Random numbers need none: they follow from seed and epoch."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "epochs": self.epochs,
            "steps": self.steps,
            "seconds": self.seconds,
            "best_mad": self.best_mad,
        }

    def resume(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's weights and training state."""
        self.model.load_state_dict(weights)
        self._optimizer.load_state_dict(state["optimizer"])
        self.epochs, self.steps = state["epochs"], state["steps"]
        self.seconds, self.best_mad = state["seconds"], state["best_mad"]

    def train_epoch(
        self,
        batches: Iterable[Batch],
        seconds_left: float = math.inf,
        on_step: Callable[[Step], None] | None = None,
    ) -> Epoch:
        """One pass over the training pairs.

        Args:
            batches: this worker's share; every worker must have equally many.
            seconds_left: after which to stop; all workers stop after the same step.
            on_step: called after each step.

        Raises:
            NonFiniteLoss: see there.
        """
        generator = torch.Generator().manual_seed(self._epoch_seed())
        self.model.train()
        began = done = time.monotonic()
        squares = values = waiting = 0.0
        samples, steps = 0.0, 0
        for batch in batches:
            arrived = time.monotonic()
            sums = self._step(batch, generator, late=arrived - began > seconds_left)
            waited, seconds = arrived - done, time.monotonic() - arrived
            squares, values, waiting = squares + sums.squares, values + sums.values, waiting + waited
            samples, steps = samples + sums.samples, steps + 1
            if on_step:
                on_step(Step(sums.samples, sums.squares / sums.values, waited, seconds))
            if sums.last:
                break
            done = time.monotonic()
        self.epochs += 1
        self.steps += steps
        return Epoch(squares / values if values else math.nan, steps, samples, self._pass_time(began), waiting)

    def _step(self, batch: Batch, generator: torch.Generator, late: bool) -> _Sums:
        image, alpha = self._to_device(batch)
        if self.config.augment:
            image, alpha = flips_and_crops(image, alpha, generator)
        target = rgba_target(image, alpha)
        with self._autocast():
            pred = self._network(image)
        loss = mse(pred, target, self.config.reduction)
        squares = loss.item() * (target.numel() if self.config.reduction == "mean" else 1)
        # One exchange a step: a loss that is not finite anywhere is so everywhere, and all workers stop together. When
        # it is late is for the first worker's clock to say.
        facts = [squares, float(target.numel()), float(len(image)), float(late and rank() == 0)]
        total = _Sums(*sum_over_workers(facts, self.device))
        if not math.isfinite(total.squares):
            raise NonFiniteLoss(self._non_finite(batch["key"], squares))
        # DistributedDataParallel averages gradients; the gradient of a sum is the sum over workers.
        scale = world_size() if self.config.reduction == "sum" else 1
        self._optimizer.zero_grad()
        (loss * scale).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return total

    def validate(self, batches: Iterable[Batch]) -> list[Score]:
        """Score every picture once, over all workers.

        Args:
            batches: this worker's share; workers may have different numbers, and none.

        Returns:
            On every worker, one row per picture of all workers, sorted by key.
        """
        began = time.monotonic()
        self.model.eval()
        scores: list[Score] = []
        with torch.inference_mode():
            for batch in batches:
                image, alpha = self._to_device(batch)
                with self._autocast():
                    pred = self.model(image)
                pred_alpha = alpha_of(pred.float())
                values = batch_metrics(pred_alpha[:, 0], alpha[:, 0])
                columns = (values[name].tolist() for name in ("mad", "mse", "iou"))
                scores += [Score(*row) for row in zip(map(str, batch["key"]), *columns, strict=True)]
        self._pass_time(began)
        return sorted(gather_over_workers(scores))

    def _to_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """uint8 numpy -> image_BCHW (channels last) and alpha_B1HW, float in [0, 1], on the device."""
        image, alpha = (to_device(batch[name], self.device) for name in ("image", "alpha"))
        return image.permute(0, 3, 1, 2).float() / 255, alpha[:, None].float() / 255

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype is not None)

    def _epoch_seed(self) -> int:
        return int(np.random.SeedSequence([self.config.seed, self.epochs, rank()]).generate_state(1)[0])

    def _pass_time(self, began: float) -> float:
        """Seconds since then by the first worker's clock, so that all agree on when a run is over; added up."""
        elapsed = time.monotonic() - began if rank() == 0 else 0.0
        seconds = sum_over_workers([elapsed], self.device)[0]
        self.seconds += seconds
        return seconds

    def _non_finite(self, keys: np.ndarray, squares: float) -> str:
        named = gather_over_workers([] if math.isfinite(squares) else [str(key) for key in keys])
        return (
            f"The loss is not finite at step {self.steps + 1} of epoch {self.epochs + 1}; the step was not taken. "
            f"The batch: {', '.join(named)}. Look at these pairs; if they are sound, lower the learning rate."
        )


def mean_scores(scores: Iterable[Score]) -> dict[str, float]:
    """``{"n", "mad", "mse", "iou"}`` over all of them; at least one."""
    sums = MetricSums()
    for score in scores:
        sums.add({"mad": score.mad, "mse": score.mse, "iou": score.iou})
    return sums.mean()


def world_size() -> int:
    """Workers of this run; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This worker's number; 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


def sum_over_workers(values: list[float], device: torch.device) -> list[float]:
    """Each value, summed over all workers."""
    if world_size() == 1:
        return values
    summed = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(summed)
    return [float(value) for value in summed.tolist()]


def gather_over_workers(rows: list[Any]) -> list[Any]:
    """The rows of all workers, on every worker."""
    if world_size() == 1:
        return rows
    gathered: list[list[Any]] = [[] for _ in range(world_size())]
    dist.all_gather_object(gathered, rows)
    return [row for part in gathered for row in part]
