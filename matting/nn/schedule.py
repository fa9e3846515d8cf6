"""The schedule of a run: its length, its progress, and the learning rate that follows from the progress."""

import math
from dataclasses import dataclass
from typing import Literal

Schedule = Literal["constant", "cosine"]

WARM_UP_FRACTION = 0.02  # fraction of the run in which the cosine schedule rises


@dataclass(frozen=True)
class Budget:
    """Length of a run, in epochs or seconds; the first of them that is used up ends it.

    Args:
        epochs: Number of passes over the training pairs.
        samples: Number of training pairs in an epoch.
        seconds: Seconds of training and validation.
    """

    epochs: float = math.inf
    samples: float = math.inf
    seconds: float = math.inf

    def progress(self, epochs_done: float, seconds: float) -> float:
        """Return the fraction of the budget that is used up, in [0, 1]; ``epochs_done`` may be fractional."""
        return min(1.0, max(epochs_done / self.epochs, seconds / self.seconds if seconds else 0.0))

    def finished(self, epochs_done: int, seconds: float) -> bool:
        """Return whether a run that has come this far has nothing left to do."""
        return epochs_done >= self.epochs or seconds >= self.seconds


UNLIMITED = Budget()


def learning_rate_factor(schedule: Schedule, progress: float) -> float:
    """Return the factor in [0, 1] of the learning rate.

    Args:
        schedule: "constant", or "cosine" (Loshchilov and Hutter, SGDR, 2017) after a linear warm-up.
        progress: Fraction of the run that is done, in [0, 1].
    """
    if schedule == "constant":
        return 1.0
    if progress < WARM_UP_FRACTION:
        return 0.01 + 0.99 * progress / WARM_UP_FRACTION
    return 0.5 + 0.5 * math.cos(math.pi * (progress - WARM_UP_FRACTION) / (1 - WARM_UP_FRACTION))
