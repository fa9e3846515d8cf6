"""The trainer: steps, epochs and validation passes over any iterable of batches, and the state to resume from.

A batch is a dict of numpy arrays: ``key`` (B strings), ``image`` uint8 (B, H, W, 3), ``alpha`` uint8 (B, H, W).

    batch -> device, [0, 1], channels last -> augment -> network -> loss -> all workers agree whether it is finite
    -> optimizer step, if it is -> moving average of the weights, if the recipe has one

A step does not wait for the device: the host looks at losses only now and then; see :mod:`matting.nn.steps`.

Where a torch.distributed process group exists, training is data-parallel: gradients are averaged, BatchNorm of
small batches is synchronized, and sums over all workers are divided once. This module uses no Ray and no files.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from matting.nn.augment import augment, random_flip
from matting.nn.augment_draws import Randomness
from matting.nn.batchnorm import synchronize_batchnorm
from matting.nn.distributed import average_over_workers, gather_over_workers, rank, sum_over_workers, world_size
from matting.nn.ema import MovingAverage
from matting.nn.gradients import Compile, StepNetwork, set_gradients
from matting.nn.losses import Reduction, cross_entropy, l1, laplacian, mse, rgba_target, weighted_sum
from matting.nn.metrics import MetricSums, batch_metrics
from matting.nn.precision import TrainingPrecision, autocast_dtype, to_device
from matting.nn.schedule import UNLIMITED, Budget, Schedule, learning_rate_factor
from matting.nn.steps import Step, StepLog
from matting.nn.unet import UNet, alpha_of

Batch = Mapping[str, np.ndarray]

ENOUGH_STATISTICS = 64  # images in a worker's batch from which its own BatchNorm statistics will do


@dataclass(frozen=True)
class TrainingConfig:
    """Optimizer, losses and augmentation; the defaults are the baseline's.

    Args:
        recipe_batch: Number of samples in a step, over all workers, that the next four options and ``ema_decay`` suit;
            :func:`scale_to_batch` adjusts them to the steps that are taken.
        learning_rate: Learning rate of AdamW (Loshchilov and Hutter 2019), which without weight decay is Adam.
        betas: Decay rates of AdamW's first and second moments.
        weight_decay: Weight decay of the convolutions' kernels; biases and BatchNorm have none.
        schedule: Schedule of the learning rate: "constant", or "cosine", which after a short linear warm-up falls to
            0 at the end of the run.
        ema_decay: Decay of the exponential moving average of the weights, which is what is validated and saved; 0 for
            none.
        half_res_fraction: Fraction of the run, from its start, that trains at half the image size, about four times
            as fast; from 0 to 1.
        augment_size: Side in pixels of augmented images, if they come larger; without it, they keep their size. A run
            can so train at a cheap size and end with a few epochs at the full one (Touvron et al., "Fixing the
            train-test resolution discrepancy", 2019).
        reduction: Reduction of the squared error over batch, channels and pixels: "mean" or "sum".
        mse: Weight of the squared error of the four channels.
        l1: Weight of the absolute error of alpha.
        cross_entropy: Weight of the cross entropy of alpha at the start of the run; it falls linearly to 0 at the end.
        laplacian: Weight of the absolute error of alpha over a Laplacian pyramid.
        augment_fraction: Fraction of the run, from its start, that augments images (geometry, color, background,
            quality); after it they are only flipped. From 0 to 1; with 0, images are never changed.
        compile: Whether GPUs compile the network for each image size; "auto" does, where BatchNorm is not synchronized.
        precision: Number format of the convolutions; "auto" is bf16 where the hardware is faster with it, else fp32.
        seed: Random seed of the augmentation.

    Raises:
        ValueError: A value is out of its range.
    """

    recipe_batch: int = 8
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.99)
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    ema_decay: float = 0.0
    half_res_fraction: float = 0.0
    augment_size: int | None = None
    reduction: Reduction = "mean"
    mse: float = 1.0
    l1: float = 0.0
    cross_entropy: float = 0.0
    laplacian: float = 0.0
    augment_fraction: float = 0.0
    compile: Compile = "auto"
    precision: TrainingPrecision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("recipe_batch", "augment_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, is {getattr(self, name)}")
        for name in ("half_res_fraction", "augment_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a fraction of the run, from 0 to 1; is {getattr(self, name)}")
        if not 0 <= self.ema_decay <= 1:
            raise ValueError(f"ema_decay must be from 0 to 1, is {self.ema_decay}")


def scale_to_batch(config: TrainingConfig, samples: int) -> TrainingConfig:
    """Return the config for steps of another number of samples, so that each sample trains as much.

    With k = samples / recipe_batch: learning rate × √k, EMA decay ^ k, β2 → 1 - k (1 - β2). AdamW shrinks kernels by
    learning rate × weight decay in a step, so weight decay × √k keeps the shrinkage per sample (Malladi et al., "On the
    SDEs and scaling rules for adaptive gradient algorithms", 2022). β2 is not lowered below β1, since a large gradient
    would still be in the first moment when the second has forgotten it.

    Args:
        config: Config that suits its ``recipe_batch``.
        samples: Number of samples in a step, over all workers.
    """
    factor = samples / config.recipe_batch
    beta1, beta2 = config.betas
    return replace(
        config,
        learning_rate=config.learning_rate * math.sqrt(factor),
        weight_decay=config.weight_decay * math.sqrt(factor),
        betas=(beta1, max(1 - factor * (1 - beta2), min(beta1, beta2))),
        ema_decay=config.ema_decay**factor if config.ema_decay else 0.0,
    )


class Epoch(NamedTuple):
    """Results of one pass over the training pairs, summed over all workers."""

    loss: float  # as in Step
    steps: int
    samples: float
    seconds: float
    waiting: float  # seconds that this worker waited for data, part of `seconds`


class Score(NamedTuple):
    """Metrics of one image of a validation pass, in the units of :data:`matting.nn.metrics.METRICS`."""

    key: str
    mad: float
    mse: float
    iou: float


class Trainer:
    """A network, its optimizer, and their progress.

    Args:
        model: Network to train; it is moved to the device.
        config: Optimizer, losses and augmentation.
        device: Device of this worker.
        backgrounds_NHWC: Photos without people, uint8, of the batches' size, for composites; or None.
        batch: Number of samples in this worker's steps, to which the config is scaled; by default it is used as it is.
            From 64, BatchNorm is not synchronized over workers; its statistics are averaged before each validation.

    ``trainer.model`` is the network to validate and save: the trained one, or the moving average of its weights.
    """

    def __init__(
        self,
        model: UNet,
        config: TrainingConfig,
        device: torch.device,
        backgrounds_NHWC: np.ndarray | None = None,
        batch: int | None = None,
    ) -> None:
        config = scale_to_batch(config, batch * world_size()) if batch else config
        model = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's is missing
        self.config = config
        self.device = device
        self.epochs_done = 0
        self.steps = 0
        self.seconds = 0.0  # of training and validation
        self.best_mad = math.inf
        self._backgrounds: Tensor | None = None
        if backgrounds_NHWC is not None:
            self._backgrounds = to_device(backgrounds_NHWC, device).permute(0, 3, 1, 2)
        self._dtype = autocast_dtype(device, config.precision)
        self._unaveraged = model
        self._is_synchronized = world_size() > 1 and (batch or 0) < ENOUGH_STATISTICS
        if self._is_synchronized:
            synchronize_batchnorm(model, device)
        # Synchronized BatchNorm talks to the other workers, who cannot wait for a compiler that gives up.
        compiles = config.compile == "auto" and device.type == "cuda" and not self._is_synchronized
        self._network = StepNetwork(model, "inductor" if compiles else None)
        self._ema = MovingAverage(model, config.ema_decay) if config.ema_decay else None
        self.model = self._ema.model if self._ema else model
        kernels = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
        self._optimizer = torch.optim.AdamW(
            [{"params": kernels, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=config.learning_rate,
            betas=config.betas,
            fused=True,  # one pass over the weights instead of about ten
        )

    def state(self) -> dict[str, Any]:
        """Return what :meth:`resume` needs beside the weights; random numbers follow from seed and epoch."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "epochs_done": self.epochs_done,
            "steps": self.steps,
            "seconds": self.seconds,
            "best_mad": self.best_mad,
            "unaveraged": self._unaveraged.state_dict() if self._ema else {},
        }

    def resume(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's weights and the :meth:`state` beside them."""
        self._unaveraged.load_state_dict(state["unaveraged"] or weights)
        if self._ema:
            self.model.load_state_dict(weights)
        self._optimizer.load_state_dict(state["optimizer"])
        # The state's own weight decay and betas suit the number of workers that it was saved by.
        for group, weight_decay in zip(self._optimizer.param_groups, (self.config.weight_decay, 0.0), strict=True):
            group |= {"weight_decay": weight_decay, "betas": self.config.betas}
        self.epochs_done, self.steps = state["epochs_done"], state["steps"]
        self.seconds, self.best_mad = state["seconds"], state["best_mad"]

    def train_epoch(
        self,
        batches: Iterable[Batch],
        budget: Budget = UNLIMITED,
        on_step: Callable[[Step], None] | None = None,
    ) -> Epoch:
        """Train one pass over the training pairs.

        Args:
            batches: This worker's batches; every worker must have equally many.
            budget: Budget of the whole run. When its time is up, all workers stop after the same step.
            on_step: Function to call after each step.

        Raises:
            NonFiniteLoss: The loss of a batch is not finite on some worker; later steps may have been taken.
        """
        randomness = Randomness.seeded(self._epoch_seed(), self.device)
        self._unaveraged.train()
        log = StepLog(self.device, self.steps, self.epochs_done + 1, on_step)
        seconds_left = budget.seconds - self.seconds
        for batch in batches:
            log.batch_arrived()
            progress = budget.progress(self.epochs_done + log.samples / budget.samples, self.seconds + log.elapsed)
            self._step(batch, randomness, progress, log)
            if log.step_done(seconds_left) and log.elapsed > seconds_left:
                break
        log.read()
        self.epochs_done += 1
        self.steps += log.steps
        loss = log.squares / log.values if log.values else math.nan
        return Epoch(loss, log.steps, log.samples, self._add_seconds(log.began), log.waiting)

    def _step(self, batch: Batch, randomness: Randomness, progress: float, log: StepLog) -> None:
        image, alpha = self._augment(*self._to_device(batch), randomness, progress)
        target = rgba_target(image, alpha)
        with self._autocast():
            pred = self._network(image)
        squared = mse(pred, target, self.config.reduction)
        squares = squared.detach() * (target.numel() if self.config.reduction == "mean" else 1)
        skipped = log.add(batch["key"], squares, target[0].numel())
        loss = self._loss(squared, pred, alpha, progress)
        set_gradients(loss, list(self._unaveraged.parameters()))
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.learning_rate * learning_rate_factor(self.config.schedule, progress)
        self._optimizer.found_inf = skipped  # type: ignore[attr-defined]  # as GradScaler does: the fused step looks at it
        self._optimizer.step()
        if self._ema:
            self._ema.update(self.steps + log.added - 1)

    def _augment(self, image: Tensor, alpha: Tensor, randomness: Randomness, progress: float) -> tuple[Tensor, Tensor]:
        """Return image_BCHW and alpha_B1HW at the size and with the augmentation of this part of the run."""
        size = image.shape[-1]
        is_augmented = progress < self.config.augment_fraction
        if is_augmented:
            size = min(size, self.config.augment_size or size)
        if progress < self.config.half_res_fraction:
            size //= 2
        if is_augmented:
            return augment(image, alpha, size, randomness, self._backgrounds)
        if size < image.shape[-1]:
            image, alpha = functional.avg_pool2d(image, 2), functional.avg_pool2d(alpha, 2)
        return random_flip(image, alpha, randomness.host) if self.config.augment_fraction else (image, alpha)

    def _loss(self, squared: Tensor, pred: Tensor, alpha: Tensor, progress: float) -> Tensor:
        """Return the weighted sum of the loss terms; ``squared`` is the reduced squared error of the four channels."""
        config, pred_alpha = self.config, alpha_of(pred)
        # Gradients are averaged, but the gradient of a sum is the sum over workers.
        terms = [(config.mse * (world_size() if config.reduction == "sum" else 1), squared)]
        if config.l1:
            terms.append((config.l1, l1(pred_alpha, alpha)))
        if config.cross_entropy:
            terms.append((config.cross_entropy * (1 - progress), cross_entropy(pred_alpha, alpha)))
        if config.laplacian:
            terms.append((config.laplacian, laplacian(pred_alpha, alpha)))
        return weighted_sum(terms)

    def validate(self, batches: Iterable[Batch]) -> list[Score]:
        """Score every image once, over all workers.

        Args:
            batches: This worker's batches; workers may have different numbers of them, and none.

        Returns:
            One row per image of all workers, sorted by key; the same on every worker.
        """
        began = time.monotonic()
        if not self._is_synchronized:
            average_over_workers([buffer for buffer in self.model.buffers() if buffer.is_floating_point()])
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
        self._add_seconds(began)
        return sorted(gather_over_workers(scores))

    def _to_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return image_BCHW (channels last) and alpha_B1HW on the device, float in [0, 1], of a batch of uint8."""
        image, alpha = to_device(batch["image"], self.device), to_device(batch["alpha"][:, None], self.device)
        return image.permute(0, 3, 1, 2) / 255, alpha / 255

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype is not None)

    def _epoch_seed(self) -> int:
        return int(np.random.SeedSequence([self.config.seed, self.epochs_done, rank()]).generate_state(1)[0])

    def _add_seconds(self, began: float) -> float:
        """Add the time since ``began`` to ``seconds``, and return it; all workers use the first one's clock."""
        elapsed = time.monotonic() - began if rank() == 0 else 0.0
        seconds = sum_over_workers([elapsed], self.device)[0]
        self.seconds += seconds
        return seconds


def mean_scores(scores: Iterable[Score]) -> dict[str, float]:
    """Return the number of scores and their means, ``{"n", "mad", "mse", "iou"}``; there must be at least one."""
    sums = MetricSums()
    for score in scores:
        sums.add({"mad": score.mad, "mse": score.mse, "iou": score.iou})
    return sums.mean()
