"""The run folder of a training: its options, its progress, its checkpoints and its metrics.

    run.json                     command, options and data fingerprints; a command that goes on must agree with them
    progress.json                epochs, steps and seconds done, best MAD, a worker's batch, names of the last and the
                                 best checkpoint
    epoch-00001/ …               these two checkpoints; others are incomplete or stale
    best/                        copy of the best checkpoint
    metrics.jsonl                one row every few steps (train_loss), and one for each epoch (val_*, speed); epoch 0
                                 holds the val_* of the weights that a fine-tuning begins with
    events/events.out.tfevents…  the same rows for TensorBoard, one file for each epoch
    validation.parquet           scores of every validation pair at the best epoch
    rejected.json                pairs that cannot be decoded, with the reasons
    suspicious.json              pairs whose content seems wrong, with the reasons; written when training ends
    _lease/                      leases: the job that trains here, and its fencing number (matting.storage.lease)
    report.html, summary.json    written at the end by jobs/training/report.py
    suspects.parquet             training pairs by how much the best checkpoint contradicts them, likewise

Every file is written whole, and again when it grows, so a run that goes on repeats no row.
"""

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]  # tensorboard has no types
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]  # tensorboard has no types
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]  # tensorboard has no types

from jobs.common.config import ConfigError
from matting.nn import checkpoint
from matting.nn.trainer import Score
from matting.storage import store
from matting.storage.lease import Fence
from matting.storage.uri import join_uri

PROGRESS = "progress.json"
CHECKPOINT_NAME = re.compile(r"epoch-\d+")
SCORES_SCHEMA = pa.schema([("key", pa.string()), *((name, pa.float64()) for name in Score._fields[1:])])


