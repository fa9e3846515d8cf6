"""Study: jobs that recover from many faults, one after another, with the results of an undisturbed run.

    python -m tests.studies.soak --faults 50 --seed 0

    1. train and predict once, undisturbed                            the references
    2. run a job again in another place and inject one fault          see KINDS
    3. wait until it has recovered                                    unless it must recover itself: run it again
    4. compare ledger, outputs and run folder with the references     byte for byte

The study uses drawn people, a cluster of two nodes with one core each, and S3 behind a proxy or local folders. Kind,
place and time of every fault follow from the seed. The first violation ends the study with exit code 1, the seed and
the number of the fault. A fault takes some 35 seconds on two cores.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any, Literal, get_args
from unittest.mock import patch

import boto3
import torch
from ray.cluster_utils import Cluster

from matting.data import images
from matting.data.synthetic import draw_person
from matting.nn import checkpoint
from matting.results import ledger
from matting.storage import store
from matting.storage.errors import NotFoundError
from matting.storage.uri import is_local
from tests.support import faults, jobs
from tests.support.clusters import ENVIRONMENT, HEAD, processes_of
from tests.support.paths import ROOT
from tests.support.sabotage.sitecustomize import POISON
from tests.support.stores import CREDENTIALS, moto

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

PHOTOS = 150  # half a second of work on two cores, long enough to hit the middle
EPOCHS = 4
TRAIN = ("train", "--width=4", "--size=32", "--synthetic-pairs=60", f"--epochs={EPOCHS}", "--name=run")
PROCESSES = {"train": "RayTrainWorker", "predict": "MapBatches"}  # part of the command line of working processes
NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}
POISONED = "0/poison.jpg"
RUN_TIMEOUT = 600  # seconds; on a busy machine, minutes pass until Ray sees that a node is dead
MAX_RERUNS = 3


class ViolationError(Exception):
    """Result of a run that differs from the references. The message names it."""


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
        job = only or draw.choice(list(PROCESSES))
        yield Fault(
            number,
            kind,
            job,
            on_s3=kind in ("storage", "outage") or (kind != "own disk" and draw.random() < 0.5),
            moment=draw.randrange(EPOCHS if job == "train" else PHOTOS * 3 // 4),
            delay=draw.uniform(0, 1) if job == "train" else 0,
            seconds=OUTAGE_SECONDS if kind == "outage" else draw.choice([draw.uniform(0.5, 4), None]),
        )


@dataclass
class Soak:
    """Environment of the study, and the references to compare with."""

    root: Path
    bucket: str
    proxy: faults.Proxy
    cluster: Cluster
    draw: random.Random
    nodes: list[Any] = field(default_factory=list)
    guests: list[Any] = field(default_factory=list)  # nodes that join for one fault
    outputs: list[str] = field(default_factory=list)  # terminal output of all runs
    mattes: dict[str, bytes] = field(default_factory=dict)  # reference mattes by key
    history: list[dict[str, Any]] = field(default_factory=list)  # reference rows of metrics.jsonl

    def begin(self) -> None:
        """Start the nodes, draw the photos and make the references."""
        self.nodes += [self.cluster.add_node(**NODE) for _ in range(2)]
        self.cluster.wait_for_nodes()
        for number in range(PHOTOS):
            photo = images.encode_jpeg(draw_person(5, number, 40, 40)[0])
            for place in (self.root, self.bucket):
                for folder in ("photos", "poisoned"):
                    store.write_bytes(f"{place}/{folder}/{number % 3}/{number:03}.jpg", photo)
        for place in (self.root, self.bucket):
            store.write_bytes(f"{place}/poisoned/{POISONED}", photo + POISON)
        for job in PROCESSES:
            code, output = self.finish(self.start(job, str(self.root), "undisturbed"))
            if code:
                raise ViolationError(f"{job} fails undisturbed:\n{output}")
        place = f"{self.root}/undisturbed"
        for file in store.list_files(f"{place}/alpha"):
            self.mattes[file.key.removesuffix(".png")] = store.read_bytes(f"{place}/alpha/{file.key}")
        self.history = history(f"{place}/run")
        self.check_predict(place, others={"run"})
        self.check_train(f"{place}/run")

    def start(self, job: str, place: str, name: str, photos: str = "photos") -> "Popen[str]":
        """Start a job whose results go to a folder of this name; it predicts this collection of photos."""
        output = f"--output={place}/{name}"
        if job == "train":
            return jobs.started(*TRAIN, output)
        trained = f"{self.root}/undisturbed/run/best"
        options = (f"--checkpoint={trained}", f"--images={place}/{photos}")
        return jobs.started("predict", *options, output)

    def finish(self, process: "Popen[str]") -> tuple[int, str]:
        """Wait for a job. Return its exit code and output."""
        output, _ = process.communicate(timeout=RUN_TIMEOUT)
        self.outputs.append(output)
        return process.returncode, output

    def suffer(self, fault: Fault) -> str:
        """Run a job, inject the fault, wait for recovery and check. Return a line with the time that it took.

        Raises:
            ViolationError: A result differs from the references.
        """
        place, name = self.bucket if fault.on_s3 else str(self.root), f"fault-{fault.number:03}"
        photos = "poisoned" if fault.kind == "poison photo" else "photos"
        with self.own_disk() if fault.kind == "own disk" else nullcontext():
            process = self.start(fault.job, place, name, photos)
            if fault.kind == "own disk":
                code, output = self.finish(process)
                if code != 2:
                    raise ViolationError(f"a node that does not see {place} ends in exit code {code}:\n{output}")
        if fault.kind == "own disk":
            process = self.start(fault.job, place, name, photos)
        try:
            wait_for(process, fault, f"{place}/{name}")
            began = time.monotonic()
            hit = self.strike(fault, process)
            code, output = self.finish(process)
            reruns = 0
            self.proxy.plan = repeat(None)
            if code and fault.kind in SELF_HEALING:
                raise ViolationError(f"the run did not recover, exit code {code}:\n{output}")
            while (code or has_failed(fault, f"{place}/{name}")) and reruns < MAX_RERUNS:
                reruns += 1
                code, output = self.finish(process := self.start(fault.job, place, name, photos))
            if code:
                raise ViolationError(f"run again {reruns} times, it still fails with exit code {code}:\n{output}")
        finally:
            process.kill()
            self.proxy.plan = repeat(None)
            while self.guests:
                self.cluster.remove_node(self.guests.pop(), allow_graceful=False)
        recovered = time.monotonic() - began
        if fault.job == "train":
            self.check_train(f"{place}/{name}/run")
        else:
            self.check_predict(f"{place}/{name}", poisoned=fault.kind == "poison photo")
        how = (f", run again {reruns} times" if reruns else "") + ("" if hit else "; too late, it hit nothing")
        return f"{fault}: recovered in {recovered:.1f} s{how}"

    def alive_nodes(self) -> int:
        """Return the number of the cluster's nodes."""
        return sum(node["Alive"] for node in self.cluster.global_state.node_table())

    @contextmanager
    def own_disk(self) -> Iterator[None]:
        """Add a node that sees an empty folder where the other nodes see the root of the study."""
        begin = f"--address={self.cluster.address} --num-cpus=1 --object-store-memory={NODE['object_store_memory']}"
        start = f"{sys.executable} -m ray.scripts.scripts start {begin} --block"
        command = ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs own {self.root} && exec {start}"]
        before = self.alive_nodes()
        with Popen(command, stdout=DEVNULL, stderr=DEVNULL) as process:
            try:
                while self.alive_nodes() == before:
                    if process.poll() is not None:
                        raise RuntimeError(f"{command} ended with exit code {process.returncode}")
                    time.sleep(0.2)
                yield
            finally:
                jobs.kill([process.pid, *jobs.descendants(process.pid)])
        while self.alive_nodes() > before:
            time.sleep(0.2)

    def strike(self, fault: Fault, process: "Popen[str]") -> bool:
        """Inject the fault. Return whether the job was still running."""
        if process.poll() is not None:
            return False
        if fault.kind in ("own disk", "poison photo"):
            return True  # it was there from the start
        if fault.kind == "driver":
            process.kill()
        elif fault.kind == "second driver":
            place, name = self.bucket if fault.on_s3 else str(self.root), f"fault-{fault.number:03}"
            code, output = self.finish(self.start(fault.job, place, name))
            if code not in (0, 2):  # 0: the first one had ended, or both predict side by side
                raise ViolationError(f"the second driver ends in exit code {code}:\n{output}")
        elif fault.kind == "sick network":
            with patch.dict(os.environ, {"SABOTAGE": "poison,sick"}):
                self.guests.append(self.cluster.add_node(**NODE))
        elif fault.kind == "storage" and fault.seconds is None:
            self.proxy.plan = faults.seeded_plan(1 / 3, fault.number)
        elif fault.kind in ("storage", "outage"):
            self.proxy.plan = repeat("refuse")
            time.sleep(fault.seconds)
            self.proxy.plan = repeat(None)
        elif fault.kind == "node":
            node = self.nodes.pop(self.draw.randrange(len(self.nodes)))
            jobs.kill(processes_of(node))
            self.cluster.remove_node(node, allow_graceful=False)
            self.nodes.append(self.cluster.add_node(**NODE))
        else:
            while process.poll() is None:
                pids = [pid for node in self.nodes for pid in processes_of(node)]
                if found := [pid for pid in pids if PROCESSES[fault.job] in jobs.command_line(pid)]:
                    jobs.kill([self.draw.choice(found)])
                    return True
                time.sleep(0.05)
            return False
        return True

    def check_predict(
        self, output: str, others: frozenset[str] | set[str] = frozenset(), poisoned: bool = False
    ) -> None:
        """Check that the ledger has every photo once, in one part, and that exactly the reference outputs exist."""
        rows = ledger.read(output).to_pylist()
        if poisoned:
            failures = {row["key"]: row["error"] for row in rows if row["status"] == "failed"}
            expect("failed photos", list(failures), [POISONED])
            if "SIGSEGV" not in failures[POISONED]:
                raise ViolationError(f"the poisoned photo failed for another reason: {failures[POISONED]}")
            rows = [row for row in rows if row["key"] != POISONED]
        expect("keys of the ledger", [row["key"] for row in rows], sorted(self.mattes))
        expect("states", {row["status"] for row in rows}, {"done"})
        for row in rows:
            (path,) = row["outputs"]
            matte = store.read_bytes(f"{output}/{path}")
            height, width = images.decode_alpha(matte).shape
            expect(f"size of {path}", (width, height), (row["width"], row["height"]))
            if matte != self.mattes[row["key"]]:
                raise ViolationError(f"{path} has other bytes than undisturbed")
        others |= {"_lease"}  # a driver that was killed leaves its lease
        found = [name for name in names_in(output) if name.partition("/")[0] not in others]
        parts = [name for name in found if name.startswith("_ledger/")]
        expect("parts of the ledger", len(parts), 1)
        listed = {path for row in rows for path in row["outputs"]} | {*parts, "report.html", "summary.json"}
        expect("missing files", listed - set(found), set())
        expect("other files", set(found) - listed, set())

    def check_train(self, run: str) -> None:
        """Check that the run folder equals the reference, except for times."""
        rows = history(run)
        expect("rows of metrics.jsonl", timeless(rows), timeless(self.history))
        expect("epochs", [row["epoch"] for row in rows if "val_mad" in row], list(range(1, EPOCHS + 1)))
        steps = [row["step"] for row in rows]
        expect("steps", steps, sorted(set(steps)))
        names = names_in(run)
        events = [f"events/events.out.tfevents.{epoch:010}" for epoch in range(1, EPOCHS + 1)]
        expect("event files", [name for name in names if name.startswith("events/")], events)
        best = checkpoint.load(f"{run}/best")
        expect("best/", best.metrics["val_mad"], min(row["val_mad"] for row in rows))
        reference = f"{self.root}/undisturbed/run"
        for name in ("best", f"epoch-{EPOCHS:05}"):
            checkpoint.load_train_state(f"{run}/{name}")
            weights, expected = (checkpoint.load(f"{uri}/{name}").model.state_dict() for uri in (run, reference))
            for tensor in expected:
                if not torch.equal(weights[tensor], expected[tensor]):
                    raise ViolationError(f"{name}: {tensor} differs from that of the undisturbed run")
        whole = {"report.html", "summary.json", "run.json", "metrics.jsonl", "validation.parquet", "rejected.json"}
        expect("missing files", whole - set(names), set())
        expect("files in writing", [name for name in names if name.endswith(".partial")], [])


