"""Train the network: pairs in, a run folder out.

    1. options (jobs/training/config.py), keys and splits of the data (data.py)           driver
    2. decode to uint8 at training size (decode.py): once, into the object store, if the
       pairs fit (cache.py); else in every epoch (streams.py)                             Ray tasks
    3. shuffled epochs, in equal shares, read ahead of the steps (cache.py, streams.py)   tasks -> workers
    4. batch -> augment -> network -> step; validate (worker.py, matting.nn.trainer)      workers
    5. after every epoch: checkpoint, metrics, events (recorder.py, run_folder.py)        first worker -> run folder
    6. page and summary, from the best checkpoint (report.py)                             driver
    7. training pairs that the best checkpoint contradicts (suspects.py)                  tasks -> run folder

Meanwhile the driver publishes the first worker's counters to Ray's metrics (jobs/common/telemetry.py), and sends the
run to MLflow if MLFLOW_TRACKING_URI is set (mlflow.py).

The run folder is <output>/<name>/. The same command goes on from the last checkpoint, or prints that the run is
finished. Without a cluster to join, a single worker runs in the driver itself. When a worker or its node dies, or when
--workers is a range and more of them fit, all workers begin again from the last checkpoint; failures.py says how often.
With --init, training begins with a checkpoint's weights (fine_tune.py), and validates them first, as epoch 0.
An epoch takes every training pair once, or as often as --repeats asks for, whatever the number of workers.
"""

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError
from ray.train.torch import TorchTrainer

from jobs.common import cluster, config, visibility
from jobs.common.cli import JobError, command_line, run_job
from jobs.common.cluster import Resources
from jobs.common.config import ConfigError
from jobs.common.console import SharedConsole
from jobs.common.devices import require_gpus
from jobs.common.mailbox import Mailbox
from jobs.training.config import TrainConfig, presets
from jobs.training.data import TrainingData, build_datasets, cache_pairs, open_training_data
from jobs.training.decode import READ_CPUS, start_backgrounds
from jobs.training.failures import MAX_REPEATS, FailureBudget, last_line
from jobs.training.fine_tune import Start, load_start
from jobs.training.mlflow import follow_run
from jobs.training.report import write_results
from jobs.training.run_folder import RunFolder
from jobs.training.streams import WorkerShards
from jobs.training.worker import Assignment, train_worker
from matting.data.dataset import check_mattes
from matting.nn.checkpoint import CheckpointError
from matting.nn.trainer import Trainer
from matting.storage import lease, store
from matting.storage.errors import StorageError
from matting.storage.uri import absolute_uri, join_uri

RESIZE_SECONDS = 60.0  # seconds between two checks for room for more workers; a change repeats the current epoch
# CPUs of an elastic worker. Ray fills each node with as many workers as fit; a little more than one core each leaves a
# core of the node for reading.
ELASTIC_CPUS = 1.01


def main(
    argv: Sequence[str], trainer_class: type[Trainer] = Trainer, lease_seconds: float = lease.LEASE_SECONDS
) -> None:
    """Train until the run is finished, then write its page and summary; a finished run prints that it is."""
    began = datetime.now(UTC)
    options = config.parse(TrainConfig, argv, presets)
    start = load_start(options.init, options.network())
    data = open_training_data(options)
    store.check_writable(absolute_uri(options.output))
    folder = RunFolder(options.run_uri)
    if not folder.name.isascii():
        raise ConfigError(f"Ray Train takes only ASCII in the name of a run, which is {folder.name!r}: give --name.")
    with lease.hold(folder.uri, command_line(), take_over=options.take_over, seconds=lease_seconds) as fence:
        run(options, data, start, RunFolder(folder.uri, fence), trainer_class)
    store.remove_partials(folder.uri, began)


def run(
    options: TrainConfig, data: TrainingData, start: Start | None, folder: RunFolder, trainer_class: type[Trainer]
) -> None:
    """Bring the run to its end, and write its results if they are missing."""
    identity = options.identity({**data.fingerprints(), "init_identity": start.identity if start else None})
    if not folder.progress():  # before run.json, so that --invert and --matte-range can be added
        for warning in check_mattes(data.pairs, options.data, options):
            print(f"WARNING: {warning}")
    folder.begin(command_line(), identity)
    with follow_run(folder, identity, {"command": command_line(), "folder": folder.uri}):
        if is_run_finished(options, data, folder):
            progress = folder.progress()
            print(f"{folder.uri} is finished: {progress['epochs_done']} epochs, {progress['steps']} steps.")
        else:
            train(options, data, start, folder, trainer_class)
            write_results(data, folder)
        if not store.exists(join_uri(folder.uri, "report.html")):  # the run was killed after its last epoch
            write_results(data, folder)


def is_run_finished(options: TrainConfig, data: TrainingData, folder: RunFolder) -> bool:
    """Return whether the run folder has all epochs or minutes that the options ask for."""
    progress = folder.progress()
    budget = options.budget(len(data.epoch_rows))
    return bool(progress) and budget.finished(progress["epochs_done"], progress["seconds"])


