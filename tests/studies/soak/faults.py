"""Faults of the soak: which job they hit, when and how, as drawn from a random seed."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

JOBS = ("train", "predict")
PHOTOS = 150  # half a second of work on two cores, long enough to hit the middle
EPOCHS = 4
Kind = Literal[
    "worker",  # a process of training is killed
    "task",  # a process of predicting is killed
    "node",  # all processes of a node are killed, and another node joins
    "driver",  # the job's own process is killed
    "storage",  # the store refuses a third of the requests until the end, or all of them for seconds
    "outage",  # the store refuses all requests for OUTAGE_SECONDS
    "second driver",  # the same command runs once more beside the first
    "sick network",  # a node joins whose network raises the error of a broken GPU
    "poison photo",  # a photo ends the process that decodes it
    "own disk",  # a node joins that does not see the output's folder
]
KINDS: tuple[Kind, ...] = get_args(Kind)
SELF_HEALING = ("worker", "task", "node", "sick network", "poison photo")  # the job is not to be run again
ONLY_PREDICT = ("task", "sick network", "poison photo")
OUTAGE_SECONDS = 60.0  # four times as long as a request is retried


@dataclass(frozen=True)
class Fault:
    """Fault to inject `delay` seconds after the job has reported `moment` epochs or written `moment` mattes."""

    number: int
    kind: Kind
    job: str
    on_s3: bool
    moment: int
    delay: float
    seconds: float | None  # of refusing all requests; None: a third of the requests until the run ends

    def __str__(self) -> str:
        unit = "epochs" if self.job == "train" else "mattes"
        how = ""
        if self.kind == "storage":
            how = f" (all refused for {self.seconds:.1f} s)" if self.seconds else " (a third until the end)"
        place = "S3" if self.on_s3 else "a folder"
        return (
            f"{self.number:3} {self.kind}{how}: {self.job} on {place}, after {self.moment} {unit} + {self.delay:.1f} s"
        )


def plan(count: int, seed: int) -> Iterator[Fault]:
    """Yield `count` faults, equally many of each kind."""
    draw = random.Random(seed)
    for number in range(1, count + 1):
        if number % len(KINDS) == 1:
            kinds = draw.sample(KINDS, len(KINDS))
        kind = kinds.pop()
        only = "train" if kind == "worker" else "predict" if kind in ONLY_PREDICT else None
        job = only or draw.choice(JOBS)
        yield Fault(
            number,
            kind,
            job,
            on_s3=kind in ("storage", "outage") or (kind != "own disk" and draw.random() < 0.5),
            moment=draw.randrange(EPOCHS if job == "train" else PHOTOS * 3 // 4),
            delay=draw.uniform(0, 1) if job == "train" else 0,
            seconds=OUTAGE_SECONDS if kind == "outage" else draw.choice([draw.uniform(0.5, 4), None]),
        )
