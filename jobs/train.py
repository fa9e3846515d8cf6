"""Train the network: pairs in, a run folder out.

    1. options; the pairs' names and splits                 driver
    2. decode to uint8 at training size, keep if it fits;   tasks of Ray Data
       and photos without people, with --backgrounds
    3. shuffled epochs, by streaming_split                  tasks -> workers
    4. batch -> augment -> network -> step; validate        workers (matting.training)
    5. after every epoch: checkpoint, metrics, events       rank 0 -> the run folder
    6. the page, from the best checkpoint                   driver

Meanwhile the driver publishes what the first worker counts (jobs/telemetry.py), and tells MLflow, if asked
(jobs/tracking.py).

The run folder is <output>/<name>/: what jobs/runs.py describes, report.html, and Ray Train's own record. The same
command goes on from the last checkpoint, or says that the run is finished.

When a worker or a node dies, or with --workers 1,4 others join, all begin again from the last checkpoint. An epoch is
every training pair once, or as often as --repeats says, whatever the number of workers; how many steps that takes
follows from it.
"""

import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray.data
import ray.train
import torch
from jsonargparse import Namespace
from ray.train.torch import TorchTrainer, get_device

from jobs import cluster, config, streams, tracking
from jobs.actors import Rejected
from jobs.config import ConfigError
from jobs.material import Material, MaterialOptions, make_datasets, open_material
from jobs.runs import Recorder, RunFolder
from matting import checkpoint, report, storage
from matting.collection import Pairs, too_many_rejected
from matting.devices import Precision
from matting.losses import Reduction
from matting.pairs import some
from matting.predictor import Network, Predictor
from matting.training import NonFiniteLoss, Plan, Schedule, Score, Trainer, TrainingConfig, mean_scores
from matting.unet import Join, Relu, UNet, UNetConfig

WORKER_FAILURES = 8  # of workers or nodes, before the run gives up
RESIZE_SECONDS = 60.0  # between two looks at whether more workers would fit: a change costs the epoch so far
# Of a worker, when Ray fills each node with as many as fit: a little more than a core leaves one core, for reading.
ELASTIC_CPUS = 1.01

# Options that may change between two commands of one run: where, how fast, for how long, what to put up with; never
# what is learnt.
CHANGEABLE = {
    "output",
    "name",
    "epochs",
    "minutes",
    "workers",
    "device",
    "cache",
    "max_unpaired_fraction",
    "max_rejected_fraction",
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(MaterialOptions):
    """Train the network.

    Args:
        output: URI under which the run's folder is made.
        name: of the run's folder; by default from recipe and data.
        recipe: preset of the other options, from jobs/configs; by default "quickstart" for synthetic data, else
            "matting".
        width: channels of the network's first level; each level down has twice as many.
        depth: how often the network halves the picture.
        max_width: channels that no level has more of.
        relu: after every convolution ("layer") or every second one ("block").
        join: how a level's features come back on the way up: "concat" and two convolutions, or "add" and one.
        stem: pixels a side that the network's levels take as one.
        ends: alphas of the trained network within this of 0 and 1 become 0 and 1.
        learning_rate: of AdamW, which without weight decay is Adam.
        betas: of AdamW.
        weight_decay: of the convolutions' weights.
        schedule: of the learning rate; "cosine" ends at nothing when epochs or minutes are over.
        average: decay of the running mean of the weights, which is then what is validated and saved; 0 for none.
        small_until: share of the run that trains at half the size, four times as fast.
        reduction: of the squared error over the four channels.
        mse: weight of the squared error over the four channels.
        l1: weight of alpha's absolute error.
        cross_entropy: weight of alpha's cross entropy when the run begins; it falls to nothing at the end.
        laplacian: weight of alpha's absolute error over a Laplacian pyramid.
        augment_until: share of the run that varies pictures (geometry, light, background, quality); then they are
            mirrored at most.
        batch: pairs a worker takes for one step.
        epochs: passes over the training pairs.
        minutes: of training and validation, after which to stop even if epochs are left.
        workers: data-parallel processes; on GPUs, one a GPU. With "1,4" from one to four, as there is room.
        device: "auto" takes GPUs if the cluster has enough.
        precision: of the convolutions; "auto" is bf16 where that is faster.
    """

    output: str = "runs"
    name: str | None = None
    recipe: Literal["seed", "matting", "quickstart"] | None = None
    width: int = 32
    depth: int = 3
    max_width: int = 1024
    relu: Relu = "layer"
    join: Join = "concat"
    stem: int = 1
    ends: float = 0.0
    learning_rate: float = TrainingConfig.learning_rate
    betas: tuple[float, float] = TrainingConfig.betas
    weight_decay: float = TrainingConfig.weight_decay
    schedule: Schedule = TrainingConfig.schedule
    average: float = TrainingConfig.average
    small_until: float = TrainingConfig.small_until
    reduction: Reduction = TrainingConfig.reduction
    mse: float = TrainingConfig.mse
    l1: float = TrainingConfig.l1
    cross_entropy: float = TrainingConfig.cross_entropy
    laplacian: float = TrainingConfig.laplacian
    augment_until: float = TrainingConfig.augment_until
    batch: int = 8
    epochs: int = 30
    minutes: float | None = None
    workers: int | str = 1
    device: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Precision = TrainingConfig.precision

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "depth", "stem", "batch", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, is {getattr(self, name)}")
        for name in ("small_until", "augment_until"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} is a share of the run, from 0 to 1; is {getattr(self, name)}")
        if self.backgrounds and not self.augment_until:
            raise ValueError(
                "--backgrounds is for recipes that vary pictures: give --recipe matting, or an --augment_until above 0"
            )
        smallest = self.size // 2 if self.small_until else self.size
        multiple = self.network().multiple
        if smallest < 2 * multiple:  # a batch of one picture would leave BatchNorm a single value
            raise ValueError(
                f"pictures of {smallest} pixels have less than two a side where the network has made them {multiple} "
                "times smaller: give a larger --size, a smaller --depth, or --small_until 0"
            )
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"--minutes must be more than 0, is {self.minutes}")
        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)?", str(self.workers)) or self.fewest_workers > self.most_workers:
            raise ValueError(f"--workers takes a number, or the fewest and the most such as 1,4; is {self.workers!r}")

    @property
    def fewest_workers(self) -> int:
        """Without which training does not begin."""
        return int(str(self.workers).partition(",")[0])

    @property
    def most_workers(self) -> int:
        """That training uses."""
        return int(str(self.workers).rpartition(",")[2])

    @property
    def run_uri(self) -> str:
        """The run's folder."""
        collections = [uri.rstrip("/").rpartition("/")[2] for uri in self.data.split(",")]
        return storage.join(cluster.absolute(self.output), self.name or "-".join([str(self.recipe), *collections]))

    def identity(self, material: Material) -> dict[str, Any]:
        """What makes two commands the same run."""
        options = {name: value for name, value in asdict(self).items() if name not in CHANGEABLE}
        return {**options, "betas": list(self.betas), **material.fingerprints()}

    def network(self) -> UNetConfig:
        """The part that :mod:`matting.unet` needs."""
        return UNetConfig(**{field.name: getattr(self, field.name) for field in fields(UNetConfig)})

    def training(self) -> TrainingConfig:
        """The part that :mod:`matting.training` needs."""
        return TrainingConfig(**{field.name: getattr(self, field.name) for field in fields(TrainingConfig)})

    def plan(self, samples: int) -> Plan:
        """How long the run is to be, with so many pairs in an epoch."""
        return Plan(self.epochs, samples, 60 * (self.minutes or math.inf))


