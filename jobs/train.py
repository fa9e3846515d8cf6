"""Train the network: pairs in, a run folder out.

    1. options (jobs/recipe.py); names and splits           driver
    2. decode to uint8 at training size, keep if it fits;   tasks of Ray Data
       and photos without people, with --backgrounds
    3. shuffled epochs, in shares                           tasks -> workers
    4. batch -> augment -> network -> step; validate        workers (jobs/worker.py, matting.training)
    5. after every epoch: checkpoint, metrics, events       the first worker -> the run folder (jobs/runs.py)
    6. the page, from the best checkpoint                   driver

Meanwhile the driver publishes what the first worker counts (jobs/telemetry.py), and tells MLflow, if asked
(jobs/tracking.py).

The run folder is <output>/<name>/: what jobs/runs.py describes, and report.html. The same command goes on from the
last checkpoint, or says that the run is finished.

Without a cluster to join, a lone worker is the driver itself. When one of several workers or its node dies, or with
--workers 1,4 others join, all begin again from the last checkpoint. An epoch is every training pair once, or as often
as --repeats says, whatever the number of workers; how many steps that takes follows from it.
"""

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import ray.data
import ray.train
from ray.exceptions import RayError
from ray.train.torch import TorchTrainer

from jobs import cluster, config, streams, tracking
from jobs.actors import Mailbox
from jobs.config import ConfigError
from jobs.material import Material, make_datasets, open_material
from jobs.recipe import TrainConfig, presets
from jobs.runs import RunFolder
from jobs.worker import Assignment, train_worker
from matting import checkpoint, report, storage
from matting.collection import Pairs
from matting.predictor import Network, Predictor
from matting.training import Score, Trainer

WORKER_FAILURES = 8  # of workers or nodes, before the run gives up
RESIZE_SECONDS = 60.0  # between two looks at whether more workers would fit: a change costs the epoch so far
# Of a worker, when Ray fills each node with as many as fit: a little more than a core leaves one core, for reading.
ELASTIC_CPUS = 1.01


def main(argv: Sequence[str], kind_of_trainer: type[Trainer] = Trainer) -> None:
    """Check what was asked; go on with the run, or say that there is nothing left to do."""
    began = datetime.now(UTC)
    options = config.parse(TrainConfig, argv, presets)
    material = open_material(options)
    storage.check_writable(cluster.absolute(options.output))
    folder = RunFolder(options.run_uri)
    if not folder.name.isascii():
        raise ConfigError(f"Ray Train takes only ASCII in the name of a run, which is {folder.name!r}: give --name.")
    identity = options.identity(material)
    folder.begin(cluster.command(), identity)
    with tracking.followed(folder, identity, {"command": cluster.command(), "folder": folder.uri}):
        go_on(options, material, folder, kind_of_trainer)
    storage.remove_partials(folder.uri, began)


def go_on(options: TrainConfig, material: Material, folder: RunFolder, kind_of_trainer: type[Trainer]) -> None:
    """Train until the run is finished, then make the page."""
    pairs = material.pairs
    progress = folder.progress()
    plan = options.plan(len(material.numbers))
    if progress and plan.finished(progress["epochs"], progress["seconds"]):
        print(f"{folder.uri} is finished: {progress['epochs']} epochs, {progress['steps']} steps.")
        if not storage.exists(storage.join(folder.uri, "report.html")):
            finish(options, material, folder)
        return
    in_driver = options.most_workers == 1 and cluster.is_own()
    use_gpu = start_cluster(options, in_driver)
    mailbox = Mailbox.options(scheduling_strategy=cluster.here()).remote()
    with cluster.SharedConsole(mailbox) as console:
        pictures = None
        if material.backgrounds is not None:
            pictures = streams.backgrounds(material.backgrounds, options.size, mailbox)
        assignment = Assignment(
            options=options,
            kind_of_trainer=kind_of_trainer,
            plan=plan,
            folder=folder,
            data={
                "uri": options.data,
                "split_seed": options.split_seed,
                "fingerprint": pairs.fingerprint,
                "backgrounds": options.backgrounds,
                # A network that learned people of one size alone takes them best as it did: every photo as a square.
                "aspects": pairs.aspects() if options.augment_until else None,
            },
            total=material.total,
            val_keys=pairs.keys["val"],
            backgrounds=pictures,
            use_gpu=use_gpu,
            mailbox=mailbox,
            console=console,
            ray_up=time.time(),
        )
        datasets = make_datasets(options, material, folder.epochs_done, mailbox, console)
        failure = fit(assignment, datasets, scaling(options, use_gpu, in_driver))
    if failure:
        raise cluster.JobError(failure)
    finish(options, material, folder)


def start_cluster(options: TrainConfig, in_driver: bool) -> bool:
    """Join or start the cluster; whether to train on GPUs."""
    workers = options.fewest_workers
    wanted = workers if options.device == "gpu" else 0
    held, spare = (0, 0) if in_driver else (workers, 1)
    found = cluster.start(held, streams.READ_CPUS, wanted, f"{workers} workers", spare)
    return wanted > 0 or (options.device == "auto" and found.gpus >= workers)


