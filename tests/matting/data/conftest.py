"""Fixtures of the tests of matting.data: places for collections of photos."""

import uuid
from pathlib import Path

import pytest


@pytest.fixture(params=["local", "s3", "fsspec"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URI of a location that is empty, in each kind of storage."""
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket')}/my photos#1"
    return {"local": f"{tmp_path}/my photos#1"}.get(request.param, f"memory://{uuid.uuid4().hex}/photos")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Path of a local folder that does not exist yet."""
    return str(tmp_path / "data")
