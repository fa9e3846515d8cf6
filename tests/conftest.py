"""Fixtures that several test modules share: a real object store, and fresh buckets in it."""

import logging
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator

import boto3
import pytest
import ray


@pytest.fixture(scope="session")
def object_store() -> Iterator[str]:
    """The endpoint of an S3 server in a process of its own. The environment points to it until the session ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    # Short pages, so that a listing of a few dozen objects already has more than one.
    settings = os.environ | {"MOTO_S3_DEFAULT_MAX_KEYS": "20"}
    server = subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", endpoint)
        environment.setenv("AWS_ACCESS_KEY_ID", "testing")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        try:
            _wait_until_it_answers(server, port)
            yield endpoint
        finally:
            server.terminate()
            server.wait(timeout=10)


@pytest.fixture
def bucket(object_store: str) -> str:
    """The URI of a fresh, empty bucket."""
    name = f"bucket-{uuid.uuid4().hex}"
    boto3.session.Session().client("s3", endpoint_url=object_store).create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def ray_cluster(object_store: str) -> Iterator[None]:
    """One local Ray cluster for all tests that run a job in this process. Its workers know the object store."""
    del object_store
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # how soon a finished worker is noticed
        ray.init(
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


def _wait_until_it_answers(server: subprocess.Popen, port: int, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"the S3 server ended with exit code {server.returncode}; is moto[server] installed?")
        with socket.socket() as client:
            client.settimeout(0.1)
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"the S3 server did not answer on port {port} within {seconds:.0f} s")
