"""A small run folder, recorded in this process without Ray."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from jobs.training.config import TrainConfig
from jobs.training.data import TrainingData, open_training_data
from jobs.training.recorder import Recorder
from jobs.training.run_folder import RunFolder
from matting.nn import checkpoint
from matting.nn.trainer import Batch, Trainer, mean_scores
from matting.nn.unet import UNet


class RecordedRun(NamedTuple):
    """Run of two epochs, of which the first is the best."""

    folder: RunFolder
    data: TrainingData
    messages: list[Any]  # to the driver's mailbox


def batches_of(data: TrainingData, split: str, size: int) -> list[Batch]:
    """Return all pairs of a split, as one batch."""
    examples = list(data.pairs.splits[split].examples(size))
    return [
        {
            "key": np.array([example.key for example in examples], object),
            "image": np.stack([example.image for example in examples]),
            "alpha": np.stack([example.alpha for example in examples]),
        }
    ]


@pytest.fixture
def recorded(tmp_path: Path) -> RecordedRun:
    options = TrainConfig(width=4, depth=2, size=16, synthetic_pairs=40, name="run", output=str(tmp_path))
    data = open_training_data(options)
    folder = RunFolder(options.run_uri)
    folder.begin("python jobs/train.py", options.identity(data.fingerprints()))
    trainer = Trainer(UNet(options.network()), options.training(), torch.device("cpu"))
    messages: list[Any] = []
    mailbox = SimpleNamespace(put=SimpleNamespace(remote=messages.append))
    config = checkpoint.describe(trainer.model, options.size, {"name": "quickstart"}, {})
    recorder = Recorder(folder, trainer, config, len(data.epoch_rows), 8, mailbox, cluster_ready=0.0)
    for val_mad in (1.0, 2.0):
        epoch = trainer.train_epoch(batches_of(data, "train", 16), options.budget(32), recorder.record_step)
        scores = trainer.validate(batches_of(data, "val", 16))
        means = {f"val_{name}": value for name, value in mean_scores(scores).items()} | {"val_mad": val_mad}
        is_best = val_mad < trainer.best_mad
        trainer.best_mad = min(trainer.best_mad, val_mad)
        recorder.record_epoch(epoch, scores, means, {"a.png": "empty file"}, is_best)
    recorder.close()
    return RecordedRun(folder, data, messages)
