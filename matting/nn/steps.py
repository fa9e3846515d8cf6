"""Results of training steps, which stay on the device until several are read together.

    squared error of a step -> StepLog.add, on the device
    every CHECK_STEPS steps or every second -> StepLog.read: one wait for the device, NonFiniteLoss or the steps

Between two reads the host only estimates samples and seconds. All workers estimate alike, from sums that they share.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from matting.nn.distributed import gather_over_workers, rank, sum_over_workers, world_size

CHECK_STEPS = 25  # largest number of steps between two looks at the losses
CHECK_SECONDS = 1.0  # the same in seconds, for devices on which steps are long


class NonFiniteLoss(RuntimeError):
    """A batch's loss is not finite. Raised on every worker, up to ``CHECK_STEPS`` steps later; the step has not changed
    the weights, and the message names the batch's keys."""


class Step(NamedTuple):
    """Results of one optimizer step: samples and loss over all workers, times on this one."""

    samples: float
    loss: float  # mean squared error per value, whatever the reduction, so that recipes compare
    waiting: float  # seconds that this worker waited for the batch
    seconds: float  # seconds from the batch to the next one; the last step before a read has the wait for the device


@dataclass
class _Pending:
    """A step whose results are still on the device."""

    keys: np.ndarray
    own: Tensor  # this worker's sum of squared errors
    total: Tensor  # sum of squared errors, and number of samples, over all workers
    values: int  # number of values of one sample
    waiting: float
    seconds: float = 0.0


class StepLog:
    """Log of the steps of one epoch.

    Args:
        device: Device of this worker.
        steps_done: Number of steps of the run before this epoch.
        epoch: Number of this epoch, from 1.
        on_step: Function to call for each step once its results are read; or None.

    ``steps``, ``squares`` and ``values`` are the number of steps that were read, the sum of their squared errors and
    the number of values in it, over all workers. ``waiting`` is this worker's wait for data in seconds.
    """

    def __init__(
        self, device: torch.device, steps_done: int, epoch: int, on_step: Callable[[Step], None] | None = None
    ) -> None:
        self.steps, self.squares, self.values, self.waiting = 0, 0.0, 0.0, 0.0
        self._device, self._steps_done, self._epoch, self._on_step = device, steps_done, epoch, on_step
        self.began = self._arrived = self._done = time.monotonic()
        self._samples = self._elapsed = 0.0  # at the last read
        self._samples_per_step = self._seconds_per_step = 0.0
        self._pending: list[_Pending] = []
        self._next_read = 1  # number of pending steps

    @property
    def samples(self) -> float:
        """Number of samples over all workers; each step that is not read counts as much as the last one that is."""
        return self._samples + len(self._pending) * self._samples_per_step

    @property
    def elapsed(self) -> float:
        """Seconds since the start of the epoch on the first worker's clock; of steps that are not read, an estimate."""
        return self._elapsed + len(self._pending) * self._seconds_per_step

    @property
    def added(self) -> int:
        """Number of steps, read or not."""
        return self.steps + len(self._pending)

    def batch_arrived(self) -> None:
        """Note the time at which the next batch is there."""
        self._arrived = time.monotonic()

    def add(self, keys: np.ndarray, squares: Tensor, values: int) -> Tensor:
        """Add a step, without waiting for the device.

        Args:
            keys: Keys of this worker's batch.
            squares: Sum of the squared errors of this worker's batch; on the device, ().
            values: Number of values of each sample.

        Returns:
            1 if the sum over all workers is not finite, else 0; float32 on the device, ().
        """
        total = torch.stack([squares, torch.full_like(squares, len(keys))])
        if world_size() > 1:
            dist.all_reduce(total)
        self._pending.append(_Pending(keys, squares, total, values, self._arrived - self._done))
        return (total[0] * 0).ne(0).float()  # 0 times infinity is not a number

    def step_done(self, seconds_left: float) -> bool:
        """Read the pending steps if it is time to, and return whether they were read.

        Args:
            seconds_left: Seconds of the budget that were left at the start of the epoch.

        Raises:
            NonFiniteLoss: The loss of a step is not finite.
        """
        is_read = len(self._pending) >= self._next_read
        if is_read:
            self.read()
            patience = min(CHECK_SECONDS, max(0.0, seconds_left - self._elapsed))
            self._next_read = int(min(CHECK_STEPS, max(1.0, patience / max(self._seconds_per_step, 1e-9))))
        else:
            self._close_step()
        return is_read

    def read(self) -> None:
        """Wait for the device, and read the results of the pending steps.

        Raises:
            NonFiniteLoss: The loss of a step is not finite.
        """
        if not self._pending:
            return
        totals = torch.stack([step.total for step in self._pending]).tolist()
        self._close_step()
        elapsed = sum_over_workers([self._done - self.began if rank() == 0 else 0.0], self._device)[0]
        self._seconds_per_step = (elapsed - self._elapsed) / len(totals)
        self._elapsed, pending, self._pending = elapsed, self._pending, []
        for step, (squares, samples) in zip(pending, totals, strict=True):
            self._count(step, squares, samples)

    def _close_step(self) -> None:
        self._done = time.monotonic()
        self._pending[-1].seconds = self._done - self._arrived

    def _count(self, step: _Pending, squares: float, samples: float) -> None:
        if not math.isfinite(squares):
            raise NonFiniteLoss(self._non_finite(step))
        values = samples * step.values
        self.steps, self._samples, self._samples_per_step = self.steps + 1, self._samples + samples, samples
        self.squares, self.values, self.waiting = (
            self.squares + squares,
            self.values + values,
            self.waiting + step.waiting,
        )
        if self._on_step:
            self._on_step(Step(samples, squares / values, step.waiting, step.seconds))

    def _non_finite(self, step: _Pending) -> str:
        is_finite = math.isfinite(step.own.item())
        named = gather_over_workers([] if is_finite else [str(key) for key in step.keys])
        return (
            f"The loss is not finite at step {self._steps_done + self.steps + 1} of epoch {self._epoch}; the step was "
            f"not taken. The batch: {', '.join(named)}. Look at these pairs; if they are sound, lower the learning "
            "rate."
        )
