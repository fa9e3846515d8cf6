"""The run folder of a training: what was asked, how far it came, what to look at.

    epoch-00001/ …              checkpoints: the last and the best
    best/                       the best one's copy
    progress.json               how far the run came, and the names of these two; other checkpoints do not count
    run.json                    command, configuration, data fingerprint; a run of the same name must agree with it
    metrics.jsonl               a row every few steps (train_loss) and one an epoch (val_*, speed)
    events/events.out.tfevents… the same for TensorBoard, a file an epoch
    validation.parquet          every validation picture's scores, at the best epoch
    rejected.json               pairs that could not be decoded, and why

Every file is written whole, again and again if need be, so a run that goes on leaves no row twice.
"""

import copy
import io
import json
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from jobs import telemetry
from jobs.cluster import SharedConsole
from jobs.config import ConfigError
from matting import checkpoint, storage
from matting.training import Epoch, Score, Step, Trainer

PROGRESS = "progress.json"
CHECKPOINT = re.compile(r"epoch-\d+")
SCORES = pa.schema([("key", pa.string()), *((name, pa.float64()) for name in Score._fields[1:])])
LOSS_STEPS = 25  # between two points of the loss curve
PUBLISH_SECONDS = 5.0  # between two reports of figures to the driver


@dataclass(frozen=True)
class RunFolder:
    """The folder at ``uri``."""

    uri: str

    @property
    def name(self) -> str:
        """The run's."""
        return self.uri.rpartition("/")[2]

    def begin(self, command: str, identity: Mapping[str, Any]) -> None:
        """Make the folder this run's own, or check that it is already.

        Raises:
            ConfigError: another run, with other options or data, lives here.
            storage.StorageError: it cannot be read or written.
        """
        place = storage.join(self.uri, "run.json")
        if storage.exists(place):
            found = json.loads(storage.read_bytes(place))["identity"]
            differing = [name for name, value in identity.items() if found.get(name) != value]
            if differing:
                told = "; ".join(f"{name} was {found.get(name)!r}, is now {identity[name]!r}" for name in differing)
                raise ConfigError(f"{self.uri} holds another run: {told}. Give another --name, or the same options.")
            return
        content = json.dumps({"command": command, "identity": dict(identity)}, indent=2) + "\n"
        storage.write_bytes(place, content.encode())

    def progress(self) -> dict[str, Any]:
        """What :meth:`count` wrote last; empty before the first checkpoint."""
        place = storage.join(self.uri, PROGRESS)
        if not storage.exists(place):
            return {}
        progress: dict[str, Any] = json.loads(storage.read_bytes(place))
        return progress

    def count(self, progress: Mapping[str, Any]) -> None:
        """From here the run goes on: progress.json. Other checkpoints are removed, also what killed workers left.

        Args:
            progress: epochs, steps, seconds, best_mad; last and best, the names of two checkpoints.
        """
        storage.write_bytes(storage.join(self.uri, PROGRESS), (json.dumps(dict(progress), indent=2) + "\n").encode())
        found = {file.key.partition("/")[0] for file in storage.list_files(self.uri)}
        for name in sorted(filter(CHECKPOINT.fullmatch, found - {progress["last"], progress["best"]})):
            storage.delete_folder(storage.join(self.uri, name))

    def epochs_done(self) -> int:
        """Of the last checkpoint that counts."""
        return int(self.progress().get("epochs", 0))

    def history(self, steps: int) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl up to so many steps."""
        place = storage.join(self.uri, "metrics.jsonl")
        if not storage.exists(place):
            return []
        rows = [json.loads(line) for line in storage.read_bytes(place).splitlines()]
        return [row for row in rows if row["step"] <= steps]

    def write_history(self, history: Sequence[Mapping[str, Any]], epoch: int) -> None:
        """metrics.jsonl, and TensorBoard's file of one epoch."""
        lines = "".join(json.dumps(dict(row)) + "\n" for row in history)
        storage.write_bytes(storage.join(self.uri, "metrics.jsonl"), lines.encode())
        rows = [row for row in history if row["epoch"] == epoch]
        # TensorBoard orders the files of a run by the number after "tfevents".
        name = f"events/events.out.tfevents.{epoch:010d}"
        storage.write_bytes(storage.join(self.uri, name), encode_events(rows))

    def restore_best(self) -> None:
        """Make best/ the best checkpoint, if a kill came after its epoch and before the end of its upload."""
        name = self.progress()["best"]
        source, best = storage.join(self.uri, name), storage.join(self.uri, "best")
        scored = checkpoint.load(source)
        there = checkpoint.load(best) if storage.exists(f"{best}/metrics.json") else None
        if there is None or (there.identity, there.metrics) != (scored.identity, scored.metrics):
            checkpoint.copy(source, best)

    def write_rejected(self, reasons: Mapping[str, str]) -> None:
        """rejected.json."""
        storage.write_bytes(
            storage.join(self.uri, "rejected.json"), (json.dumps(dict(reasons), indent=2) + "\n").encode()
        )

    def rejected(self) -> dict[str, str]:
        """Back from rejected.json."""
        reasons: dict[str, str] = json.loads(storage.read_bytes(storage.join(self.uri, "rejected.json")))
        return reasons

    def write_scores(self, scores: Sequence[Score]) -> None:
        """validation.parquet."""
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([score._asdict() for score in scores], SCORES), sink)
        storage.write_bytes(storage.join(self.uri, "validation.parquet"), sink.getvalue())

    def scores(self) -> list[Score]:
        """Back from validation.parquet."""
        table = pq.read_table(io.BytesIO(storage.read_bytes(storage.join(self.uri, "validation.parquet"))))
        table = table.cast(SCORES)  # plain numbers, whatever the file calls them: no type that unpickles
        return [Score(**row) for row in table.to_pylist()]


