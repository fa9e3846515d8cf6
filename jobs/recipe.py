"""The options of a training, and the recipes that preset them.

    TrainConfig   what jobs/train.py takes on its command line  -> the parts that the network and the trainer need
    presets       from the options as given                     -> the file of their recipe, in jobs/configs

Knows no workers and no run folder.
"""

import math
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace

from jobs import cluster, config
from jobs.material import Material, MaterialOptions
from matting import storage
from matting.devices import Precision
from matting.losses import Reduction
from matting.training import Plan, Schedule, TrainingConfig
from matting.unet import Join, Relu, UNetConfig

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
        varied_size: pixels a side of varied pictures, if --size is more.
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
    recipe: Literal["seed", "matting", "night", "quickstart"] | None = None
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
    varied_size: int | None = TrainingConfig.varied_size
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
        for name in ("width", "depth", "stem", "batch", "epochs", "varied_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, is {value}")
        for name in ("small_until", "augment_until"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} is a share of the run, from 0 to 1; is {getattr(self, name)}")
        if self.backgrounds and not self.augment_until:
            raise ValueError(
                "--backgrounds is for recipes that vary pictures: give --recipe matting, or an --augment_until above 0"
            )
        smallest = min(self.size, self.varied_size or self.size) // (2 if self.small_until else 1)
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