def train(
    options: TrainConfig, data: TrainingData, start: Start | None, folder: RunFolder, trainer_class: type[Trainer]
) -> None:
    """Start the cluster and the workers, and wait until the run is finished.

    Raises:
        ClusterError: The cluster cannot run the job.
        JobError: The run failed; the message says why.
    """
    in_driver = options.max_workers == 1 and cluster.is_own()
    found, use_gpu = start_cluster(options, in_driver)
    output, inputs = absolute_uri(options.output), data.local_inputs()
    mailbox = Mailbox.options(scheduling_strategy=cluster.here()).remote()  # type: ignore[attr-defined]  # Ray's stub: the decorator keeps the class
    with visibility.prove(found.is_own, output, inputs) as token, SharedConsole(mailbox) as console:
        backgrounds = None
        if data.background_photos is not None:
            backgrounds = start_backgrounds(data.background_photos, options.size, mailbox)
        cached = cache_pairs(data, folder.epochs_done(), mailbox, console, token)
        assignment = Assignment(
            options=options,
            data=data.facts(),
            cached=cached,
            start=start,
            backgrounds=backgrounds,
            folder=folder,
            trainer_class=trainer_class,
            use_gpu=use_gpu,
            batch=folder.progress().get("batch") or options.worker_batch(len(data.epoch_rows), use_gpu),
            mailbox=mailbox,
            cluster_ready=time.time(),
            token=token,
        )
        datasets = {} if cached else build_datasets(data, folder.epochs_done, mailbox, token)
        failure = fit(assignment, datasets, scaling_config(options, use_gpu, in_driver), console)
        folder.write_suspicious(ray.get(mailbox.warnings.remote()))
    if failure:
        raise JobError(failure)


def start_cluster(options: TrainConfig, in_driver: bool) -> tuple[Resources, bool]:
    """Join or start the cluster. Return it, and whether to train on GPUs."""
    workers = options.min_workers
    gpus = workers if options.device == "gpu" else 0
    cpus, spare = (0, 0) if in_driver else (workers, 1)
    found = cluster.start(cpus, READ_CPUS, gpus, f"{workers} workers", spare)
    use_gpu = gpus > 0 or (options.device == "auto" and found.gpus >= workers)
    if use_gpu:
        require_gpus(found.is_own)
        if not found.is_own:
            cluster.wait_until_free(cpus, READ_CPUS, workers, f"{workers} workers")
    return found, use_gpu


def scaling_config(options: TrainConfig, use_gpu: bool, in_driver: bool) -> ray.train.ScalingConfig:
    """Return Ray Train's config for a fixed number of workers, or for as many as there is room for."""
    if in_driver:  # processes to start and watch a single worker would cost more than they give
        return ray.train.ScalingConfig(num_workers=0)
    if options.min_workers == options.max_workers:
        return ray.train.ScalingConfig(num_workers=options.min_workers, use_gpu=use_gpu)
    elastic: dict[str, Any] = {  # a dictionary, as Ray's stub lacks the tuple and the last of these arguments
        "num_workers": (options.min_workers, options.max_workers),
        "use_gpu": use_gpu,
        "resources_per_worker": {"CPU": ELASTIC_CPUS, "GPU": float(use_gpu)},
        "elastic_resize_monitor_interval_s": RESIZE_SECONDS,
    }
    return ray.train.ScalingConfig(**elastic)


def fit(
    assignment: Assignment, datasets: dict[str, Any], workers: ray.train.ScalingConfig, console: SharedConsole
) -> str:
    """Run the workers until the run is finished.

    Returns:
        Reason why the run failed and would fail again, or nothing.

    Raises:
        JobError: The run failed and may succeed when it is started again.
    """
    # The watcher warns workers of nodes that are about to go; no worker here asks for that, and it is one more process.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    output, _, name = assignment.folder.uri.rpartition("/")
    filesystem, path = store.filesystem(output)
    # Ray Train's own count of failures never begins anew, so this function counts, and starts the workers again.
    budget = FailureBudget()
    while True:
        trainer = TorchTrainer(
            train_worker,  # type: ignore[arg-type]  # Ray's stub lacks functions that return something
            train_loop_config={"assignment": assignment},
            scaling_config=workers,
            run_config=ray.train.RunConfig(name=name, storage_path=path, storage_filesystem=filesystem),
            datasets=datasets,
            dataset_config=WorkerShards(),
        )
        try:
            failure: str = trainer.fit().return_value  # type: ignore[attr-defined]  # Ray's stub is of an older Result
        except (ray.train.TrainingFailedError, RayError, StorageError, CheckpointError) as error:
            causes = list(getattr(error, "worker_failures", {}).values())
            reason = last_line(next(iter(causes), error))
            if causes and not budget.is_used_up(causes, assignment.folder.epochs_done()):
                console.say(f"a worker failed; all begin again from the last checkpoint: {reason}")
                continue
            repeated = f" It failed so {MAX_REPEATS} times in the same epoch." if budget.repeats >= MAX_REPEATS else ""
            raise JobError(f"{reason}{repeated} The same command goes on from the last checkpoint.") from error
        return failure


if __name__ == "__main__":
    run_job(main)
