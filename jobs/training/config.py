"""Options of a training run, and the recipes that preset them.

    TrainConfig   options of jobs/train.py        -> config of the network, config of the trainer, budget, run folder
    presets       options as given by the user    -> file of the recipe, in jobs/configs, and options of --init

Knows no workers, and opens no data.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from jsonargparse import Namespace

from jobs.common import config
from jobs.common.output_options import LeaseOptions
from jobs.training import fine_tune
from matting.data.dataset import PairOptions
from matting.nn.schedule import Budget
from matting.nn.trainer import TrainingConfig
from matting.nn.unet import UNetConfig
from matting.storage.uri import absolute_uri, join_uri

# Options that two commands of one run may give differently: they change where, how fast and how long it trains, and how
# much it tolerates, but not what it learns.
CHANGEABLE = {
    "output",
    "take_over",
    "name",
    "epochs",
    "minutes",
    "workers",
    "device",
    "compile",
    "cache",
    "max_unpaired_fraction",
    "max_rejected_fraction",
    "check_mattes",
}

MAX_AUTO_BATCH = 512  # largest number of pairs in a GPU's step with "--batch auto"
MIN_STEPS = 50  # smallest number of steps in an epoch that it leaves


@dataclass(frozen=True, kw_only=True)
class DataOptions(PairOptions):
    """Training data.

    Args:
        data: "synthetic", or URI of raw or packed pairs. Several URIs are separated by commas.
        backgrounds: URI of photos without people, a folder or a table, which replace the backgrounds of some augmented
            images. The others, or all without this option, get backgrounds of other images in the batch.
        size: Side in pixels of the square that images are squashed to.
        repeats: Number of times that an epoch takes each training pair; or one number for each URI of --data, separated
            by commas.
        cache: "auto" keeps decoded pairs in Ray's object store if they fit; "off" decodes them in every epoch.
    """

    data: str = "synthetic"
    backgrounds: str | None = None
    size: int = 128
    repeats: int | str = 1
    cache: Literal["auto", "off"] = "auto"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DataOptions, UNetConfig, TrainingConfig, LeaseOptions):
    """Train a network on image/matte pairs.

    Args:
        output: URI of the folder in which the run folder is made.
        name: Name of the run folder. By default it is made of the recipe and the last parts of --data.
        recipe: Name of a recipe in jobs/configs, which presets the other options. The default is "quickstart" for
            synthetic data, and "matting" for other data.
        init: URI of a checkpoint to fine-tune, such as runs/first/best. Its weights are those to begin with. Its
            network and --size are taken over: network options must be left out or agree, --size may be another. The
            learning rate is 2e-4 unless --learning-rate is given; all else follows the recipe.
        batch: Number of pairs that a worker takes in one step. "auto" is the recipe's on CPUs; on GPUs it is up to 512,
            as long as an epoch has 50 steps. Learning rate, betas, weight decay and EMA decay follow the batch of all
            workers. A run that goes on keeps its batch.
        epochs: Number of passes over the training pairs.
        minutes: Minutes of training and validation after which the run ends, even if epochs are left.
        workers: Number of data-parallel workers; on GPUs, each has one. A range such as "1,4" trains with as many as
            there is room for.
        device: Devices to train on; "auto" takes GPUs if the cluster has one for each worker.
        seed: Random seed of the initial weights, the order of pairs, the choice of backgrounds, and the augmentation.
    """

    output: str = "runs"
    name: str | None = None
    recipe: Literal["baseline", "matting", "night", "quickstart"] | None = None
    init: str | None = None
    batch: int | Literal["auto"] = "auto"
    epochs: int = 30
    minutes: float | None = None
    workers: int | str = 1
    device: Literal["auto", "cpu", "gpu"] = "auto"
    seed: int = 0  # declared again, as it seeds more than the trainer's augmentation

    def __post_init__(self) -> None:
        for base in type(self).__mro__[1:]:  # each checks its own options
            if "__post_init__" in vars(base):
                vars(base)["__post_init__"](self)
        for name in ("size", "synthetic_pairs", "batch", "epochs"):
            if getattr(self, name) != "auto" and getattr(self, name) < 1:
                raise ValueError(f"{config.dash_name(name)} must be at least 1, is {getattr(self, name)}")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"--minutes must be more than 0, is {self.minutes}")
        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", str(self.repeats)):
            raise ValueError(f"--repeats takes a number of at least 1, or several such as 2,1; is {self.repeats!r}")
        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)?", str(self.workers)) or self.min_workers > self.max_workers:
            raise ValueError(f"--workers takes a number, or a minimum and a maximum such as 1,4; is {self.workers!r}")
        if self.backgrounds and not self.augment_fraction:
            raise ValueError(
                "--backgrounds needs a recipe with augmentation: give --recipe matting, or --augment-fraction above 0"
            )
        self._check_resolution()

    def _check_resolution(self) -> None:
        """Raise ValueError if the deepest level has a single pixel: BatchNorm fails on a batch of one such image."""
        smallest = min(self.size, self.augment_size or self.size) // (2 if self.half_res_fraction else 1)
        if smallest < 2 * self.multiple:
            raise ValueError(
                f"images of {smallest} pixels have less than two a side where the network has made them "
                f"{self.multiple} times smaller: give a larger --size, a smaller --depth, or --half-res-fraction 0"
            )

    @property
    def min_workers(self) -> int:
        """Number of workers that must fit for training to begin."""
        return int(str(self.workers).partition(",")[0])

    @property
    def max_workers(self) -> int:
        """Largest number of workers that training uses."""
        return int(str(self.workers).rpartition(",")[2])

    @property
    def run_uri(self) -> str:
        """URI of the run folder."""
        datasets = [uri.rstrip("/").rpartition("/")[2] for uri in self.data.split(",")]
        return join_uri(absolute_uri(self.output), self.name or "-".join([str(self.recipe), *datasets]))

    def identity(self, fingerprints: Mapping[str, str | None]) -> dict[str, Any]:
        """Return the options and data fingerprints that two commands must share to belong to the same run."""
        options = {name: value for name, value in asdict(self).items() if name not in CHANGEABLE}
        return {**options, "betas": list(self.betas), **fingerprints}

    def network(self) -> UNetConfig:
        """Return the options that :mod:`matting.nn.unet` takes, as a config of its own."""
        return UNetConfig(**{field.name: getattr(self, field.name) for field in fields(UNetConfig)})

    def training(self) -> TrainingConfig:
        """Return the options that :mod:`matting.nn.trainer` takes, as a config of its own."""
        return TrainingConfig(**{field.name: getattr(self, field.name) for field in fields(TrainingConfig)})

    def worker_batch(self, epoch_samples: int, use_gpu: bool) -> int:
        """Return the number of pairs that each worker takes in one step.

        Args:
            epoch_samples: Number of training samples in an epoch.
            use_gpu: Whether each worker has a GPU.
        """
        if self.batch != "auto":
            return self.batch
        if not use_gpu:
            return self.recipe_batch
        return max(self.recipe_batch, min(MAX_AUTO_BATCH, epoch_samples // (MIN_STEPS * self.max_workers)))

    def budget(self, epoch_samples: int) -> Budget:
        """Return how long the run trains, given the number of samples in an epoch."""
        return Budget(self.epochs, epoch_samples, 60 * (self.minutes or math.inf))


def presets(options: Namespace) -> list[str]:
    """Return the options that set the recipe, named or the default for the data, and those that --init sets.

    Raises:
        CheckpointError, StorageError: The checkpoint of --init cannot be used or read.
    """
    recipe = options.recipe or ("quickstart" if options.data == "synthetic" else "matting")
    arguments = ["--config", str(config.CONFIGS / f"{recipe}.yaml")]
    return arguments + (fine_tune.network_arguments(options.init) if options.init else [])
