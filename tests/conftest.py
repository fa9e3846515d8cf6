"""Fixtures that several test modules share: object stores, a real one and one that can be held; buckets; a cluster."""

import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import fsspec
import hypothesis
import pytest
import ray

# Several processes compute on the same cores here. Threads that wait for others by spinning would keep those from
# running for which they wait. Read when torch is loaded, by this process and all that it starts.
os.environ["OMP_WAIT_POLICY"] = "passive"

from tests import faults
from tests.stores import CREDENTIALS, GatedFileSystem, moto

# How long an example takes is the machine's affair: it is shared.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")

# Minutes each, of which much is waiting for clusters.
LONG = (
    "test_nodes.py",
    "test_train.py",
    "test_soak.py",
    "test_predict.py",
    "test_infra_aws.py",
    "test_faults.py",
    "test_submit.py",
    "test_watching.py",
    "test_streams.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the processes that share the suite, file by file, none begins a long file when the others are done."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="session", autouse=True)
def ray_files() -> Iterator[Path]:
    """Where all of Ray's processes leave their files. Its sockets' paths must be short, so it is no tmp_path."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_TMPDIR", str(folder))
        yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def store_proxy() -> Iterator[faults.Proxy]:
    """What stands before an S3 server in a process of its own, and lets all pass unless a test plans faults."""
    with moto() as endpoint, faults.proxy(endpoint, fraction=0) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def object_store(store_proxy: faults.Proxy) -> Iterator[str]:
    """The endpoint of a real object store. The environment points to it until the session ends."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": store_proxy.endpoint}.items():
            environment.setenv(name, value)
        yield store_proxy.endpoint


@pytest.fixture
def bucket(object_store: str) -> str:
    """The URI of a fresh, empty bucket."""
    name = f"bucket-{uuid.uuid4().hex}"
    boto3.session.Session().client("s3", endpoint_url=object_store).create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture
def gated() -> type[GatedFileSystem]:
    """A store, empty and held, at gated://."""
    fsspec.register_implementation("gated", GatedFileSystem, clobber=True)
    GatedFileSystem.store.clear()
    GatedFileSystem.gate.clear()
    GatedFileSystem.begun = GatedFileSystem.under_way = GatedFileSystem.most = 0
    return GatedFileSystem


@pytest.fixture(scope="session")
def ray_cluster(object_store: str) -> Iterator[None]:
    """One local Ray cluster for all tests that run a job in this process. Its workers know the object store."""
    del object_store
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # how soon a finished worker is noticed
        environment.setenv("RAY_metrics_report_interval_ms", "5000")  # every second, it takes a tenth of a core
        ray.init(
            address="local",  # not the cluster that somebody else started on this machine
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
