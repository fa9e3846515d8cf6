"""predict on a cluster whose drivers, workers and nodes are killed, and on one with GPUs."""

import os
import random
import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.cluster_utils import Cluster

from matting import images
from matting.predictor import Predictor
from tests import jobs
from tests.test_predict import assert_adds_up, new_checkpoint, rows, write_photos

PHOTOS = 2_000
VICTIMS = ["driver", "worker", "node"] * 3 + ["driver"]


@pytest.fixture
def environment() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield changed


@pytest.fixture
def cluster(environment: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without cores; nodes are the test's to add. Jobs that it starts find the cluster."""
    noticed_soon = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 500,
        "health_check_failure_threshold": 4,
    }
    head = {"num_cpus": 0, "object_store_memory": 200_000_000, "_system_config": noticed_soon}
    found = Cluster(initialize_head=True, head_node_args=head)
    environment.setenv("RAY_ADDRESS", found.address)
    yield found
    found.shutdown()


def outputs_in(folder: Path) -> int:
    return sum(path.suffix == ".png" for path in folder.rglob("*"))


def processes_of(node: Any) -> list[int]:
    """The raylet of a node, and all that runs below it."""
    raylet = node.all_processes["raylet"][0].process.pid
    return [raylet, *jobs.descendants(raylet)]


def kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.timeout(600)
def test_ten_kills_lose_nothing(tmp_path: Path, cluster: Cluster) -> None:
    trained = new_checkpoint(tmp_path / "trained", seed=0)
    write_photos(tmp_path / "photos", PHOTOS)
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=80_000_000) for _ in range(2)]
    cluster.wait_for_nodes()
    output, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    command = ["predict", f"--checkpoint={trained}", f"--images={tmp_path / 'photos'}"]
    chance = random.Random(0)
    chance.shuffle(VICTIMS)
    moments = sorted(chance.sample(range(1, PHOTOS * 3 // 4), len(VICTIMS)))  # by how many outputs are there
    with ExitStack() as stack:
        process = stack.enter_context(jobs.running(*command, f"--output={output}"))
        for victim, moment in zip(VICTIMS, moments, strict=True):
            while outputs_in(output) < moment:
                assert process.poll() is None, process.communicate()[0]
            if victim == "driver":
                process.kill()
                process = stack.enter_context(jobs.running(*command, f"--output={output}"))
            elif victim == "worker":
                kill([pid for pid in processes_of(nodes[0]) if "MapBatches" in jobs.command_line(pid)])
            else:
                dead = nodes.pop(0)
                kill(processes_of(dead))
                cluster.remove_node(dead, allow_graceful=False)
                nodes.append(cluster.add_node(num_cpus=1, object_store_memory=80_000_000))
        said, _ = process.communicate()
    assert process.returncode == 0, said

    code, said = jobs.run(*command, f"--output={undisturbed}")
    assert code == 0, said
    for folder in (output, undisturbed):
        assert_adds_up(folder, {f"img_align_celeba/{number + 1:06d}.jpg" for number in range(PHOTOS)})
        assert {row["status"] for row in rows(folder).values()} == {"done"}
    for path in (undisturbed / "alpha").rglob("*.png"):
        assert path.read_bytes() == (output / path.relative_to(undisturbed)).read_bytes()


def test_with_gpus_the_network_runs_apart_and_gives_the_same(tmp_path: Path, cluster: Cluster) -> None:
    # Ray is told of GPUs that there are not; the networks then run on the CPU, but where and how they would.
    trained = new_checkpoint(tmp_path / "trained", seed=0)
    write_photos(tmp_path / "photos", 150)
    cluster.add_node(num_cpus=1, num_gpus=2, object_store_memory=80_000_000)
    options = [f"--checkpoint={trained}", f"--images={tmp_path / 'photos'}", f"--output={tmp_path / 'out'}"]
    code, said = jobs.run("predict", *options)
    assert code == 0, said
    assert_adds_up(tmp_path / "out", {f"img_align_celeba/{number + 1:06d}.jpg" for number in range(150)})
    predictor = Predictor.load(trained)
    for path in (tmp_path / "photos").rglob("*.jpg"):
        (expected,) = predictor.alphas([images.decode_image(path.read_bytes())])
        found = images.decode_alpha((tmp_path / f"out/alpha/{path.relative_to(tmp_path / 'photos')}.png").read_bytes())
        np.testing.assert_array_equal(found, expected)
