"""The cluster that a job runs on, and the environment of its workers."""

import os
import platform
import subprocess
import sys

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
