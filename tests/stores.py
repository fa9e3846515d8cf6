"""Stores for tests: a real object store, moto's server in a process of its own; and one that can be held."""

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

from fsspec.implementations.memory import MemoryFileSystem

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def moto() -> Iterator[str]:
    """The endpoint of an S3 server, which takes any credentials."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    # Short pages, so that a listing of a few dozen objects already has more than one.
    settings = os.environ | {"MOTO_S3_DEFAULT_MAX_KEYS": "20"}
    server = subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until_it_answers(server, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=10)


@contextmanager
def enforced(endpoint: str) -> Iterator[None]:
    """The server refuses whom it does not know, and what policies do not allow."""

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


class GatedFileSystem(MemoryFileSystem):
    """Holds every read back until `gate` opens, and counts those that have begun and those under way."""

    protocol = "gated"
    store = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    gate = threading.Event()
    counting = threading.Condition()
    begun = under_way = most = 0

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