class Shards(ray.train.DataConfig):
    """Training rows in equal shares, so that all workers take as many steps; validation rows every one, once."""

    def __init__(self) -> None:
        super().__init__(execution_options=ray.data.ExecutionOptions(preserve_order=True))

    def configure(
        self,
        datasets: dict[str, ray.data.Dataset],
        world_size: int,
        *args: Any,  # noqa: ARG002 - where the workers are
        **kwargs: Any,  # noqa: ARG002
    ) -> list[dict[str, ray.data.DataIterator]]:
        """One iterator a worker for each dataset."""
        shards: list[dict[str, ray.data.DataIterator]] = [{} for _ in range(world_size)]
        for name, original in datasets.items():
            dataset = original.copy(original)
            dataset.context.execution_options = self._resolve_execution_options(name)
            for shard, share in zip(shards, streams.shares(dataset, world_size, name == "train"), strict=True):
                shard[name] = share
        return shards


def scaling(options: TrainConfig, use_gpu: bool, in_driver: bool) -> ray.train.ScalingConfig:
    """A fixed number of workers, or as many as there is room for."""
    if in_driver:  # what starts and watches a single worker on the same machine costs more than it gives
        return ray.train.ScalingConfig(num_workers=0)
    if options.fewest_workers == options.most_workers:
        return ray.train.ScalingConfig(num_workers=options.fewest_workers, use_gpu=use_gpu)
    return ray.train.ScalingConfig(
        num_workers=(options.fewest_workers, options.most_workers),
        use_gpu=use_gpu,
        resources_per_worker={"CPU": ELASTIC_CPUS, "GPU": float(use_gpu)},
        elastic_resize_monitor_interval_s=RESIZE_SECONDS,
    )


def fit(assignment: Assignment, datasets: dict[str, Any], workers: ray.train.ScalingConfig) -> str:
    """Run the workers until the run is finished. Returns why it should not be tried again as it is, or nothing."""
    # It tells workers of machines that are about to go, which no worker here asks; and it is one more process.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    output, _, name = assignment.folder.uri.rpartition("/")
    filesystem, path = storage.filesystem(output)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"assignment": assignment},
        scaling_config=workers,
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=WORKER_FAILURES),
        ),
        datasets=datasets,
        dataset_config=Shards(),
    )
    try:
        failure: str = trainer.fit().return_value
    except (ray.train.TrainingFailedError, RayError, storage.StorageError, checkpoint.CheckpointError) as error:
        causes = getattr(error, "worker_failures", {}).values() or [error]
        reason = str(next(iter(causes))).strip().splitlines()[-1]
        raise cluster.JobError(f"{reason} The same command goes on from the last checkpoint.") from error
    return failure


def finish(options: TrainConfig, material: Material, folder: RunFolder) -> None:
    """Make the page, and say where everything is."""
    pairs, taken = material.pairs, material.backgrounds
    progress, rejections, scores = folder.progress(), folder.rejected(), folder.scores()
    folder.restore_best()
    best = checkpoint.load(storage.join(folder.uri, "best"))
    history = folder.history(progress["steps"])
    epochs = [row for row in history if "val_mad" in row]
    chosen = min(epochs, key=lambda row: row["val_mad"])
    groups, gone = page_cases(best, pairs, scores)
    left_out = [*pairs.unpaired, *{**rejections, **gone}.items()]
    page = report.page(
        title=f"Training {folder.name}",
        command=cluster.command(),
        facts={
            "Checkpoint": f"{folder.uri}/best, SHA-256 {best.identity[:16]}…",
            "Network": f"U-Net, width {options.width}, depth {options.depth}, {options.size}×{options.size} pixels",
            "Data": f"{options.data}: {pairs.counts()}, SHA-256 {pairs.fingerprint[:16]}…",
            **({} if taken is None else {"Backgrounds": f"{options.backgrounds}: {len(taken):,} photos"}),
            "Best epoch": f"{chosen['epoch']} of {epochs[-1]['epoch']}, chosen by MAD on the validation split",
            "Trained": f"{epochs[-1]['step']:,} steps, {progress['seconds'] / 60:.1f} minutes",
        },
        figures=[
            {
                "split": "validation",
                "pictures": chosen["val_n"],
                **report.labelled({name: chosen[f"val_{name}"] for name in ("mad", "mse", "iou")}),
                "samples/s": chosen["samples_per_second"],
            }
        ],
        history=history,
        groups=groups,
        skipped=left_out,
    )
    storage.write_bytes(storage.join(folder.uri, "report.html"), page.encode())
    if left_out:
        print(f"Left out, and named on the page: {len(left_out):,}.")
    print(
        f"Best on {chosen['val_n']} validation pairs: MAD {chosen['val_mad']:.2f}e-3, IoU {chosen['val_iou']:.4f}.\n"
        f"Checkpoint: {folder.uri}/best\nPage: {folder.uri}/report.html"
    )


def page_cases(
    best: checkpoint.Checkpoint, pairs: Pairs, scores: list[Score]
) -> tuple[dict[str, list[report.Case]], dict[str, str]]:
    """The best, median and worst validation pictures, predicted once more at their own size; and which of these cannot
    be read any more."""
    predictor = Predictor(Network(best, number_format="fp32"))
    groups: dict[str, list[report.Case]] = {}
    gone: dict[str, str] = {}
    for group, keys in report.pick_cases([(score.key, score.mad) for score in scores]).items():
        groups[group] = []
        for example in (pairs.example("val", key) for key in keys):
            if example.error:
                gone[example.key] = f"scored, and gone since: {example.error}"
                continue
            alpha = predictor.alphas([example.image])[0]
            groups[group].append(report.case(example.key, example.image, example.alpha, alpha))
    return groups, gone


if __name__ == "__main__":
    cluster.run(main)