class Recorder:
    """What the first worker leaves in the run folder, while training goes on.

    Args:
        folder: the run's.
        trainer: whose steps are recorded.
        config: the checkpoint's config.json.
        rows: training pairs in an epoch.
        console: to tell of progress.
        ray_up: when the cluster was there, in seconds since the epoch.
    """

    def __init__(
        self,
        folder: RunFolder,
        trainer: Trainer,
        config: Mapping[str, Any],
        rows: int,
        console: SharedConsole,
        ray_up: float,
    ) -> None:
        self._folder, self._trainer, self._config = folder, trainer, config
        self._rows, self._console = rows, console
        self._ray_up: float | None = ray_up
        self._history = folder.history(trainer.steps)
        self._best = folder.progress().get("best")
        if self._best:
            folder.restore_best()
        # One that computed with a second thread of its own would make more such threads than cores, and those of the
        # training step would sleep wherever they wait for one another: libgomp lets them spin only while there are not.
        self._uploads = ThreadPoolExecutor(1, initializer=partial(torch.set_num_threads, 1))
        self._upload: Future[None] | None = None
        self._tally = telemetry.Tally()
        self._published = time.monotonic()
        self._begin_epoch()

    def on_step(self, step: Step) -> None:
        """Progress, and now and then a point of the loss curve."""
        if self._ray_up:
            self._console.say(f"first batch after {time.time() - step.seconds - self._ray_up:.1f} s")
            self._ray_up = None
        tally, run = self._tally, self._folder.name
        tally.count(telemetry.SAMPLES, step.samples, run=run)
        tally.count(telemetry.TRAIN_SECONDS, step.waiting, run=run, stage="wait")
        tally.count(telemetry.TRAIN_SECONDS, step.seconds, run=run, stage="step")
        self._progress.update(int(step.samples))
        self._losses.append(step.loss)
        if len(self._losses) % LOSS_STEPS == 0:
            loss = sum(self._losses[-LOSS_STEPS:]) / LOSS_STEPS
            tally.show(telemetry.LOSS, loss, run=run)
            self._add(self._trainer.steps + len(self._losses), self._trainer.epochs + 1, train_loss=loss)
        if time.monotonic() - self._published > PUBLISH_SECONDS:
            self._publish()

    def epoch(
        self,
        epoch: Epoch,
        scores: list[Score],
        means: dict[str, float],
        rejections: Mapping[str, str],
        is_best: bool,
    ) -> None:
        """The epoch's row, its checkpoint, and best/ if it is; then the epoch counts. One that a kill cuts short before
        is tried again."""
        trainer = self._trainer
        validating = trainer.seconds - self._seconds - epoch.seconds
        run = self._folder.name
        self._tally.count(telemetry.TRAIN_SECONDS, validating, run=run, stage="validate")
        self._tally.show(telemetry.EPOCH, trainer.epochs, run=run)
        for name in ("mad", "mse", "iou"):
            self._tally.show(telemetry.VALIDATION, means[f"val_{name}"], run=run, metric=name)
        self._publish()
        speed = epoch.samples / epoch.seconds
        self._add(
            trainer.steps,
            trainer.epochs,
            epoch_loss=epoch.loss,
            samples_per_second=speed,
            waiting=epoch.waiting,
            **means,
        )
        self._folder.write_history(self._history, trainer.epochs)
        self._folder.write_rejected(rejections)
        if is_best:
            self._folder.write_scores(scores)
            self._replace_best(means)
        self._console.say(
            f"epoch {trainer.epochs}: loss {epoch.loss:.4f}, val MAD {means['val_mad']:.2f}e-3, "
            f"IoU {means['val_iou']:.4f}, {speed:.1f} samples/s, waited {epoch.waiting:.1f} s for data, "
            f"{trainer.seconds / 60:.1f} min in all"
        )
        last = f"epoch-{trainer.epochs:05d}"
        checkpoint.save(storage.join(self._folder.uri, last), trainer.model, self._config, means, trainer.state())
        self._best = last if is_best else self._best
        progress = {name: getattr(trainer, name) for name in ("epochs", "steps", "seconds", "best_mad")}
        self._folder.count({**progress, "last": last, "best": self._best})
        self._begin_epoch()

    def close(self) -> None:
        """Wait for what is on its way."""
        self._uploads.shutdown(wait=True)
        if self._upload:
            self._upload.result()

    def _publish(self) -> None:
        self._console.publish(self._tally)
        self._tally = telemetry.Tally()
        self._published = time.monotonic()

    def _replace_best(self, means: dict[str, float]) -> None:
        if self._upload:
            self._upload.result()
        model, state = copy.deepcopy(self._trainer.model), copy.deepcopy(self._trainer.state())
        place = storage.join(self._folder.uri, "best")
        self._upload = self._uploads.submit(checkpoint.save, place, model, self._config, means, state)

    def _add(self, step: int, epoch: int, **values: float) -> None:
        self._history.append({"step": step, "epoch": epoch, "time": time.time(), **values})

    def _begin_epoch(self) -> None:
        self._losses: list[float] = []
        self._seconds = self._trainer.seconds
        self._progress = self._console.progress(f"epoch {self._trainer.epochs + 1}", self._rows, "samples")


def encode_events(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """TensorBoard's event file: every number of a row but its step, epoch and time, as a scalar at that step."""
    sink = io.BytesIO()
    writer = RecordWriter(sink)
    writer.write(Event(file_version="brain.Event:2", wall_time=rows[0]["time"] if rows else 0).SerializeToString())
    for row in rows:
        scalars = [
            Summary.Value(tag=name.replace("_", "/", 1), simple_value=value)
            for name, value in row.items()
            if name not in ("step", "epoch", "time")
        ]
        event = Event(step=row["step"], wall_time=row["time"], summary=Summary(value=scalars))
        writer.write(event.SerializeToString())
    return sink.getvalue()