def wait_for(process: "Popen[str]", fault: Fault, output: str) -> None:
    """Wait until the moment of the fault."""
    jobs.wait_for_line(process, f"epoch {fault.moment}:" if fault.job == "train" and fault.moment else "")
    while fault.job == "predict" and process.poll() is None:
        try:
            if len(store.list_files(f"{output}/alpha")) >= fault.moment:
                break
        except NotFoundError:
            if not fault.moment:
                break
    time.sleep(fault.delay)


def has_failed(fault: Fault, output: str) -> bool:
    """Return whether photos have no matte that another run can give one. A store that refuses for long causes some."""
    if fault.job == "train" or fault.kind == "poison photo":
        return False
    return len(ledger.read(output)["error"].drop_null()) > 0


def expect(what: str, found: object, expected: object) -> None:
    """Raise ViolationError unless both are equal."""
    if found != expected:
        raise ViolationError(f"{what}: found {found}, expected {expected}")


def history(run: str) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in store.read_bytes(f"{run}/metrics.jsonl").splitlines()]


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows without the columns that differ between two runs."""
    clocks = {"time", "samples_per_second", "waiting", "first_batch_seconds"}
    return [{name: value for name, value in row.items() if name not in clocks} for row in rows]


def names_in(place: str) -> list[str]:
    """Return the names of all files, partial ones included."""
    if is_local(place):
        return sorted(path.relative_to(place).as_posix() for path in Path(place).rglob("*") if path.is_file())
    return [file.key for file in store.list_files(place)]


@contextmanager
def prepared(root: Path, seed: int) -> Iterator[Soak]:
    """Start store, proxy and cluster, and make the references."""
    with moto() as store, faults.proxy(store, fraction=0) as proxy:
        environment = {**CREDENTIALS, **os.environ, **ENVIRONMENT, "AWS_ENDPOINT_URL": proxy.endpoint}
        path = [str(ROOT / "tests/support/sabotage"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment |= {"PYTHONPATH": os.pathsep.join(path), "SABOTAGE": "poison"}
        with patch.dict(os.environ, environment):
            name = f"soak-{os.urandom(4).hex()}"
            boto3.session.Session().client("s3").create_bucket(Bucket=name)
            cluster = Cluster(initialize_head=True, head_node_args=HEAD)
            try:
                with patch.dict(os.environ, {"RAY_ADDRESS": cluster.address}):
                    soak = Soak(root, f"s3://{name}", proxy, cluster, random.Random(seed))
                    soak.begin()
                    yield soak
            finally:
                cluster.shutdown()


def main() -> int:
    """Run the study and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.soak")
    parser.add_argument("--faults", type=int, default=50, help="number of faults")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the faults")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as root, prepared(Path(root), options.seed) as soak:
        print(f"ready after {time.monotonic() - began:.0f} s", flush=True)
        for fault in plan(options.faults, options.seed):
            try:
                print(soak.suffer(fault), flush=True)
            except Exception as error:
                print(f"{fault}: violation with --seed {options.seed}: {error}", flush=True)
                return 1
    kinds = Counter(fault.kind for fault in plan(options.faults, options.seed))
    summary = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    print(f"{options.faults} faults ({summary}) in {(time.monotonic() - began) / 60:.1f} min: everything holds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
