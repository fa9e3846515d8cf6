"""Jobs on clusters of several nodes: one that grows from nothing, and one whose nodes are killed."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray._private.services import get_node_ip_address
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE
from ray.autoscaler._private.monitor import BASE_READONLY_CONFIG
from ray.cluster_utils import Cluster

from jobs.training.run_folder import PROGRESS
from matting.data import images
from matting.data.dataset import PairOptions, open_dataset
from matting.inference.device_predictor import DevicePredictor, PackingPredictor
from matting.inference.network import Network
from matting.inference.predictor import Predictor
from matting.nn import checkpoint
from tests.support import jobs
from tests.support.clusters import ENVIRONMENT, HEAD, processes_of
from tests.support.predictions import (
    DRAWN,
    assert_accounted_for,
    draw_photo,
    new_checkpoint,
    photo_keys,
    write_photos,
)

pytestmark = pytest.mark.slow

PAIRS = 160
SMALL = ["--width=4", "--size=32", f"--synthetic-pairs={PAIRS}", "--epochs=3", "--batch=4", "--name=run"]


@pytest.fixture
def environment() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as changed:
        for name, value in ENVIRONMENT.items():
            changed.setenv(name, value)
        yield changed


@pytest.fixture
def cluster(environment: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Cluster of a head without cores, to which a test adds nodes. Jobs that the test starts join it."""
    found = Cluster(initialize_head=True, head_node_args=HEAD)
    environment.setenv("RAY_ADDRESS", found.address)
    yield found
    found.shutdown()


@pytest.fixture
def growing(environment: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cluster]:
    """Cluster with Ray's autoscaler, which starts nodes of two cores on this machine when there is work for them."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    config = {
        **BASE_READONLY_CONFIG,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": f"{get_node_ip_address()}:{port}",
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "max_workers": 3,
        "idle_timeout_minutes": 1,
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": {
            FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": 2, "object_store_memory": 100_000_000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 3,
            },
        },
    }
    (tmp_path / "autoscaler.json").write_text(json.dumps(config))
    head_environment = {
        "RAY_enable_autoscaler_v2": "1",
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        # Variables that `ray up` and KubeRay set on a node.
        "RAY_NODE_TYPE_NAME": FAKE_HEAD_NODE_TYPE,
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    with pytest.MonkeyPatch.context() as changed:
        for name, value in head_environment.items():
            changed.setenv(name, value)
        head = {**HEAD, "gcs_server_port": port, "autoscaling_config": str(tmp_path / "autoscaler.json")}
        found = Cluster(initialize_head=True, head_node_args=head)
    environment.setenv("RAY_ADDRESS", found.address)
    yield found
    nodes = autoscaler_processes(found)
    found.shutdown()
    jobs.kill(nodes)


def autoscaler_processes(growing: Cluster) -> list[int]:
    return jobs.descendants(growing.head_node.all_processes["monitor"][0].process.pid)


def wait_for_a_checkpoint(process: subprocess.Popen[str], run: Path) -> None:
    """Wait until the first epoch is recorded."""
    while not (run / PROGRESS).exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def processes_of_a_training_node(growing: Cluster) -> list[int]:
    for pid in autoscaler_processes(growing):
        if jobs.command_line(pid).partition(" ")[0].endswith("/raylet"):
            pids = [pid, *jobs.descendants(pid)]
            if any("RayTrainWorker" in jobs.command_line(pid) for pid in pids):
                return pids
    raise AssertionError("no node has a training worker")


def epochs(run: Path) -> list[dict[str, Any]]:
    """Read the rows of finished epochs."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "val_mad" in row]


def assert_a_whole_run(run: Path, steps: list[int]) -> None:
    """Check three epochs of these steps: no row of metrics.jsonl twice, and every validation pair seen in each."""
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = epochs(run)
    assert [row["epoch"] for row in found] == [1, 2, 3]
    assert [row["step"] for row in found] == np.cumsum(steps).tolist()
    assert len({row["step"] for row in history}) == len(history)
    assert {row["val_n"] for row in found} == {len(open_dataset("synthetic", OPTIONS).keys["val"])}


