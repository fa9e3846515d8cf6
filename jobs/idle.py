"""The jobs without their arithmetic, for the benchmark: all that is left is what they cost beside the network.

    main: "predict" or "train", and the job's own options -> the job's own results, but for what is in them

A module of its own, in which Ray's workers find these classes. Knows nothing of how they are measured.
"""

import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from jobs import predict, train
from jobs.blocks import Work
from matting.images import Pixels
from matting.predictor import SmallAlphas
from matting.training import ENDLESS, Batch, Epoch, Plan, Score, Step, Trainer


class WithoutNetwork(Work):
    """Predicts a disc, whatever the photo shows."""

    def network(self, device: torch.device) -> SmallAlphas:  # noqa: ARG002 - it needs none
        """What takes no time."""
        return Disc(self.load().size)


class Disc:
    """A matte with a soft edge, too large to be looked at again from closer."""

    def __init__(self, size: int) -> None:
        self.size, self.aspects = size, None
        rows, columns = np.mgrid[:size, :size] / size - 0.5
        self._alpha_HW = np.rint(255 * np.clip((0.4 - np.hypot(rows, columns)) * 20 + 0.5, 0, 1)).astype(np.uint8)

    def small_alphas(self, squashed_BHWC: Pixels) -> Pixels:
        """uint8 (B, S, S, 3) -> uint8 (B, S, S)."""
        return np.repeat(self._alpha_HW[None], len(squashed_BHWC), axis=0)


class WithoutSteps(Trainer):
    """Takes every batch, and learns nothing of it."""

    def train_epoch(
        self,
        batches: Iterable[Batch],
        plan: Plan = ENDLESS,
        on_step: Callable[[Step], None] | None = None,
    ) -> Epoch:
        """As it is there."""
        began, steps, samples = time.monotonic(), 0, 0
        for batch in batches:
            steps, samples = steps + 1, samples + len(batch["key"])
            if on_step:
                on_step(Step(len(batch["key"]), 0.0, 0.0, 0.0))
            if self.seconds + time.monotonic() - began > plan.seconds:
                break
        seconds = time.monotonic() - began
        self.epochs, self.steps, self.seconds = self.epochs + 1, self.steps + steps, self.seconds + seconds
        return Epoch(0.0, steps, samples, seconds, seconds)

    def validate(self, batches: Iterable[Batch]) -> list[Score]:
        """As it is there."""
        return [Score(str(key), 1.0, 1.0, 0.0) for batch in batches for key in batch["key"]]


def main(argv: Sequence[str]) -> None:
    """One of the two jobs, with its own options."""
    if argv[0] == "predict":
        predict.main(argv[1:], WithoutNetwork)
    else:
        train.main(argv[1:], WithoutSteps)
