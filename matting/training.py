"""Training over any iterable of batches: the step, the epoch, the validation pass, and what it takes to go on later.

A batch is a dict of numpy arrays: ``key`` (B strings), ``image`` uint8 (B, H, W, 3), ``alpha`` uint8 (B, H, W).

    batch -> device, [0, 1], channels last -> augment -> network -> loss -> all workers agree that it is finite -> step
    -> running mean of the weights, if that is what is wanted

Data-parallel by torch.distributed where a process group exists: gradients are averaged, BatchNorm is synchronised, sums
travel and are divided once. Knows no Ray, no URIs, no files.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from matting.augment import mirror, vary
from matting.devices import Precision, autocast_dtype, synchronise_batchnorm, to_device
from matting.losses import Reduction, cross_entropy, l1, laplacian, mse, rgba_target
from matting.metrics import MetricSums, batch_metrics
from matting.unet import UNet, alpha_of

Batch = Mapping[str, np.ndarray]
Schedule = Literal["constant", "cosine"]

RISE = 0.02  # of the run, in which a cosine schedule rises


@dataclass(frozen=True)
class TrainingConfig:
    """How the network learns; by default as the seed's recipe says.

    Args:
        learning_rate: of AdamW (Loshchilov and Hutter 2019), which without weight decay is Adam.
        betas: of AdamW.
        weight_decay: of the convolutions' weights.
        schedule: of the learning rate: "constant"; or "cosine", from the whole of it down to nothing at the end of the
            run (Loshchilov and Hutter 2017), after a short linear rise.
        average: decay of the running mean of the weights that is validated and saved (Polyak averaging); 0 for none.
        small_until: share of the run that trains at half the size, which is four times as fast.
        varied_size: pixels a side of varied pictures, if they come larger: so a run may end with a few steps at a size
            that would be dear all the time (Touvron et al., "Fixing the train-test resolution discrepancy", 2019).
        reduction: of the squared error.
        mse: weight of the squared error over the four channels.
        l1: weight of alpha's absolute error.
        cross_entropy: weight of alpha's cross entropy when the run begins; it falls in a line to nothing at the end.
        laplacian: weight of alpha's absolute error over a Laplacian pyramid.
        augment_until: share of the run that varies the pictures (:func:`matting.augment.vary`). After it they come as
            prediction will see them, but for mirroring; with 0, they come so from the start, and without.
        precision: number format of the convolutions; "auto" is bfloat16 where that is faster.
        seed: of the weights and of the augmentation.
    """

    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.99)
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    average: float = 0.0
    small_until: float = 0.0
    varied_size: int | None = None
    reduction: Reduction = "mean"
    mse: float = 1.0
    l1: float = 0.0
    cross_entropy: float = 0.0
    laplacian: float = 0.0
    augment_until: float = 0.0
    precision: Precision = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """How long a run is to be: so many epochs, or seconds, whichever comes first.

    Args:
        epochs: passes over the training pairs.
        samples: training pairs in one.
        seconds: of training and validation.
    """

    epochs: float = math.inf
    samples: float = math.inf
    seconds: float = math.inf

    def progress(self, epochs: float, seconds: float) -> float:
        """How much of it is done, in [0, 1], after so many epochs and seconds."""
        return min(1.0, max(epochs / self.epochs, seconds / self.seconds if seconds else 0.0))

    def finished(self, epochs: int, seconds: float) -> bool:
        """Whether a run that came so far has nothing left to do."""
        return epochs >= self.epochs or seconds >= self.seconds


ENDLESS = Plan()


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
    elapsed: float  # seconds of the epoch, by the first worker's clock


class Score(NamedTuple):
    """One picture of a validation pass, in the units of :mod:`matting.metrics`."""

    key: str
    mad: float
    mse: float
    iou: float


class Trainer:
    """A network, its optimizer, and how far they have come.

    Args:
        model: the network; it is moved to the device.
        config: how it learns.
        device: of this worker.
        backgrounds_NHWC: uint8, photos without people of the batches' size, to place people before where pictures are
            varied; or None.

    ``trainer.model`` is what is validated and to be saved: the network, or the running mean of its weights.
    """

    def __init__(
        self,
        model: UNet,
        config: TrainingConfig,
        device: torch.device,
        backgrounds_NHWC: np.ndarray | None = None,
    ) -> None:
        model = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.config = config
        self.device = device
        self.epochs = 0
        self.steps = 0
        self.seconds = 0.0  # of training and validation
        self.best_mad = math.inf
        self._backgrounds: Tensor | None = None
        if backgrounds_NHWC is not None:
            self._backgrounds = to_device(backgrounds_NHWC, device).permute(0, 3, 1, 2)
        self._dtype = autocast_dtype(device, config.precision)
        self._learning = model
        self._network: torch.nn.Module = model
        if world_size() > 1:
            synchronise_batchnorm(model, device)
            device_ids = [device] if device.type == "cuda" else None
            self._network = DistributedDataParallel(model, device_ids=device_ids)
        self._mean: AveragedModel | None = None
        self.model: UNet = model
        if config.average:
            self._mean = AveragedModel(model, multi_avg_fn=partial(average, config.average), use_buffers=True)
            self.model = cast(UNet, self._mean.module)
        kernels = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
        self._optimizer = torch.optim.AdamW(
            [{"params": kernels, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=config.learning_rate,
            betas=config.betas,
            fused=True,  # one pass over the weights in place of some ten
        )

    def state(self) -> dict[str, Any]:
        """What :meth:`resume` needs beside the weights. Random numbers need none: they follow from seed and epoch."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "epochs": self.epochs,
            "steps": self.steps,
            "seconds": self.seconds,
            "best_mad": self.best_mad,
            "learning": self._learning.state_dict() if self._mean else {},
        }

    def resume(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's weights and training state."""
        self._learning.load_state_dict(state["learning"] or weights)
        if self._mean:
            self.model.load_state_dict(weights)
            self._mean.n_averaged.fill_(state["steps"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.epochs, self.steps = state["epochs"], state["steps"]
        self.seconds, self.best_mad = state["seconds"], state["best_mad"]

    def train_epoch(
        self,
        batches: Iterable[Batch],
        plan: Plan = ENDLESS,
        on_step: Callable[[Step], None] | None = None,
    ) -> Epoch:
        """One pass over the training pairs.

        Args:
            batches: this worker's share; every worker must have equally many.
            plan: the run's, which the epoch is a part of. When its time is up, all workers stop after the same step.
            on_step: called after each step.

        Raises:
            NonFiniteLoss: see there.
        """
        generator = torch.Generator().manual_seed(self._epoch_seed())
        self._learning.train()
        began = done = time.monotonic()
        squares = values = waiting = 0.0
        samples, steps, elapsed = 0.0, 0, 0.0
        for batch in batches:
            arrived = time.monotonic()
            progress = plan.progress(self.epochs + samples / plan.samples, self.seconds + elapsed)
            sums = self._step(batch, generator, progress, arrived - began)
            waited, seconds = arrived - done, time.monotonic() - arrived
            squares, values, waiting = squares + sums.squares, values + sums.values, waiting + waited
            samples, steps, elapsed = samples + sums.samples, steps + 1, sums.elapsed
            if on_step:
                on_step(Step(sums.samples, sums.squares / sums.values, waited, seconds))
            if self.seconds + elapsed > plan.seconds:
                break
            done = time.monotonic()
        self.epochs += 1
        self.steps += steps
        return Epoch(squares / values if values else math.nan, steps, samples, self._pass_time(began), waiting)

    def _step(self, batch: Batch, generator: torch.Generator, progress: float, elapsed: float) -> _Sums:
        image, alpha = self._to_device(batch)
        size = image.shape[-1]
        varied = progress < self.config.augment_until
        if varied:
            size = min(size, self.config.varied_size or size)
        if progress < self.config.small_until:
            size //= 2
        if varied:
            image, alpha = vary(image, alpha, size, generator, self._backgrounds)
        else:
            if size < image.shape[-1]:
                image, alpha = functional.avg_pool2d(image, 2), functional.avg_pool2d(alpha, 2)
            if self.config.augment_until:
                image, alpha = mirror(image, alpha, generator)
        target = rgba_target(image, alpha)
        with self._autocast():
            pred = self._network(image)
        squared = mse(pred, target, self.config.reduction)
        squares = squared.item() * (target.numel() if self.config.reduction == "mean" else 1)
        # One exchange a step: a loss that is not finite anywhere is so everywhere, and all workers stop together. What
        # time it is, is for the first worker's clock to say.
        facts = [squares, float(target.numel()), float(len(image)), elapsed if rank() == 0 else 0.0]
        total = _Sums(*sum_over_workers(facts, self.device))
        if not math.isfinite(total.squares):
            raise NonFiniteLoss(self._non_finite(batch["key"], squares))
        # DistributedDataParallel averages gradients; the gradient of a sum is the sum over workers.
        loss = self.config.mse * squared * (world_size() if self.config.reduction == "sum" else 1)
        if self.config.l1:
            loss = loss + self.config.l1 * l1(alpha_of(pred), alpha)
        if self.config.cross_entropy:
            loss = loss + self.config.cross_entropy * (1 - progress) * cross_entropy(alpha_of(pred), alpha)
        if self.config.laplacian:
            loss = loss + self.config.laplacian * laplacian(alpha_of(pred), alpha)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.learning_rate * rate(self.config.schedule, progress)
        self._optimizer.step()
        if self._mean:
            self._mean.update_parameters(self._learning)
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


def rate(schedule: Schedule, progress: float) -> float:
    """Share of the learning rate to take when so much of the run is done, in [0, 1]."""
    if schedule == "constant":
        return 1.0
    if progress < RISE:
        return 0.01 + 0.99 * progress / RISE
    return 0.5 + 0.5 * math.cos(math.pi * (progress - RISE) / (1 - RISE))


def average(decay: float, means: list[Tensor], values: list[Tensor], count: Tensor | int) -> None:
    """Move the means towards the values: by 1 - decay, and more while few values have been counted."""
    if means[0].is_floating_point():
        torch._foreach_lerp_(means, values, 1 - min(decay, (1 + int(count)) / (10 + int(count))))
    else:
        torch._foreach_copy_(means, values)


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