OPTIONS = PairOptions(synthetic_pairs=PAIRS)


def steps_of_an_epoch(workers: int) -> int:
    return -(-(len(open_dataset("synthetic", OPTIONS).keys["train"]) // workers) // 4)


@pytest.mark.slow(seconds=100)
@pytest.mark.timeout(600)
def test_training_waits_for_nodes_and_survives_a_dead_one(tmp_path: Path, growing: Cluster) -> None:
    with jobs.running("train", *SMALL, "--workers=2", f"--output={tmp_path}") as process:
        line = jobs.wait_for_line(process, "2 workers need 2 CPUs")
        assert "the cluster has 0 CPUs and 0 GPUs. Waiting for it to grow" in line
        wait_for_a_checkpoint(process, tmp_path / "run")
        jobs.kill(processes_of_a_training_node(growing))
        output, _ = process.communicate()
        assert process.returncode == 0, output
    assert_a_whole_run(tmp_path / "run", [steps_of_an_epoch(2)] * 3)


@pytest.mark.slow(seconds=90)
@pytest.mark.timeout(600)
def test_elastic_training_goes_on_with_fewer_workers(tmp_path: Path, cluster: Cluster) -> None:
    nodes = [cluster.add_node(num_cpus=2, object_store_memory=100_000_000) for _ in range(2)]
    cluster.wait_for_nodes()
    with jobs.running("train", *SMALL, "--workers=1,2", f"--output={tmp_path}") as process:
        wait_for_a_checkpoint(process, tmp_path / "run")
        jobs.kill(processes_of(nodes[1]))
        output, _ = process.communicate()
        assert process.returncode == 0, output
    finished_by_two = sum(
        row["step"] == number * steps_of_an_epoch(2) for number, row in enumerate(epochs(tmp_path / "run"), 1)
    )
    assert 1 <= finished_by_two < 3
    left = 3 - finished_by_two
    assert_a_whole_run(tmp_path / "run", [steps_of_an_epoch(2)] * finished_by_two + [steps_of_an_epoch(1)] * left)


def assert_same_as_predictor(output: Path, trained: str, count: int, gpus: int = 0) -> None:
    """Check that every matte is that of its photo alone: of the predictor, or on GPUs of the predictor of batches."""
    loaded = checkpoint.load(trained)
    predictor: Predictor | PackingPredictor = Predictor(Network(loaded), "guided")
    if gpus:
        on_device = DevicePredictor(Network(loaded, micro_batch=1), "guided", torch.device("cpu"))
        predictor = PackingPredictor(loaded.size, on_device.alphas)
    photos = [images.decode_image(draw_photo(number)) for number in range(min(count, DRAWN))]
    expected = [
        predictor.timed_alphas([photo], [(photo.shape[1], photo.shape[0])], lambda _: nullcontext())[0]
        for photo in photos
    ]
    for number in range(count):
        found = images.decode_alpha((output / f"alpha/img_align_celeba/{number + 1:06d}.jpg.png").read_bytes())
        np.testing.assert_array_equal(found, expected[number % len(photos)])


PREDICT_ON_FAKE_GPUS = """
from functools import partial
from jobs import predict
from jobs.common.cli import run_job
from jobs.prediction import devices
from tests.support.predictions import FakeGpuWork
from tests.support.sickness import SickNodeWork

devices.require_gpus = lambda is_own: None
run_job(partial(predict.main, work_class=FakeGpuWork))
"""
PREDICT_ON_A_SICK_NODE = PREDICT_ON_FAKE_GPUS.replace("=FakeGpuWork", "=SickNodeWork")


def test_networks_on_gpus_give_the_same_mattes(tmp_path: Path, cluster: Cluster) -> None:
    # The node claims GPUs that do not exist, and the test's work runs their networks on the CPU.
    trained = new_checkpoint(tmp_path / "trained", seed=0)
    write_photos(tmp_path / "photos", 150)
    cluster.add_node(num_cpus=1, num_gpus=2, object_store_memory=80_000_000)
    options = [f"--checkpoint={trained}", f"--images={tmp_path / 'photos'}", f"--output={tmp_path / 'out'}"]
    subprocess.run([sys.executable, "-c", PREDICT_ON_FAKE_GPUS, *options], check=True)
    assert_accounted_for(tmp_path / "out", photo_keys(150))
    assert_same_as_predictor(tmp_path / "out", trained, 150, gpus=2)


@pytest.mark.parametrize("gpus", [0, 1])
def test_blocks_of_a_sick_node_are_handled_by_the_others(tmp_path: Path, cluster: Cluster, gpus: int) -> None:
    trained = new_checkpoint(tmp_path / "trained", seed=0)
    write_photos(tmp_path / "photos", 300)
    for _ in range(2):
        cluster.add_node(num_cpus=1, num_gpus=gpus, object_store_memory=80_000_000)
    cluster.wait_for_nodes()
    options = [f"--checkpoint={trained}", f"--images={tmp_path / 'photos'}", f"--output={tmp_path / 'out'}"]
    subprocess.run([sys.executable, "-c", PREDICT_ON_A_SICK_NODE, *options], check=True)
    assert_accounted_for(tmp_path / "out", photo_keys(300))
    assert_same_as_predictor(tmp_path / "out", trained, 300, gpus)


HOLD_GPU = """
import time
import ray

ray.init()
holder = ray.remote(num_gpus=1, num_cpus=0)(type("Holder", (), {"held": lambda self: True})).remote()
assert ray.get(holder.held.remote())
print("held", flush=True)
time.sleep(600)
"""


@contextmanager
def started_python(script: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """Start a Python script, and kill it at the end if it still runs."""
    command = [sys.executable, "-c", script, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_job_says_what_it_waits_for(tmp_path: Path, cluster: Cluster) -> None:
    trained = new_checkpoint(tmp_path / "trained", seed=0)
    write_photos(tmp_path / "photos", 10)
    cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=80_000_000)
    cluster.wait_for_nodes()
    options = [f"--checkpoint={trained}", f"--images={tmp_path / 'photos'}", f"--output={tmp_path / 'out'}"]
    with started_python(HOLD_GPU) as holder:
        jobs.wait_for_line(holder, "held")
        with started_python(PREDICT_ON_FAKE_GPUS, *options) as process:
            line = jobs.wait_for_line(process, "Predicting tasks wait for 1 CPUs")
            assert "Free are 2 of 2 CPUs and 0 of 1 GPUs." in line
            assert not (tmp_path / "out/_ledger").exists()
            holder.kill()
            output, _ = process.communicate(timeout=200)
            assert process.returncode == 0, output
    assert_accounted_for(tmp_path / "out", photo_keys(10))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpus_that_torch_cannot_use_are_refused(tmp_path: Path, cluster: Cluster) -> None:
    trained = new_checkpoint(tmp_path / "trained", seed=0)
    write_photos(tmp_path / "photos", 10)
    cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=80_000_000)
    cluster.wait_for_nodes()
    predict = [f"--checkpoint={trained}", f"--images={tmp_path / 'photos'}", f"--output={tmp_path / 'out'}"]
    train = [*SMALL, f"--output={tmp_path}"]
    *refused, (code, said) = jobs.run_joined(
        ["train", *train, "--device=auto"],
        ["predict", *predict, "--device=gpu"],
        ["predict", *predict, "--device=cpu"],
    )
    for refusal, output in refused:
        assert refusal == 2, output
        assert "error: Ray counts GPUs that torch cannot use. node " in output
        assert "give --device cpu" in output
    assert code == 0, said


ASK = """
from jobs.common import cluster
from jobs.prediction.precision import formats_by_node, formats_here

cluster.join()
formats = list(formats_by_node("auto").values())
assert set(formats) == {formats_here()}
print(len(formats))
"""


def test_nodes_that_run_the_network_are_asked_for_formats(cluster: Cluster) -> None:
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    cluster.wait_for_nodes()
    assert subprocess.check_output([sys.executable, "-c", ASK]) == b"2\n"  # not the head, which has no cores
    cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=80_000_000)
    cluster.wait_for_nodes()
    assert subprocess.check_output([sys.executable, "-c", ASK]) == b"1\n"  # only the node with a GPU
