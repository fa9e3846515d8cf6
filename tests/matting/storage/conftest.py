"""Fixtures of the storage tests: a bucket for a module, a folder with one object, retries without pauses."""

import uuid

import pytest
from tenacity import wait_none

from matting.storage import retry, store
from tests.support.stores import s3_client


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_WAIT", wait_none())


@pytest.fixture(scope="module")
def own_bucket(object_store: str) -> str:
    """The URI of a bucket for one module, whose clients are built once."""
    del object_store
    name = f"bucket-{uuid.uuid4().hex}"
    s3_client().create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture
def folder(own_bucket: str) -> str:
    """The URI of a folder with one object: a.bin, of 100 bytes."""
    folder = f"{own_bucket}/{uuid.uuid4().hex}"
    store.write_bytes(f"{folder}/a.bin", bytes(range(100)))
    return folder
