"""The life of a training worker: epoch by epoch, from the last checkpoint to the end of the run.

    Assignment -> train_worker, in every worker of Ray Train -> checkpoints; the reason of a failure, or nothing

All workers take the same steps and judge an epoch alike; the first of them also writes the run folder. A fine-tuning
validates its starting weights as epoch 0, so that the best checkpoint may be the starting one.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import ray
import ray.train
import torch

from jobs.common.devices import promised_gpu
from jobs.common.machine import usable_cores
from jobs.common.visibility import Token, require_visible
from jobs.training.cache import CachedPairs
from jobs.training.config import TrainConfig
from jobs.training.data import DataFacts
from jobs.training.decode import MailboxHandle
from jobs.training.fine_tune import Start
from jobs.training.recorder import Recorder
from jobs.training.run_folder import RunFolder
from jobs.training.streams import StreamedPairs
from matting.data.dataset import too_many_rejected
from matting.messages import first_few
from matting.nn import checkpoint
from matting.nn.distributed import gather_over_workers, world_size
from matting.nn.steps import NonFiniteLoss
from matting.nn.trainer import Batch, Epoch, Score, Trainer, mean_scores
from matting.nn.unet import UNet
from matting.storage.lease import LeaseLostError
from matting.storage.uri import join_uri


@dataclass(frozen=True)
class Assignment:
    """Everything that a training worker needs."""

    options: TrainConfig
    data: DataFacts
    cached: CachedPairs | None  # decoded pairs; None to decode them in every epoch
    start: Start | None  # checkpoint to fine-tune; None for random initial weights
    backgrounds: "Sequence[ray.ObjectRef[np.ndarray]] | None"  # decoded photos without people, uint8 (N, S, S, 3) each
    folder: RunFolder
    trainer_class: type[Trainer]
    use_gpu: bool
    batch: int  # number of pairs that a worker takes in one step
    mailbox: MailboxHandle
    cluster_ready: float  # when the cluster had started, in seconds since 1970
    token: Token | None  # proof that all nodes see the same files; None on a cluster of one machine


def train_worker(config: dict[str, Assignment]) -> str:
    """Train and validate until the run is finished.

    Args:
        config: {"assignment": assignment}, since Ray Train passes a dictionary.

    Returns:
        Reason why the run failed and would fail again, or nothing.
    """
    assignment = config["assignment"]
    options = assignment.options
    context = ray.train.get_context()
    torch.set_num_threads(max(1, usable_cores() // context.get_local_world_size()))
    require_visible(assignment.token)
    backgrounds_NHWC = None
    if assignment.backgrounds is not None:
        backgrounds_NHWC = np.concatenate(ray.get(list(assignment.backgrounds)))
        if not len(backgrounds_NHWC):
            return f"None of the photos of --backgrounds {options.backgrounds} can be used: give others, or none."
    if failure := lease_failure(assignment.folder):
        return failure
    trainer = restore_trainer(assignment, backgrounds_NHWC)
    recorder = start_recorder(assignment, trainer) if context.get_world_rank() == 0 else None
    failure = train_epochs(assignment, trainer, recorder)
    if recorder:
        recorder.close()
    return failure


def train_epochs(assignment: Assignment, trainer: Trainer, recorder: Recorder | None) -> str:
    """Train and validate until the run is finished. Return why it failed and would fail again, or nothing."""
    options = assignment.options
    budget = options.budget(assignment.data.epoch_samples)
    pairs = assignment.cached or StreamedPairs()
    if assignment.start and math.isinf(trainer.best_mad):
        val_batches = pairs.val_batches(assignment.batch, assignment.use_gpu)
        if failure := validate_epoch(assignment, trainer, recorder, val_batches, None):
            return failure
    batches = pairs.train_batches(trainer.epochs_done, assignment.batch, assignment.use_gpu)
    while not budget.finished(trainer.epochs_done, trainer.seconds):
        try:
            epoch = trainer.train_epoch(batches, budget, recorder.record_step if recorder else None)
        except NonFiniteLoss as error:
            return str(error)
        except torch.OutOfMemoryError as error:
            reason = f"Steps of {assignment.batch} pairs need more memory than the GPU has: give a smaller --batch."
            raise MemoryError(f"{reason} {error}") from error
        val_batches = pairs.val_batches(assignment.batch, assignment.use_gpu)
        batches = pairs.train_batches(trainer.epochs_done, assignment.batch, assignment.use_gpu)  # ready by then
        if failure := validate_epoch(assignment, trainer, recorder, val_batches, epoch):
            return failure
    return ""


def validate_epoch(
    assignment: Assignment,
    trainer: Trainer,
    recorder: Recorder | None,
    batches: Iterator[Batch],
    epoch: Epoch | None,
) -> str:
    """Validate and record an epoch, or with None the weights that a fine-tuning begins with.

    Args:
        assignment: The worker's assignment.
        trainer: Trainer of the epoch.
        recorder: Recorder of the first worker.
        batches: This worker's validation batches.
        epoch: Result of the training epoch.

    Returns:
        Reason why the run failed and would fail again, or nothing.
    """
    scores = trainer.validate(batches)
    if epoch is None:
        trainer.seconds = 0.0  # else the schedule, which follows the time, would skip its warm-up
    # The first worker's view, as training pairs may still be decoded while the starting weights are validated.
    rejections: dict[str, str] = gather_over_workers([ray.get(assignment.mailbox.rejected.remote())])[0]
    if failure := data_failure(assignment, epoch, scores, rejections):
        return failure
    means = {f"val_{name}": value for name, value in mean_scores(scores).items()}
    is_best = means["val_mad"] < trainer.best_mad
    trainer.best_mad = min(trainer.best_mad, means["val_mad"])
    if recorder:
        recorder.record_epoch(epoch, scores, means, rejections, is_best)
    return ""


def lease_failure(folder: RunFolder) -> str:
    """Return why this job may no longer write to the run folder, or nothing; on all workers the first one's answer."""
    failure = ""
    try:
        folder.check_lease()
    except LeaseLostError as error:
        failure = str(error)
    return str(gather_over_workers([failure])[0])


