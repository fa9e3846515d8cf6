"""`ray job submit`, as in jobs/README.md, to a cluster of its own; and the content of runtime_env.yaml."""

import os
import re
import secrets
import shlex
import socket
import subprocess
import sys
import sysconfig
import time
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from ray._private.runtime_env.packaging import create_package
from ray.job_submission import JobSubmissionClient
from ray.runtime_env import RuntimeEnv

from jobs.common import cluster
from tests.support import jobs

ALWAYS = (
    r"\d+ pairs, \d+ MB decoded",
    "first batch after ",
    "epoch 1: loss ",
    r"Best on \d+ validation pairs",
    "Checkpoint: ",
    "Page: ",
)
SOMETIMES = r"epoch 1: \d+ of \d+ |.*\(raylet\).* WARNING"  # where the machine is slow
SMALL = ["--width=4", "--size=32", "--synthetic-pairs=60", "--epochs=1"]
# A cluster on free ports, which ends with its standard input.
HEAD = """
import sys
from ray.cluster_utils import Cluster
head = {"num_cpus": 3, "object_store_memory": 200_000_000, "include_dashboard": True, "dashboard_agent_listen_port": 0}
cluster = Cluster(initialize_head=True, head_node_args={**head, "dashboard_port": int(sys.argv[1])})
print("up", flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def runtime_env() -> dict[str, Any]:
    return yaml.safe_load((jobs.ROOT / "runtime_env.yaml").read_text())


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a virtual environment that borrows this one's packages: small, since Ray copies it to add packages."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    packages = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    (Path(packages) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin/python"


@pytest.fixture(scope="module")
def submitting(python: Path, ray_files: Path) -> Iterator[dict[str, str]]:
    """Environment of a user whose RAY_ADDRESS is the dashboard of a cluster, with a token."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | token
    environment["TMPDIR"] = str(ray_files)  # for a folder that the dashboard leaves
    with subprocess.Popen(
        [python, "-c", HEAD, port], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as head:
        assert head.stdout is not None
        assert head.stdout.readline() == "up\n"
        environment["RAY_ADDRESS"] = f"http://127.0.0.1:{port}"
        wait_until_jobs_are_accepted(environment)
        yield environment
        head.communicate(timeout=60)


def client_of(environment: dict[str, str]) -> JobSubmissionClient:
    return JobSubmissionClient(
        environment["RAY_ADDRESS"], headers={"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"}
    )


def wait_until_jobs_are_accepted(environment: dict[str, str]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            client_of(environment).submit_job(entrypoint="true")
            return
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def guide_line() -> list[str]:
    (line,) = re.findall(
        r"^ray job submit .*jobs/train\.py.*$", (jobs.ROOT / "jobs/README.md").read_text(), re.MULTILINE
    )
    return shlex.split(line)


def submit(environment: dict[str, str], *options: str, id: str | None = None) -> tuple[int, str]:
    """Run the guide's line with further options. Returns its exit code and its output."""
    ray, job, verb, *rest = guide_line()
    named = [f"--submission-id={id}"] if id else []
    command = [str(Path(sys.executable).with_name(ray)), job, verb, *named, *rest, *options]
    done = subprocess.run(
        command,
        cwd=jobs.ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    return done.returncode, done.stdout


@pytest.mark.slow(seconds=45)
def test_submitted_jobs_end_like_local_ones(submitting: dict[str, str], tmp_path: Path) -> None:
    options = [*SMALL, f"--output={tmp_path}", "--name=run"]
    code, output = submit(submitting, *options, id="first")
    assert code == 0, output
    assert (tmp_path / "run/report.html").exists()
    client = client_of(submitting)
    before, _, log = client.get_job_logs("first").partition("Running entrypoint")
    assert len(before.splitlines()) <= 1  # "Runtime env is setting up."
    lines = [line for line in log.splitlines()[1:] if not re.match(SOMETIMES, line)]
    for kind, line in zip(ALWAYS, lines, strict=True):
        assert re.match(kind, line)

    code, output = submit(submitting, *options, id="first")
    assert code == 1
    assert "already exists" in output
    code, output = submit(submitting, "--bacth=3", id="wrong")
    assert code == 1
    assert "Did you mean --batch?" in output
    assert "Traceback" not in output
    assert client.get_job_info("wrong").driver_exit_code == 2


def test_ray_knows_every_key(runtime_env: dict[str, Any]) -> None:
    # Ray ignores unknown keys.
    assert runtime_env.keys() <= RuntimeEnv.known_fields
    with pytest.raises(ValueError, match="package"):
        RuntimeEnv(pip={**runtime_env["pip"], "package": []})
    RuntimeEnv(pip=runtime_env["pip"])


def test_memory_thresholds_are_those_of_own_clusters(runtime_env: dict[str, Any]) -> None:
    assert runtime_env["env_vars"] == cluster.MALLOC


def test_packages_are_those_of_the_project(runtime_env: dict[str, Any]) -> None:
    project = tomllib.loads((jobs.ROOT / "pyproject.toml").read_text())["project"]
    sent = {Requirement(line) for line in runtime_env["pip"]["packages"]}
    needed = {Requirement(line) for line in project["dependencies"]}
    assert sent <= needed
    assert {requirement.name for requirement in needed - sent} == {"ray", "numpy"}  # Ray's own image has them


def test_only_the_program_is_sent(runtime_env: dict[str, Any], tmp_path: Path) -> None:
    assert runtime_env["working_dir"] == "."
    create_package(str(jobs.ROOT), tmp_path / "sent.zip", include_gitignore=True)
    with zipfile.ZipFile(tmp_path / "sent.zip") as sent:
        names = {name for name in sent.namelist() if not name.endswith("/")}
    assert {"jobs/train.py", "jobs/configs/baseline.yaml", "matting/results/templates/report.html.j2"} <= names
    assert not {name.partition("/")[0] for name in names} & {"tests", "infra", ".git", "runs", "README.md"}
    assert (tmp_path / "sent.zip").stat().st_size < 2_000_000  # no data, no caches