def presets(options: Namespace) -> list[Path]:
    """The recipe's file."""
    recipe = options.recipe or ("quickstart" if options.data == "synthetic" else "matting")
    return [config.CONFIGS / f"{recipe}.yaml"]


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
    use_gpu = start_cluster(options)
    rejected = Rejected.options(scheduling_strategy=cluster.here()).remote()
    with cluster.SharedConsole() as console:
        settings = {
            "options": options,
            "trainer": kind_of_trainer,
            "folder": folder,
            "rejected": rejected,
            "plan": plan,
            "total": material.total,
            "val_keys": pairs.keys["val"],
            "data": {
                "uri": options.data,
                "split_seed": options.split_seed,
                "fingerprint": pairs.fingerprint,
                "backgrounds": options.backgrounds,
                # A network that learned people of one size alone takes them best as it did: every photo as a square.
                "aspects": pairs.aspects() if options.augment_until else None,
            },
            "console": console,
            "ray_up": time.time(),
        }
        if material.backgrounds is not None:
            settings["backgrounds"] = streams.backgrounds(material.backgrounds, options.size, rejected)
        failure = fit(settings, make_datasets(options, material, folder.epochs_done, rejected, console), use_gpu)
    if failure:
        raise cluster.JobError(failure)
    finish(options, material, folder)


def start_cluster(options: TrainConfig) -> bool:
    """Join or start the cluster; whether to train on GPUs."""
    workers = options.fewest_workers
    wanted = workers if options.device == "gpu" else 0
    found = cluster.start(workers, streams.READ_CPUS, wanted, f"{workers} workers")
    return wanted > 0 or (options.device == "auto" and found.gpus >= workers)


class Shards(ray.train.DataConfig):
    """Training rows in equal shares, so that all workers take as many steps; validation rows every one, once."""

    def __init__(self) -> None:
        super().__init__(execution_options=ray.data.ExecutionOptions(preserve_order=True))

    def configure(
        self, datasets: dict[str, ray.data.Dataset], world_size: int, *args: Any, **kwargs: Any
    ) -> list[dict[str, ray.data.DataIterator]]:
        """One iterator a worker for each dataset."""
        if "val" not in datasets:
            return super().configure(datasets, world_size, *args, **kwargs)
        dataset = datasets["val"].copy(datasets["val"])
        dataset.context.execution_options = self._resolve_execution_options("val")
        return [{"val": shard} for shard in dataset.streaming_split(world_size, equal=False)]