def restore_trainer(assignment: Assignment, backgrounds_NHWC: np.ndarray | None) -> Trainer:
    """Return a trainer as it was at the last checkpoint, or a new one if there is none.

    Args:
        assignment: The worker's assignment.
        backgrounds_NHWC: Photos without people, uint8, if there are any.
    """
    torch.manual_seed(assignment.options.seed)
    model = UNet(assignment.options.network())
    if assignment.start:
        model.load_state_dict(assignment.start.weights)  # of which the trainer's moving average begins as a copy
    device = promised_gpu() if assignment.use_gpu else torch.device("cpu")
    torch.backends.cudnn.benchmark = True  # a run has few image sizes, so it pays to try the kernels for each
    training = assignment.options.training()
    trainer = assignment.trainer_class(model, training, device, backgrounds_NHWC, assignment.batch)
    # The first worker's view, as a shared file system may still show an older file to some of them.
    progress = gather_over_workers([assignment.folder.progress()])[0]
    if progress:
        uri = join_uri(assignment.folder.uri, progress["last"])
        trainer.resume(checkpoint.load(uri).model.state_dict(), checkpoint.load_train_state(uri))
    return trainer


def start_recorder(assignment: Assignment, trainer: Trainer) -> Recorder:
    """Return a recorder for this trainer, which describes its checkpoints by the run's options and data."""
    options, data = assignment.options, assignment.data
    config = checkpoint.describe(
        trainer.model,
        options.size,
        recipe={
            "name": options.recipe,
            **asdict(trainer.config),
            "batch": assignment.batch,
            "workers": world_size(),
            "init": assignment.start.record() if assignment.start else None,
        },
        data={
            "uri": options.data,
            "split_seed": options.split_seed,
            "fingerprint": data.fingerprint,
            "backgrounds": options.backgrounds,
            "aspects": data.aspects,
        },
    )
    return Recorder(
        assignment.folder,
        trainer,
        config,
        data.epoch_samples,
        assignment.batch,
        assignment.mailbox,
        assignment.cluster_ready,
    )


def data_failure(
    assignment: Assignment, epoch: Epoch | None, scores: Sequence[Score], rejections: Mapping[str, str]
) -> str:
    """Return why the data of an epoch are not good enough to go on with, or nothing.

    Args:
        assignment: The worker's assignment.
        epoch: Result of the training epoch, over all workers; None before the first.
        scores: Scores of its validation, over all workers.
        rejections: Reasons of the rejected pairs and backgrounds so far, by key. The first pass over the data finds all
            of them, so that all workers see the same.
    """
    options, data = assignment.options, assignment.data
    what = "pairs and backgrounds" if options.backgrounds else "pairs"
    if failure := too_many_rejected(rejections, data.decoded, options.max_rejected_fraction, what):
        return failure
    if not scores or (epoch and not epoch.steps):
        training = f"{epoch.samples:g} to train with, " if epoch else ""
        return f"No pair is left: {training}{len(scores)} to validate with."
    missing = sorted(set(data.val_keys).difference(rejections, (score.key for score in scores)))
    if missing:
        return (
            f"Validation missed {len(missing)} of {len(data.val_keys)} pairs that were not rejected: "
            f"{first_few(missing)}."
        )
    return ""
