"""A second S3 implementation, npm's s3rver: what holds on the first is not a habit of moto's."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import boto3
import pytest

from matting import shards, storage
from matting.storage import NotFoundError, StorageError
from tests import jobs
from tests.drawing import write_folders

PACKAGE = "s3rver@3.7.1"


@pytest.fixture(scope="module")
def server(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a server in a process of its own. The environment points to it."""
    if not shutil.which("npm"):
        pytest.skip(f"{PACKAGE} is installed with npm, which is not here")
    place = pytestconfig.cache.mkdir("s3rver")  # installed once for all runs
    program = place / "node_modules/s3rver/bin/s3rver.js"
    if not program.exists():
        install = ["npm", "install", "--prefix", str(place), "--no-audit", "--no-fund", PACKAGE]
        done = subprocess.run(install, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"npm cannot install {PACKAGE}: {done.stderr.strip()}")
    command = ["node", str(program), "--directory", str(tmp_path_factory.mktemp("s3rver")), "--address", "127.0.0.1"]
    with subprocess.Popen([*command, "--port", "0", "--silent"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            line = next(line for line in process.stdout if "listening" in line)
            with pytest.MonkeyPatch.context() as environment:
                environment.setenv("AWS_ENDPOINT_URL", f"http://{line.split()[-1]}")
                environment.setenv("AWS_ACCESS_KEY_ID", "S3RVER")
                environment.setenv("AWS_SECRET_ACCESS_KEY", "S3RVER")
                environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
                environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
                boto3.session.Session().client("s3").create_bucket(Bucket="second")
                yield "s3://second"
        finally:
            process.terminate()


def test_objects(server, caplog):
    storage.check_writable(f"{server}/out")
    contents = {"empty": b"", "z/ä€😀 #%20?.png": b"123", "large": os.urandom(65 * 2**20)}  # which goes up in parts
    for name, data in contents.items():
        storage.write_bytes(f"{server}/out/{name}", data)
    files = storage.list_files(f"{server}/out")
    assert {file.key: file.size for file in files} == {name: len(data) for name, data in contents.items()}
    for file in files:
        place = f"{server}/out/{file.key}"
        assert storage.stat(place) == file._replace(key=file.key.rpartition("/")[2])
        assert storage.read_bytes(place) == contents[file.key]
        storage.delete(place)
        storage.delete(place)
        assert not storage.exists(place)
    with pytest.raises(NotFoundError):
        storage.list_files(f"{server}/out")
    with pytest.raises(StorageError, match="the bucket does not exist; create it"):
        storage.list_files("s3://another/out")
    assert caplog.records == []


def test_without_a_list_of_unfinished_uploads_they_stay(server, caplog):
    assert storage.remove_partials(f"{server}/out", datetime.now(UTC)) == 0
    (record,) = caplog.records
    assert "Unfinished uploads of dead runs may stay" in record.message
    assert "NotImplemented" in record.message


def test_a_job(server, tmp_path: Path):
    write_folders(tmp_path, 12, 40)
    for path in sorted(tmp_path.rglob("*.png")):
        storage.write_bytes(f"{server}/pairs/{path.relative_to(tmp_path)}", path.read_bytes())
    code, printed = jobs.run("pack", f"--pairs={server}/pairs", f"--output={server}/packed", "--split-seed=2")
    assert code == 0, printed
    assert "Packed 12 pairs" in printed
    description = shards.read_description(f"{server}/packed")
    index = shards.read_index(f"{server}/packed", description)
    packed = sorted(image for _, image, _ in shards.read_pairs(index))
    assert packed == sorted(path.read_bytes() for path in (tmp_path / "images").iterdir())
