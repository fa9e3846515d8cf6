"""Run jobs on a small cluster, inject a fault into each, and compare their results with the references."""

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from subprocess import Popen
from typing import Any
from unittest.mock import patch

import boto3
from ray.cluster_utils import Cluster

from matting.data import images
from matting.data.synthetic import draw_person
from matting.results import ledger
from matting.storage import store
from matting.storage.errors import NotFoundError
from tests.studies.soak.faults import EPOCHS, PHOTOS, SELF_HEALING, Fault
from tests.studies.soak.references import POISONED, References, ViolationError
from tests.support import jobs
from tests.support.clusters import ENVIRONMENT, HEAD, apart_from, processes_of
from tests.support.faults import Proxy, proxy, seeded_plan
from tests.support.paths import ROOT
from tests.support.sabotage.sitecustomize import POISON
from tests.support.stores import CREDENTIALS, moto

TRAIN = ("--width=4", "--size=32", "--synthetic-pairs=60", f"--epochs={EPOCHS}", "--name=run")
PROCESSES = {"train": "RayTrainWorker", "predict": "MapBatches"}  # part of the command line of working processes
NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}
RUN_TIMEOUT = 600  # seconds; on a busy machine, minutes pass until Ray sees that a node is dead
MAX_RERUNS = 3


@dataclass
class Soak:
    """Environment of the study, and the references to compare with."""

    root: Path
    bucket: str
    proxy: Proxy
    cluster: Cluster
    draw: random.Random
    nodes: list[Any] = field(default_factory=list)
    guests: list[Any] = field(default_factory=list)  # nodes that join for one fault
    outputs: list[str] = field(default_factory=list)  # terminal output of all runs
    references: References = field(init=False)  # of the undisturbed jobs

    @property
    def trained(self) -> str:
        """URI of the checkpoint that is predicted with: the undisturbed training's best."""
        return f"{self.root}/undisturbed/run/best"

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
        commands = [self.command(job, str(self.root), "undisturbed") for job in PROCESSES]
        for (job, *_), (code, output) in zip(commands, jobs.run_joined(*commands), strict=True):
            self.outputs.append(output)
            if code:
                raise ViolationError(f"{job} fails undisturbed:\n{output}")
        place = f"{self.root}/undisturbed"
        self.references = References.read(place)
        self.references.check_predict(place, others={"run"})
        self.references.check_train(f"{place}/run")

    def command(self, job: str, place: str, name: str, photos: str = "photos") -> list[str]:
        """Return a job with its options. Its results go to a folder of this name; it predicts these photos."""
        options = TRAIN if job == "train" else (f"--checkpoint={self.trained}", f"--images={place}/{photos}")
        return [job, *options, f"--output={place}/{name}"]

    def start(self, job: str, place: str, name: str, photos: str = "photos") -> "Popen[str]":
        """Start a job in a process of its own."""
        return jobs.started(*self.command(job, place, name, photos))

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
        with apart_from(self.root, self.cluster) if fault.kind == "own disk" else nullcontext():
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
            self.references.check_train(f"{place}/{name}/run")
        else:
            self.references.check_predict(f"{place}/{name}", poisoned=fault.kind == "poison photo")
        how = (f", run again {reruns} times" if reruns else "") + ("" if hit else "; too late, it hit nothing")
        return f"{fault}: recovered in {recovered:.1f} s{how}"

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
            self.proxy.plan = seeded_plan(1 / 3, fault.number)
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


@contextmanager
def prepared(root: Path, seed: int) -> Iterator[Soak]:
    """Start store, proxy and cluster, and make the references."""
    with moto() as endpoint, proxy(endpoint, fraction=0) as route:
        environment = {**CREDENTIALS, **os.environ, **ENVIRONMENT, "AWS_ENDPOINT_URL": route.endpoint}
        path = [str(ROOT / "tests/support/sabotage"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment |= {"PYTHONPATH": os.pathsep.join(path), "SABOTAGE": "poison"}
        with patch.dict(os.environ, environment):
            name = f"soak-{os.urandom(4).hex()}"
            boto3.session.Session().client("s3").create_bucket(Bucket=name)
            cluster = Cluster(initialize_head=True, head_node_args=HEAD)
            try:
                with patch.dict(os.environ, {"RAY_ADDRESS": cluster.address}):
                    soak = Soak(root, f"s3://{name}", route, cluster, random.Random(seed))
                    soak.begin()
                    yield soak
            finally:
                cluster.shutdown()
