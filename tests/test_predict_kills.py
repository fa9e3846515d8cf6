"""predict on a cluster whose drivers, workers and nodes are killed, and on one with GPUs."""

import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from matting import ledger
from tests import jobs
from tests.test_predict import assert_adds_up, new_checkpoint, rows, write_photos

PHOTOS = 2_000
KILLS = 10
LIMIT = PHOTOS // KILLS


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


def wait_until(count: int, folder: Path, process: subprocess.Popen[str]) -> bool:
    """Watch the outputs come until there are so many; False if the job ended before."""
    while process.poll() is None:
        if outputs_in(folder) >= count:
            return True
    return False


def kill_a_worker(node: Any) -> None:
    """SIGKILL one of the processes on a node that predict, if there is one."""
    raylet = node.all_processes["raylet"][0].process.pid
    busy = [pid for pid in jobs.descendants(raylet) if "MapBatches" in jobs.command_line(pid)]
    if busy:
        os.kill(max(busy), signal.SIGKILL)


def kill_node(node: Any) -> None:
    """SIGKILL a node: its raylet and all that runs below it."""
    raylet = node.all_processes["raylet"][0].process.pid
    for pid in [raylet, *jobs.descendants(raylet)]:
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)


def test_ten_kills_lose_nothing(tmp_path: Path, cluster: Cluster) -> None:
    trained = new_checkpoint(tmp_path / "trained", seed=0)
    write_photos(tmp_path / "photos", PHOTOS)
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=80_000_000) for _ in range(2)]
    cluster.wait_for_nodes()
    output, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    command = ["predict", f"--checkpoint={trained}", f"--images={tmp_path / 'photos'}"]
    chance = random.Random(0)
    killed = []
    for number in range(KILLS):
        victim = ("driver", "worker", "node")[number % 3]
        # A killed run leaves outputs without rows, which the next one makes again: only the others are new.
        before, known = outputs_in(output), len(ledger.read(str(output), ["key"]))
        goal = before + chance.randrange(1, known + LIMIT - before)
        with jobs.running(*command, f"--output={output}", f"--limit={LIMIT}") as process:
            if not wait_until(goal, output, process):
                pytest.fail(f"ended by itself: {process.communicate()[0]}")
            if victim == "driver":
                process.kill()
            elif victim == "worker":
                kill_a_worker(nodes[0])
            else:
                kill_node(nodes[0])
                cluster.remove_node(nodes.pop(0), allow_graceful=False)
                nodes.append(cluster.add_node(num_cpus=1, object_store_memory=80_000_000))
            said, _ = process.communicate()
            assert victim == "driver" or process.returncode == 0, said
        killed.append((victim, outputs_in(output)))
    code, said = jobs.run(*command, f"--output={output}")
    assert code == 0, said
    code, said = jobs.run(*command, f"--output={output}")
    assert "Nothing left to do." in said, killed

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
    command = ["predict", f"--checkpoint={trained}", f"--images={tmp_path / 'photos'}"]
    node = cluster.add_node(num_cpus=2, object_store_memory=80_000_000)
    code, said = jobs.run(*command, f"--output={tmp_path / 'cpu'}")
    assert code == 0, said
    cluster.remove_node(node)
    cluster.add_node(num_cpus=1, num_gpus=2, object_store_memory=80_000_000)
    code, said = jobs.run(*command, f"--output={tmp_path / 'gpu'}")
    assert code == 0, said
    assert_adds_up(tmp_path / "gpu", set(rows(tmp_path / "cpu")))
    for path in (tmp_path / "cpu/alpha").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "gpu" / path.relative_to(tmp_path / "cpu")).read_bytes()
