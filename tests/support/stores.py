"""Stores for tests: moto's S3 server in a process of its own, its users and policies, and a store that blocks reads."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from matting.storage import s3

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}

READ_ACTIONS = ("s3:ListBucket", "s3:HeadBucket", "s3:GetObject")


@contextmanager
def moto() -> Iterator[str]:
    """Run an S3 server that accepts any credentials. Yields its endpoint."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    # Short pages, so that a listing of a few dozen objects has more than one.
    settings = os.environ | {"MOTO_S3_DEFAULT_MAX_KEYS": "20"}
    server = subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(server, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=10)


def free_port() -> int:
    """Return the number of a port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(server: subprocess.Popen, port: int, seconds: float = 30) -> None:
    """Wait until a server answers on a port."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with exit code {server.returncode}: {server.args}")
        with socket.socket() as client:
            client.settimeout(0.1)
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"the server did not answer on port {port} within {seconds:.0f} s")


@contextmanager
def enforced(endpoint: str) -> Iterator[None]:
    """Let the server at `endpoint` refuse unknown credentials and requests that no policy allows."""

    def enforce_after(requests: str) -> str:
        url = f"{endpoint}/moto-api/reset-auth"
        request = urllib.request.Request(url, requests.encode(), {"Content-Type": "text/plain"}, method="POST")
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["PREVIOUS_INITIAL_NO_AUTH_ACTION_COUNT"]

    before = enforce_after("0")
    try:
        yield
    finally:
        enforce_after(before)


def s3_client() -> Any:
    """Return a boto3 client for the endpoint and credentials in the environment."""
    return boto3.session.Session().client("s3")


def split_s3(uri: str) -> tuple[str, str]:
    """Return bucket and key of an S3 URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def new_access_key(user: str, *actions: str) -> dict[str, str]:
    """Create a user who may do these actions to everything. Return their access key."""
    iam = boto3.session.Session().client("iam")
    iam.create_user(UserName=user)
    statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName=user, PolicyName="may", PolicyDocument=policy)
    key = iam.create_access_key(UserName=user)["AccessKey"]
    return {"AccessKeyId": key["AccessKeyId"], "SecretAccessKey": key["SecretAccessKey"]}


def access_key_settings(key: dict[str, str]) -> dict[str, str]:
    """Return the environment variables for an access key."""
    return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}


@contextmanager
def credentials(monkeypatch: pytest.MonkeyPatch, **settings: str) -> Iterator[None]:
    """Give this process the AWS credentials of these environment variables and no others, as if newly started."""
    caches = (s3._client, s3._region)
    with monkeypatch.context() as environment:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
            environment.delenv(name)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            environment.setenv(name, os.devnull)
        for name, value in settings.items():
            environment.setenv(name, value)
        for cache in caches:
            cache.cache_clear()
        try:
            yield
        finally:
            for cache in caches:
                cache.cache_clear()


class GatedFileSystem(MemoryFileSystem):
    """Store whose reads block until `gate` opens. It counts the reads that have begun and those under way."""

    protocol = "gated"
    store = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    gate = threading.Event()
    counting = threading.Condition()
    begun = under_way = most = 0  # most: maximum of under_way

    def _open(self, path, mode="rb", **options):
        kind = type(self)
        if mode == "rb":
            with kind.counting:
                kind.begun += 1
                kind.under_way += 1
                kind.most = max(kind.most, kind.under_way)
                kind.counting.notify_all()
            kind.gate.wait(10)
            with kind.counting:
                kind.under_way -= 1
        return super()._open(path, mode, **options)
