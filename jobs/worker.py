"""The life of a training worker: epoch by epoch, from the last checkpoint to the end of the run.

    Assignment -> train_worker, in every worker of Ray Train -> checkpoints; what failed for good, or nothing

All workers take the same steps and come to the same verdict on an epoch; the first of them also keeps the run folder.
Knows no page.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train.torch import get_device

from jobs import streams
from jobs.actors import Mailbox
from jobs.cluster import SharedConsole
from jobs.recipe import TrainConfig
from jobs.runs import Recorder, RunFolder
from matting import checkpoint, storage
from matting.collection import too_many_rejected
from matting.pairs import some
from matting.training import Epoch, NonFiniteLoss, Plan, Score, Trainer, gather_over_workers, mean_scores
from matting.unet import UNet


@dataclass(frozen=True)
class Assignment:
    """What a worker has to know."""

    options: TrainConfig
    kind_of_trainer: type[Trainer]
    plan: Plan
    folder: RunFolder
    data: Mapping[str, Any]  # of the checkpoint's config.json
    total: int  # of all that is decoded
    val_keys: Sequence[str]
    backgrounds: Sequence["ray.ObjectRef[np.ndarray]"] | None
    use_gpu: bool
    mailbox: "ray.actor.ActorHandle[Mailbox]"
    console: SharedConsole
    ray_up: float  # when the cluster was there, in seconds since the epoch


def train_worker(config: dict[str, Assignment]) -> str:
    """Train and validate until the run is finished.

    Args:
        config: {"assignment": …}, since Ray Train passes a dictionary.

    Returns:
        What failed, and would fail again; or nothing.
    """
    work = config["assignment"]
    options, plan = work.options, work.plan
    context = ray.train.get_context()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    pictures = None
    if work.backgrounds is not None:
        pictures = np.concatenate(ray.get(list(work.backgrounds)))
        if not len(pictures):
            return f"None of the photos of --backgrounds {options.backgrounds} can be used: give others, or none."
    trainer = resumed(work, pictures)
    recorder = keep_record(work, trainer) if context.get_world_rank() == 0 else None
    train_shard, val_shard = ray.train.get_dataset_shard("train"), None
    while not plan.finished(trainer.epochs, trainer.seconds):
        batches = streams.batches(train_shard, options.batch)
        try:
            epoch = trainer.train_epoch(batches, plan, recorder.on_step if recorder else None)
        except NonFiniteLoss as error:
            return str(error)
        val_shard = val_shard or ray.train.get_dataset_shard("val")  # by a process that the first batch need not await
        scores = trainer.validate(streams.batches(val_shard, options.batch))
        rejections = ray.get(work.mailbox.rejected.remote())
        if failure := what_failed(work, epoch, scores, rejections):
            return failure
        means = {f"val_{name}": value for name, value in mean_scores(scores).items()}
        is_best = means["val_mad"] < trainer.best_mad
        trainer.best_mad = min(trainer.best_mad, means["val_mad"])
        if recorder:
            recorder.epoch(epoch, scores, means, rejections, is_best)
    if recorder:
        recorder.close()
    return ""


def resumed(work: Assignment, pictures: np.ndarray | None) -> Trainer:
    """A trainer as it was at the last checkpoint; without one, as the seed makes it.

    Args:
        work: the worker's.
        pictures: photos without people, uint8 (N, S, S, 3).
    """
    torch.manual_seed(work.options.seed)
    model = UNet(work.options.network())
    device = get_device() if work.use_gpu else torch.device("cpu")
    trainer = work.kind_of_trainer(model, work.options.training(), device, pictures)
    progress = gather_over_workers([work.folder.progress()])[0]  # a file system may show some of them an older one
    if progress:
        place = storage.join(work.folder.uri, progress["last"])
        trainer.resume(checkpoint.load(place).model.state_dict(), checkpoint.load_train_state(place))
    return trainer


def keep_record(work: Assignment, trainer: Trainer) -> Recorder:
    """Begin to leave in the run folder what this trainer does."""
    recipe = {"name": work.options.recipe, **asdict(work.options.training())}
    config = checkpoint.describe(trainer.model, work.options.size, recipe=recipe, data=work.data)
    return Recorder(work.folder, trainer, config, work.plan.samples, work.console, work.ray_up)


def what_failed(work: Assignment, epoch: Epoch, scores: Sequence[Score], rejections: Mapping[str, str]) -> str:
    """Whether an epoch's data were good enough to go on with: a sentence, if not.

    Args:
        work: the worker's.
        epoch: that was trained, over all workers.
        scores: of its validation, over all workers.
        rejections: reasons by key, so far. The first pass over the pairs brings all, to all workers alike.
    """
    what = "pairs and backgrounds" if work.options.backgrounds else "pairs"
    if failure := too_many_rejected(rejections, work.total, work.options.max_rejected_fraction, what):
        return failure
    if not epoch.steps or not scores:
        return f"No pair is left: {epoch.samples:g} to train with, {len(scores)} to validate with."
    lost = sorted(set(work.val_keys).difference(rejections, (score.key for score in scores)))
    if lost:
        return f"Validation missed {len(lost)} of {len(work.val_keys)} pairs that nobody rejected: {some(lost)}."
    return ""
