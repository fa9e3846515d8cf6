"""Fixtures that several test modules share: object stores, buckets, a Ray cluster; and the order of test files."""

import logging
import os
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import boto3
import fsspec
import hypothesis
import pytest
import ray

from tests.support import faults
from tests.support.jobs import taken_as_own
from tests.support.stores import CREDENTIALS, GatedFileSystem, moto

# Several test processes share the cores. OpenMP threads that spin while they wait would take time from the threads that
# they wait for. torch reads this when it is imported, here and in all processes that tests start.
os.environ["OMP_WAIT_POLICY"] = "passive"

# The time that an example takes depends on the machine, which is shared.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")

SLOW_SECONDS = 8  # of a test that is marked slow without a number


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first, so that no process begins a long file when the others are done."""
    seconds = Counter[Path]()
    for item in items:
        if slow := item.get_closest_marker("slow"):
            seconds[item.path] += slow.kwargs.get("seconds", SLOW_SECONDS)
    items.sort(key=lambda item: -seconds[item.path])


@pytest.fixture(scope="session", autouse=True)
def ray_files() -> Iterator[Path]:
    """Folder of the files of all Ray processes. Ray's socket paths must be short, so tmp_path is too long."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_TMPDIR", str(folder))
        yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def store_proxy() -> Iterator[faults.Proxy]:
    """Proxy in front of an S3 server in a process of its own. It injects no faults unless a test plans some."""
    with moto() as endpoint, faults.proxy(endpoint, fraction=0) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def object_store(store_proxy: faults.Proxy) -> Iterator[str]:
    """Endpoint of a real object store. The environment points to it until the session ends."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": store_proxy.endpoint}.items():
            environment.setenv(name, value)
        yield store_proxy.endpoint


@pytest.fixture
def bucket(object_store: str) -> str:
    """URI of a new, empty bucket."""
    name = f"bucket-{uuid.uuid4().hex}"
    boto3.session.Session().client("s3", endpoint_url=object_store).create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture
def gated() -> type[GatedFileSystem]:
    """Empty file system at gated://, whose reads wait until a test opens the gate."""
    fsspec.register_implementation("gated", GatedFileSystem, clobber=True)
    GatedFileSystem.store.clear()
    GatedFileSystem.gate.clear()
    GatedFileSystem.begun = GatedFileSystem.under_way = GatedFileSystem.most = 0
    return GatedFileSystem


@pytest.fixture(scope="session")
def ray_cluster(object_store: str) -> Iterator[None]:
    """One local Ray cluster for all tests that run a job in this process. Its workers use the object store."""
    del object_store
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # time until a finished worker is noticed
        environment.setenv("RAY_metrics_report_interval_ms", "5000")  # every second costs a tenth of a core
        ray.init(
            address="local",  # not another cluster that runs on this machine
            num_cpus=3,
            object_store_memory=500_000_000,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        try:
            yield
        finally:
            ray.shutdown()


@pytest.fixture
def own_cluster(ray_cluster: None) -> Iterator[None]:  # noqa: ARG001
    """The same cluster, which jobs take for one of their own: a single training worker runs in this process."""
    with taken_as_own():
        yield