@dataclass(frozen=True)
class RunFolder:
    """Folder of one run.

    Args:
        uri: URI of the folder.
        fence: Proof of the lease of the job that writes to it; None for readers.
    """

    uri: str
    fence: Fence | None = None

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.uri.rpartition("/")[2]

    def begin(self, command: str, identity: Mapping[str, Any]) -> None:
        """Write run.json, or check that an existing one is of the same run.

        Args:
            command: Command line of the job.
            identity: Options and fingerprints that make two commands the same run.

        Raises:
            ConfigError: The folder holds another run, with other options or data.
            StorageError: The folder cannot be read or written.
        """
        uri = join_uri(self.uri, "run.json")
        if store.exists(uri):
            found = json.loads(store.read_bytes(uri))["identity"]
            differing = [name for name, value in identity.items() if found.get(name) != value]
            if differing:
                changes = "; ".join(f"{name} was {found.get(name)!r}, is now {identity[name]!r}" for name in differing)
                raise ConfigError(f"{self.uri} holds another run: {changes}. Give another --name, or the same options.")
            return
        self._write_json("run.json", {"command": command, "identity": dict(identity)})

    def check_lease(self) -> None:
        """Check that this job may still write to the folder.

        Raises:
            LeaseLostError: Another job has taken it over.
            StorageError: The store cannot be asked.
        """
        if self.fence:
            self.fence.check()

    def write(self, path: str, data: bytes) -> None:
        """Write one file of the folder, if this job may still do so at this moment.

        Args:
            path: Path in the folder.
            data: Contents.

        Raises:
            LeaseLostError: Another job has taken the folder over; nothing is written.
            StorageError: The store cannot be asked, or the file cannot be written.
        """
        self.check_lease()
        store.write_bytes(join_uri(self.uri, path), data)

    def progress(self) -> dict[str, Any]:
        """Return what :meth:`commit_progress` wrote last; empty before the first checkpoint."""
        uri = join_uri(self.uri, PROGRESS)
        if not store.exists(uri):
            return {}
        progress: dict[str, Any] = json.loads(store.read_bytes(uri))
        return progress

    def commit_progress(self, progress: Mapping[str, Any]) -> None:
        """Write progress.json, from which the run goes on, and delete all checkpoints that it does not name.

        Args:
            progress: Values of epochs_done, steps, seconds, best_mad and batch; last and best, the names of two
                checkpoints.

        Raises:
            LeaseLostError: Another job has taken the folder over.
            StorageError: The folder cannot be read or written.
        """
        self._write_json(PROGRESS, progress)
        found = {file.key.partition("/")[0] for file in store.list_files(self.uri)}
        for name in sorted(filter(CHECKPOINT_NAME.fullmatch, found - {progress["last"], progress["best"]})):
            self.check_lease()
            store.delete_folder(join_uri(self.uri, name))

    def epochs_done(self) -> int:
        """Return the number of epochs at the last checkpoint."""
        return int(self.progress().get("epochs_done", 0))

    def history(self, steps: int) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl up to this number of steps."""
        uri = join_uri(self.uri, "metrics.jsonl")
        if not store.exists(uri):
            return []
        rows = [json.loads(line) for line in store.read_bytes(uri).splitlines()]
        return [row for row in rows if row["step"] <= steps]

    def restore_best(self) -> None:
        """Copy the best checkpoint to best/ if a kill came after its epoch and before the end of its upload."""
        name = self.progress()["best"]
        source, best = join_uri(self.uri, name), join_uri(self.uri, "best")
        expected = checkpoint.load(source)
        found = checkpoint.load(best) if store.exists(f"{best}/metrics.json") else None
        if found is None or (found.identity, found.metrics) != (expected.identity, expected.metrics):
            for file, data in checkpoint.read_files(source).items():
                self.write(f"best/{file}", data)

    def rejected(self) -> dict[str, str]:
        """Return the contents of rejected.json: reasons by key."""
        reasons: dict[str, str] = json.loads(store.read_bytes(join_uri(self.uri, "rejected.json")))
        return reasons

    def write_suspicious(self, warnings: Mapping[str, str]) -> None:
        """Write suspicious.json: what is suspicious about pairs, by key."""
        self._write_json("suspicious.json", warnings)

    def suspicious(self) -> dict[str, str]:
        """Return the contents of suspicious.json; empty if the run was killed before it was written."""
        uri = join_uri(self.uri, "suspicious.json")
        warnings: dict[str, str] = json.loads(store.read_bytes(uri)) if store.exists(uri) else {}
        return warnings

    def scores(self) -> list[Score]:
        """Return the rows of validation.parquet."""
        table = pq.read_table(io.BytesIO(store.read_bytes(join_uri(self.uri, "validation.parquet"))))
        table = table.cast(SCORES_SCHEMA)  # to plain numbers and text: the file cannot bring in types that unpickle
        return [Score(**row) for row in table.to_pylist()]

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        self.write(name, encode_json(content))


def encode_json(content: Mapping[str, Any]) -> bytes:
    """Return the bytes of a JSON file."""
    return (json.dumps(dict(content), indent=2) + "\n").encode()


def encode_history(history: Sequence[Mapping[str, Any]], epoch: int) -> dict[str, bytes]:
    """Return metrics.jsonl, and TensorBoard's file of one epoch, by their paths in the run folder.

    Args:
        history: All rows of the run.
        epoch: Number of the epoch, from 1; 0 for the start of a fine-tuning.
    """
    lines = "".join(json.dumps(dict(row)) + "\n" for row in history)
    rows = [row for row in history if row["epoch"] == epoch]
    # TensorBoard orders the files of a run by the number after "tfevents".
    return {"metrics.jsonl": lines.encode(), f"events/events.out.tfevents.{epoch:010d}": encode_events(rows)}


def encode_rejected(reasons: Mapping[str, str]) -> dict[str, bytes]:
    """Return rejected.json, of reasons by key, by its path in the run folder."""
    return {"rejected.json": encode_json(reasons)}


def encode_scores(scores: Sequence[Score]) -> dict[str, bytes]:
    """Return validation.parquet by its path in the run folder."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([score._asdict() for score in scores], SCORES_SCHEMA), sink)
    return {"validation.parquet": sink.getvalue()}


def encode_events(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return TensorBoard's event file: each number of a row but step, epoch and time, as a scalar at that step."""
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
