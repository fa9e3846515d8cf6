"""Runs of the two jobs, each in a process of its own from an empty output folder.

    run_predict   photos -> throughput, CPU time, start-up, memory, share of each stage
    run_train     pairs  -> throughput, CPU time, start-up, share of the time spent waiting for data

Figures come from the files that a job leaves: summary.json, the ledger and metrics.jsonl.
"""

import json
import math
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.bench.network import TRAIN_BATCH
from jobs.bench.processes import monitor
from jobs.bench.workload import JOBS, Workload
from matting.nn import checkpoint
from matting.results import ledger

NULL_JOB = [
    "-c",
    "from jobs.bench import null_jobs; from jobs.common.cli import run_job; run_job(null_jobs.main)",
]


@dataclass(frozen=True)
class PredictRun:
    """Figures of one predict job."""

    photos_per_second: float  # between a tenth and nine tenths of the photos, start-up and end excluded
    cpu_ms: float  # CPU time per photo in the same span, over all processes
    first_photo_seconds: float  # from the command to the first photo
    ray_start_seconds: float  # the part of these that Ray took to start
    peak_megabytes: float  # over all processes
    stage_percent: dict[str, float]  # share of the tasks' time, by stage


def run_predict(
    work: Workload, photos: str, *options: str, without_network: bool = False, limit_seconds: float = math.inf
) -> PredictRun:
    """Predict a folder of photos.

    Args:
        work: Workload with the checkpoint.
        photos: URI of the folder.
        options: Further options of jobs/predict.py.
        without_network: Take the network out, to measure the overhead.
        limit_seconds: Time after which the job is killed.

    Raises:
        JobError: The job failed, or took longer.
    """
    output = work.scratch / "mattes"
    shutil.rmtree(output, ignore_errors=True)
    job = [*NULL_JOB, "predict"] if without_network else [str(JOBS / "predict.py")]
    command = monitor(
        [sys.executable, *job, f"--checkpoint={work.checkpoint}", f"--images={photos}", f"--output={output}", *options],
        limit_seconds,
    )
    finished = ledger.read(str(output), ["finished_at"])["finished_at"].to_numpy().astype("datetime64[us]")
    seconds = np.sort(finished).astype(np.int64) / 1e6
    start, end = (int(fraction * (len(seconds) - 1)) for fraction in (0.1, 0.9))
    count = max(1, end - start)
    summary = read_summary(output)
    stage_seconds: dict[str, float] = summary["stage_seconds"]
    total = sum(stage_seconds.values())
    return PredictRun(
        photos_per_second=count / max(seconds[end] - seconds[start], 1e-6),
        cpu_ms=1000 * command.cpu_seconds(seconds[start], seconds[end]) / count,
        first_photo_seconds=seconds[0] - command.began,
        ray_start_seconds=summary["ray_start_seconds"],
        peak_megabytes=command.peak_megabytes,
        stage_percent={stage: 100 * each / total for stage, each in stage_seconds.items()},
    )


@dataclass(frozen=True)
class TrainRun:
    """Figures of one train job."""

    samples_per_second: float  # median over the epochs after the first
    cpu_ms: float  # CPU time per sample after the first epoch, over all processes, validation included
    first_batch_seconds: float  # from when Ray had started
    waiting: float  # fraction of the time that training steps waited for data


def run_train(
    work: Workload,
    data: str,
    seconds: float,
    *options: str,
    workers: int = 1,
    batch: int = TRAIN_BATCH,
    without_network: bool = False,
    limit_seconds: float = math.inf,
) -> TrainRun:
    """Train the checkpoint's network anew by the baseline's recipe, for a limited time.

    Args:
        work: Workload with the checkpoint.
        data: URI of raw or packed pairs.
        seconds: Duration of the training, start-up excluded.
        options: Further options of jobs/train.py.
        workers: Number of data-parallel workers.
        batch: Number of samples in a step of one worker.
        without_network: Take the network out, to measure the overhead.
        limit_seconds: Time after which the job is killed.

    Raises:
        JobError: The job failed, or took longer.
    """
    output = work.scratch / "runs"
    shutil.rmtree(output, ignore_errors=True)
    job = [*NULL_JOB, "train"] if without_network else [str(JOBS / "train.py")]
    loaded = checkpoint.load(work.checkpoint)
    shape = {"size": loaded.size, **asdict(loaded.model.config)}  # the network whose step is also measured alone
    command = monitor(
        [
            *(sys.executable, *job, "--recipe=baseline", *(f"--{name}={value}" for name, value in shape.items())),
            *(f"--data={data}", f"--output={output}", "--name=run"),
            *("--epochs=100000", f"--minutes={seconds / 60}", f"--batch={batch}"),
            *(f"--workers={workers}", *options),
        ],
        limit_seconds,
    )
    lines = (output / "run/metrics.jsonl").read_text().splitlines()
    epochs = [row for row in map(json.loads, lines) if "val_mad" in row]
    # Without a network, one epoch may be shorter than the time between two samples of the processes. If there is only
    # one epoch, the CPU time of the whole command counts.
    start, steps = (epochs[0]["time"], epochs[0]["step"]) if len(epochs) > 1 else (command.began, 0)
    samples = (epochs[-1]["step"] - steps) * batch * workers
    return TrainRun(
        samples_per_second=statistics.median(row["samples_per_second"] for row in epochs[1:] or epochs),
        cpu_ms=1000 * command.cpu_seconds(start, epochs[-1]["time"]) / samples,
        first_batch_seconds=read_summary(output / "run")["first_batch_seconds"],
        waiting=statistics.median(waiting_fractions(epochs, batch * workers)),
    )


def waiting_fractions(epochs: Sequence[dict[str, Any]], batch: int) -> list[float]:
    """Return the fraction of each epoch's time that its steps waited for data; without the first epoch, if possible.

    Args:
        epochs: Rows of metrics.jsonl, one per epoch.
        batch: Samples per step, over all workers.
    """
    steps = np.diff([0, *(row["step"] for row in epochs)])
    fractions = [
        row["waiting"] * row["samples_per_second"] / (count * batch) for row, count in zip(epochs, steps, strict=True)
    ]
    return fractions[1:] or fractions


def read_summary(folder: Path) -> dict[str, Any]:
    """Return the content of a job's summary.json."""
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary
