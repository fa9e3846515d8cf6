"""The two jobs with the network taken out, so that what remains is their overhead.

    "predict" or "train", then the job's own options -> the job's own output, with meaningless mattes and weights

Ray's workers import these classes from here, so they cannot live in a program.
"""

import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from jobs import predict, train
from jobs.prediction.blocks import PredictionWork
from matting.data.images import Pixels
from matting.inference.device_predictor import DevicePredictor
from matting.inference.network import SmallAlphas
from matting.nn.schedule import UNLIMITED, Budget
from matting.nn.steps import Step
from matting.nn.trainer import Batch, Epoch, Score, Trainer


class NullNetworkWork(PredictionWork):
    """Prediction work whose network predicts a disc for every photo."""

    def network(self, device: torch.device) -> SmallAlphas:  # noqa: ARG002 - a disc needs no device
        """Return a network that takes no time."""
        return DiscNetwork(self.load().size)

    def device_predictor(self, device: torch.device) -> DevicePredictor:
        """Return a predictor of batches whose network takes no time."""
        return DevicePredictor(DiscNetwork(self.load().size), self.settings.refine, device)


class DiscNetwork:
    """Network that predicts a large disc with a soft edge; too large for the second pass.

    Args:
        size: Side of the alphas in pixels.
    """

    def __init__(self, size: int) -> None:
        self.size, self.aspects = size, None
        rows, columns = np.mgrid[:size, :size] / size - 0.5
        self._alpha_HW = np.rint(255 * np.clip((0.4 - np.hypot(rows, columns)) * 20 + 0.5, 0, 1)).astype(np.uint8)

    def small_alphas(self, squashed_BHWC: Pixels) -> Pixels:
        """Return the disc for each image: uint8 (B, S, S, 3) -> uint8 (B, S, S)."""
        return np.repeat(self._alpha_HW[None], len(squashed_BHWC), axis=0)

    def alphas_on_device(self, squashed_BHWC: Tensor, parts: int) -> Tensor:  # noqa: ARG002 - a disc needs no memory
        """Return the disc for each image, on the device of the images."""
        alpha_HW = torch.from_numpy(self._alpha_HW).to(squashed_BHWC.device)
        return alpha_HW.expand(len(squashed_BHWC), -1, -1)


class NullTrainer(Trainer):
    """Trainer that receives every batch and computes nothing."""

    def train_epoch(
        self,
        batches: Iterable[Batch],
        plan: Budget = UNLIMITED,
        on_step: Callable[[Step], None] | None = None,
    ) -> Epoch:
        """Train one epoch without arithmetic; see `Trainer.train_epoch`."""
        began, steps, samples = time.monotonic(), 0, 0
        for batch in batches:
            steps, samples = steps + 1, samples + len(batch["key"])
            if on_step:
                on_step(Step(len(batch["key"]), 0.0, 0.0, 0.0))
            if self.seconds + time.monotonic() - began > plan.seconds:
                break
        seconds = time.monotonic() - began
        self.epochs_done, self.steps, self.seconds = self.epochs_done + 1, self.steps + steps, self.seconds + seconds
        return Epoch(0.0, steps, samples, seconds, seconds)

    def validate(self, batches: Iterable[Batch]) -> list[Score]:
        """Read all validation batches and return the same score for each pair; see `Trainer.validate`."""
        return [Score(str(key), 1.0, 1.0, 0.0) for batch in batches for key in batch["key"]]


def main(argv: Sequence[str]) -> None:
    """Run one of the two jobs, named by the first argument, with the options that follow."""
    if argv[0] == "predict":
        predict.main(argv[1:], NullNetworkWork)
    else:
        train.main(argv[1:], NullTrainer)
