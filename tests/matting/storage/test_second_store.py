"""A second implementation of the S3 API, npm's s3rver, so that nothing depends on the behavior of moto."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from matting.data import shards
from matting.storage import store
from matting.storage.errors import NotFoundError, StorageError
from tests.support import jobs
from tests.support.drawing import write_folders
from tests.support.stores import s3_client

PACKAGE = "s3rver@3.7.1"


@pytest.fixture(scope="module")
def server(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run the server in a process of its own, with the environment set for it. Yields the URI of a bucket."""
    if not shutil.which("npm"):
        pytest.skip(f"{PACKAGE} is installed with npm, which is not here")
    cache = pytestconfig.cache.mkdir("s3rver")  # installed once for all runs
    program = cache / "node_modules/s3rver/bin/s3rver.js"
    if not program.exists():
        install = ["npm", "install", "--prefix", str(cache), "--no-audit", "--no-fund", PACKAGE]
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
                s3_client().create_bucket(Bucket="second")
                yield "s3://second"
        finally:
            process.terminate()


@pytest.mark.slow
def test_objects_are_written_listed_and_deleted(server, caplog):
    store.check_writable(f"{server}/out")
    contents = {
        "empty": b"",
        "z/ä€😀 #%20?.png": b"123",
        "large": os.urandom(65 * 2**20),
    }  # "large" is uploaded in parts
    for name, data in contents.items():
        store.write_bytes(f"{server}/out/{name}", data)
    files = store.list_files(f"{server}/out")
    assert {file.key: file.size for file in files} == {name: len(data) for name, data in contents.items()}
    for file in files:
        uri = f"{server}/out/{file.key}"
        assert store.stat(uri) == file._replace(key=file.key.rpartition("/")[2])
        assert store.read_bytes(uri) == contents[file.key]
        store.delete(uri)
        store.delete(uri)
        assert not store.exists(uri)
    with pytest.raises(NotFoundError):
        store.list_files(f"{server}/out")
    with pytest.raises(StorageError, match="the bucket does not exist; create it"):
        store.list_files("s3://another/out")
    assert caplog.records == []


def test_unsupported_list_of_uploads_is_a_warning(server, caplog):
    assert store.remove_partials(f"{server}/out", datetime.now(UTC)) == 0
    (record,) = caplog.records
    assert "Unfinished uploads of dead runs may stay" in record.message
    assert "NotImplemented" in record.message


@pytest.mark.slow
def test_pack_runs(server, tmp_path: Path):
    write_folders(tmp_path, 12, 40)
    for path in sorted(tmp_path.rglob("*.png")):
        store.write_bytes(f"{server}/pairs/{path.relative_to(tmp_path)}", path.read_bytes())
    code, printed = jobs.run("pack", f"--pairs={server}/pairs", f"--output={server}/packed", "--split-seed=2")
    assert code == 0, printed
    assert "Packed 12 pairs" in printed
    description = shards.read_description(f"{server}/packed")
    index = shards.read_index(f"{server}/packed", description)
    packed = sorted(image for _, image, _ in shards.read_pairs(index))
    assert packed == sorted(path.read_bytes() for path in (tmp_path / "images").iterdir())
