"""The cluster that a job runs on, and the environment of its workers."""

import os
import platform
import socket
import subprocess
import sys
import tempfile

import pytest

from jobs.common import cluster
from jobs.common.cluster import ClusterError

FAULTS = """
import resource

import numpy as np

def photo():
    return [np.ones(2_000_000, np.uint8) for _ in range(4)]

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

photo()
photo()
began = faults()
for _ in range(20):
    photo()
print(faults() - began)
"""

OWN = """
import os
import ray
from jobs.common import cluster, machine

found = cluster.start(cpus=1, reading=0, gpus=0, what="tasks")
assert found.is_own and found.cores == machine.usable_cores() and found.seconds > 0
assert not cluster.is_own() and cluster.has_started()
environment = ray.get(ray.remote(lambda: dict(os.environ)).remote())
assert cluster.MALLOC.items() <= environment.items()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the thresholds are glibc's")
def test_workers_keep_one_photos_memory() -> None:
    plain = {name: value for name, value in os.environ.items() if name not in cluster.MALLOC}
    kept, returned = (
        int(subprocess.check_output([sys.executable, "-c", FAULTS], env=environment))
        for environment in ({**plain, **cluster.MALLOC}, plain)
    )
    assert kept < 0.1 * returned


@pytest.mark.slow
def test_workers_of_an_own_cluster_have_the_environment() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in {"RAY_ADDRESS", *cluster.MALLOC}}
    subprocess.run([sys.executable, "-c", OWN], check=True, env=environment)


def test_address_of_a_dashboard_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "http://localhost:8265")
    assert not cluster.is_own()
    with pytest.raises(ClusterError, match="Cannot join the cluster of RAY_ADDRESS=http://localhost:8265") as caught:
        cluster.join()
    assert len(str(caught.value).splitlines()) == 1


JOIN = """
import sys
from jobs.common import cluster
from jobs.common.cli import run_job

cluster.JOIN_SECONDS = int(sys.argv[1])
run_job(lambda argv: cluster.join())
"""


def join(address: str, *prefix: str, seconds: int = 25) -> tuple[int, str]:
    """Let a new process join the cluster at an address. Returns its exit code and its output."""
    environment = {**os.environ, "RAY_ADDRESS": address}
    command = [*prefix, sys.executable, "-c", JOIN, str(seconds)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


@pytest.mark.slow
def test_address_without_a_cluster_is_refused_soon() -> None:
    with socket.socket() as silent:  # listens and never answers
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        code, said = join(address)
        assert (code, len(said.splitlines())) == (2, 1)
        assert f"RAY_ADDRESS={address}: Nothing answers at {address}" in said
        silent.listen()
        code, said = join(address, seconds=3)
        assert code == 2
        assert said.splitlines()[-1].startswith(
            f"error: Cannot join the cluster of RAY_ADDRESS={address}: There was no"
        )
        assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="a process namespace needs the rights of root")
def test_auto_without_a_cluster_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        # Ray looks for clusters among all processes; other tests have some.
        code, said = join("auto", "unshare", "--pid", "--fork", "--mount-proc")
    assert (code, len(said.splitlines())) == (2, 1)
    assert "error: Cannot join the cluster of RAY_ADDRESS=auto: Could not find any running Ray instance" in said


def test_job_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(cluster, "resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr(cluster, "alive_nodes", lambda: [{"Labels": {}}])
    cluster.require(cpus=3, reading=1, gpus=0, what="Tasks")
    with pytest.raises(ClusterError, match=r"Tasks need 4 CPUs, 1 for reading and 0 GPUs; the cluster has 4 CPUs"):
        cluster.require(cpus=4, reading=1, gpus=0, what="Tasks")
    with pytest.raises(ClusterError, match="and 1 GPUs; the cluster has 4 CPUs and 0 GPUs"):
        cluster.require(cpus=1, reading=0, gpus=1, what="Tasks")


def test_cluster_with_an_autoscaler_grows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    grown = []
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(cluster, "resources", lambda: {})
    monkeypatch.setattr(cluster, "alive_nodes", lambda: [{"Labels": {cluster.NODE_GROUP: "head"}}])
    monkeypatch.setattr(cluster, "grow", lambda *needs: grown.append(needs[:3]))
    cluster.require(cpus=2, reading=0.5, gpus=1, what="Tasks")
    assert grown == [(2, 0.5, 1)]
    assert "Waiting for it to grow" in capsys.readouterr().out
