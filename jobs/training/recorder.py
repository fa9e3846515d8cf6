"""The recorder of the first worker: progress for the console, metrics for Ray, everything for the run folder."""

import time
from collections.abc import Mapping
from typing import Any

from jobs.common import telemetry
from jobs.common.console import SharedConsole
from jobs.training.decode import MailboxHandle
from jobs.training.run_folder import RunFolder, encode_history, encode_rejected, encode_scores
from jobs.training.uploads import EpochFiles, EpochUploader
from matting.nn import checkpoint
from matting.nn.steps import Step
from matting.nn.trainer import Epoch, Score, Trainer

LOSS_STEPS = 25  # steps between two points of the loss curve
PUBLISH_SECONDS = 5.0  # seconds between two messages of metrics to the driver


class Recorder:
    """Recorder of everything that a run leaves in its folder while it trains.

    Args:
        folder: Run folder.
        trainer: Trainer to record.
        config: Contents of config.json for its checkpoints.
        epoch_samples: Number of training samples in an epoch.
        batch: Number of samples in a worker's steps, which a run keeps when it goes on.
        mailbox: Mailbox of the driver's console.
        cluster_ready: Time at which the cluster had started, in seconds since 1970.
    """

    def __init__(
        self,
        folder: RunFolder,
        trainer: Trainer,
        config: Mapping[str, Any],
        epoch_samples: int,
        batch: int,
        mailbox: MailboxHandle,
        cluster_ready: float,
    ) -> None:
        self._folder, self._trainer, self._config = folder, trainer, config
        self._epoch_samples, self._batch, self._console = epoch_samples, batch, SharedConsole(mailbox)
        self._cluster_ready: float | None = cluster_ready  # until the first step
        self._first_batch: dict[str, float] = {}
        self._history = folder.history(trainer.steps)
        self._best = folder.progress().get("best")
        if self._best:
            folder.restore_best()
        self._uploader = EpochUploader(folder, self._console.say)
        self._buffer = telemetry.MetricBuffer()
        self._published = time.monotonic()
        self._begin_epoch()

    def record_step(self, step: Step) -> None:
        """Count a step, and add a point to the loss curve every ``LOSS_STEPS`` steps."""
        if self._cluster_ready is not None:
            seconds = time.time() - step.seconds - self._cluster_ready
            self._console.say(f"first batch after {seconds:.1f} s")
            self._cluster_ready, self._first_batch = None, {"first_batch_seconds": seconds}
        buffer, run = self._buffer, self._folder.name
        buffer.count(telemetry.SAMPLES, step.samples, run=run)
        buffer.count(telemetry.TRAIN_SECONDS, step.waiting, run=run, stage="wait")
        buffer.count(telemetry.TRAIN_SECONDS, step.seconds, run=run, stage="step")
        self._progress.update(int(step.samples))
        self._losses.append(step.loss)
        if len(self._losses) % LOSS_STEPS == 0:
            loss = sum(self._losses[-LOSS_STEPS:]) / LOSS_STEPS
            buffer.show(telemetry.LOSS, loss, run=run)
            self._add(self._trainer.steps + len(self._losses), self._trainer.epochs_done + 1, train_loss=loss)
        if time.monotonic() - self._published > PUBLISH_SECONDS:
            self._publish()

    def record_epoch(
        self,
        epoch: Epoch | None,
        scores: list[Score],
        means: dict[str, float],
        rejections: Mapping[str, str],
        is_best: bool,
    ) -> None:
        """Write an epoch's metrics and checkpoint, commit the progress, and then write best/ if it is the best.

        A run that is killed before the commit repeats the epoch. If the store refuses the files, training goes on, and
        so does their upload; see :mod:`jobs.training.uploads`.

        Args:
            epoch: Result of the training epoch; None for the weights that a fine-tuning begins with, epoch 0.
            scores: Scores of each validation pair.
            means: Means of the scores, as val_n, val_mad, val_mse and val_iou.
            rejections: Reasons of the rejected pairs, by key.
            is_best: Whether this epoch has the smallest val_mad so far.

        Raises:
            LeaseLostError: Another job has taken the run folder over.
        """
        trainer = self._trainer
        if epoch:
            self._add(trainer.steps, trainer.epochs_done, **_training_values(epoch), **self._first_batch, **means)
            self._report_epoch(epoch, means)
        else:
            self._add(trainer.steps, trainer.epochs_done, **means)
            self._console.say(
                f"MAD before fine-tuning: {means['val_mad']:.2f}e-3, IoU {means['val_iou']:.4f}, on {means['val_n']} "
                "validation pairs"
            )
        self._first_batch = {}
        last = f"epoch-{trainer.epochs_done:05d}"
        encoded = checkpoint.encode(trainer.model, self._config, means, trainer.state())
        self._best = last if is_best else self._best
        files = {
            **encode_history(self._history, trainer.epochs_done),
            **encode_rejected(rejections),
            **(encode_scores(scores) if is_best else {}),
            **{f"{last}/{name}": data for name, data in encoded.items()},
        }
        progress = {name: getattr(trainer, name) for name in ("epochs_done", "steps", "seconds", "best_mad")}
        progress |= {"batch": self._batch, "last": last, "best": self._best}
        self._uploader.upload(EpochFiles(files, progress, encoded if is_best else {}))
        self._begin_epoch()

    def close(self) -> None:
        """Wait until everything is uploaded, and raise the store's error if it is not."""
        self._uploader.close()

    def _report_epoch(self, epoch: Epoch, means: Mapping[str, float]) -> None:
        """Publish an epoch's metrics, and print them."""
        trainer, run = self._trainer, self._folder.name
        validating = trainer.seconds - self._seconds - epoch.seconds
        self._buffer.count(telemetry.TRAIN_SECONDS, validating, run=run, stage="validate")
        self._buffer.show(telemetry.EPOCH, trainer.epochs_done, run=run)
        for name in ("mad", "mse", "iou"):
            self._buffer.show(telemetry.VALIDATION, means[f"val_{name}"], run=run, metric=name)
        self._publish()
        self._console.say(
            f"epoch {trainer.epochs_done}: loss {epoch.loss:.4f}, val MAD {means['val_mad']:.2f}e-3, "
            f"IoU {means['val_iou']:.4f}, {epoch.samples / epoch.seconds:.1f} samples/s, waited {epoch.waiting:.1f} s "
            f"for data, {trainer.seconds / 60:.1f} min in all"
        )

    def _publish(self) -> None:
        self._console.publish(self._buffer)
        self._buffer = telemetry.MetricBuffer()
        self._published = time.monotonic()

    def _add(self, step: int, epoch: int, **values: float) -> None:
        self._history.append({"step": step, "epoch": epoch, "time": time.time(), **values})

    def _begin_epoch(self) -> None:
        self._losses: list[float] = []
        self._seconds = self._trainer.seconds
        title = f"epoch {self._trainer.epochs_done + 1}"
        self._progress = self._console.progress(title, self._epoch_samples, "samples")


def _training_values(epoch: Epoch) -> dict[str, float]:
    """Return the columns of metrics.jsonl that describe the training of an epoch."""
    return {
        "epoch_loss": epoch.loss,
        "samples_per_second": epoch.samples / epoch.seconds,
        "waiting": epoch.waiting,
    }