def scaling(options: TrainConfig, use_gpu: bool) -> ray.train.ScalingConfig:
    """A fixed number of workers, or as many as there is room for."""
    if options.fewest_workers == options.most_workers:
        return ray.train.ScalingConfig(num_workers=options.fewest_workers, use_gpu=use_gpu)
    return ray.train.ScalingConfig(
        num_workers=(options.fewest_workers, options.most_workers),
        use_gpu=use_gpu,
        resources_per_worker={"CPU": ELASTIC_CPUS, "GPU": float(use_gpu)},
        elastic_resize_monitor_interval_s=RESIZE_SECONDS,
    )


def fit(settings: dict[str, Any], datasets: dict[str, Any], use_gpu: bool) -> str:
    """Run the workers until the run is finished. Returns why it should not be tried again as it is, or nothing."""
    options: TrainConfig = settings["options"]
    # It tells workers of machines that are about to go, which no worker here asks; and it is one more process.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    output, _, name = settings["folder"].uri.rpartition("/")
    filesystem, path = storage.filesystem(output)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=settings,
        scaling_config=scaling(options, use_gpu),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=WORKER_FAILURES),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=2, checkpoint_score_attribute="val_mad", checkpoint_score_order="min"
            ),
        ),
        datasets=datasets,
        dataset_config=Shards(),
    )
    try:
        failure: str = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        causes = getattr(error, "worker_failures", {}).values() or [error]
        reason = str(next(iter(causes))).strip().splitlines()[-1]
        raise cluster.JobError(f"{reason} The same command goes on from the last checkpoint.") from error
    return failure


def train_worker(settings: dict[str, Any]) -> str:
    """The life of one worker: from the last checkpoint to the end of the run, or to a failure that would come again.

    Returns what failed, or nothing.
    """
    options: TrainConfig = settings["options"]
    context = ray.train.get_context()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    torch.manual_seed(options.seed)
    model = UNet(options.network())
    pictures = None
    if "backgrounds" in settings:
        pictures = np.concatenate(ray.get(settings["backgrounds"]))
        if not len(pictures):
            return f"None of the photos of --backgrounds {options.backgrounds} can be used: give others, or none."
    trainer: Trainer = settings["trainer"](model, options.training(), get_device(), pictures)
    if last := ray.train.get_checkpoint():
        place = storage.join(settings["folder"].uri, Path(last.path).name)
        trainer.resume(checkpoint.load(place).model.state_dict(), checkpoint.load_train_state(place))
    plan: Plan = settings["plan"]
    train_shard, val_shard = ray.train.get_dataset_shard("train"), None
    recorder = None
    if context.get_world_rank() == 0:
        description = {"recipe": {"name": options.recipe, **asdict(options.training())}, "data": settings["data"]}
        config = checkpoint.describe(model, options.size, **description)
        recorder = Recorder(settings["folder"], trainer, config, plan.samples, settings["console"], settings["ray_up"])
    while not plan.finished(trainer.epochs, trainer.seconds):
        batches = streams.batches(train_shard, options.batch)
        try:
            epoch = trainer.train_epoch(batches, plan, recorder.on_step if recorder else None)
        except NonFiniteLoss as error:
            return str(error)
        val_shard = val_shard or ray.train.get_dataset_shard("val")  # by a process that the first batch need not await
        scores = trainer.validate(streams.batches(val_shard, options.batch))
        rejections = ray.get(settings["rejected"].all.remote())
        # The first pass over the pairs shows it, to all workers alike.
        what = "pairs and backgrounds" if options.backgrounds else "pairs"
        if failure := too_many_rejected(rejections, settings["total"], options.max_rejected_fraction, what):
            return failure
        if not epoch.steps or not scores:
            return f"No pair is left: {epoch.samples:g} to train with, {len(scores)} to validate with."
        if lost := set(settings["val_keys"]).difference(rejections, (score.key for score in scores)):
            return f"Validation missed {len(lost)} pairs that nobody rejected: {some(sorted(lost))}."
        means = {f"val_{name}": value for name, value in mean_scores(scores).items()}
        is_best = means["val_mad"] < trainer.best_mad
        trainer.best_mad = min(trainer.best_mad, means["val_mad"])
        saved = recorder.epoch(epoch, scores, means, rejections, is_best) if recorder else None
        progress = {name: getattr(trainer, name) for name in ("epochs", "steps", "seconds", "best_mad")}
        ray.train.report(
            {**progress, **means},
            checkpoint=saved,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
        )
    if recorder:
        recorder.close()
    return ""


def finish(options: TrainConfig, material: Material, folder: RunFolder) -> None:
    """Make the page, and say where everything is."""
    pairs, taken = material.pairs, material.backgrounds
    progress, rejections, scores = folder.progress(), folder.rejected(), folder.scores()
    folder.restore_best(progress["best_mad"])
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
    predictor = Predictor(Network(best, precision="fp32"))
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
