"""Study: validation MAD after equally many samples with the recipe's batch and with larger ones.

    python -m tests.studies.batches --batches 16,128 --seeds 0,1,2 --data PAIRS --epochs 40 [options of jobs/train.py]

Every run takes the same pairs equally often, each seed in an order of its own; the trainer scales the recipe to the
batch. No Ray, no files: the pairs are decoded once, into memory.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from jobs.common import config
from jobs.training.config import TrainConfig, presets
from jobs.training.data import open_training_data
from matting.data.rows import Example, Rows
from matting.nn.trainer import Batch, Trainer, mean_scores
from matting.nn.unet import UNet


def decode(rows: Rows, size: int) -> dict[str, np.ndarray]:
    """Return the columns key, image and alpha of all rows that can be decoded."""
    examples: list[Example] = [example for example in rows.examples(size) if not example.error]
    return {name: np.array([getattr(example, name) for example in examples]) for name in ("key", "image", "alpha")}


def batches_of(columns: Batch, order: np.ndarray, batch: int) -> Iterator[Batch]:
    """Yield the rows in this order; the last batch may be smaller."""
    for start in range(0, len(order), batch):
        yield {name: column[order[start : start + batch]] for name, column in columns.items()}


def val_mad(options: TrainConfig, train: Batch, val: Batch, batch: int, seed: int) -> float:
    """Train a whole run with this batch, and return the MAD of its last weights on the validation pairs."""
    torch.manual_seed(seed)
    trainer = Trainer(UNet(options.network()), options.training(), torch.device("cpu"), batch=batch)
    rows = len(train["key"])
    budget = options.budget(rows)
    while not budget.finished(trainer.epochs_done, trainer.seconds):
        order = np.random.default_rng([seed, trainer.epochs_done]).permutation(rows)
        trainer.train_epoch(batches_of(train, order, batch), budget)
    return mean_scores(trainer.validate(batches_of(val, np.arange(len(val["key"])), 64)))["mad"]


def numbers(text: str) -> Sequence[int]:
    """Return the numbers in a text such as "16,128"."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Print MAD by batch and seed, and the mean of each batch relative to the first one's."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.batches")
    parser.add_argument("--batches", type=numbers, default=[16, 128], help="numbers of pairs in a step")
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2], help="seeds of weights and order")
    study, training = parser.parse_known_args()
    options = config.parse(TrainConfig, training, presets)
    splits = open_training_data(options).pairs.splits
    train, val = (decode(splits[name], options.size) for name in ("train", "val"))
    print(f"{len(train['key'])} pairs, {options.epochs} epochs; MAD of {len(val['key'])} validation pairs, 1e-3")
    first = 0.0
    for batch in study.batches:
        mads = [val_mad(options, train, val, batch, seed) for seed in study.seeds]
        mean = statistics.mean(mads)
        first = first or mean
        print(f"batch {batch}: {', '.join(f'{mad:.2f}' for mad in mads)}; mean {mean:.2f}, {mean / first:.3f}×")


if __name__ == "__main__":
    main()
