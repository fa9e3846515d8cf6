"""Jobs whose credentials are missing or do not suffice: they stop before they begin to work."""

import socket
import time
import uuid

import pytest

from jobs import pack, predict, train
from jobs.bench.workload import untrained_unet
from matting.nn import checkpoint
from matting.nn.unet import UNetConfig
from matting.storage import store
from matting.storage.errors import StorageError
from tests.support import stores
from tests.support.drawing import write_folders


@pytest.fixture(scope="module")
def inputs(object_store: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a bucket with pairs/, and an untrained checkpoint in model/."""
    del object_store
    name = f"bucket-{uuid.uuid4().hex}"
    stores.s3_client().create_bucket(Bucket=name)
    local = tmp_path_factory.mktemp("inputs")
    write_folders(local, 12, 32)
    for path in local.rglob("*.png"):
        store.write_bytes(f"s3://{name}/pairs/{path.relative_to(local)}", path.read_bytes())
    model = untrained_unet(UNetConfig(width=4))
    checkpoint.save(f"s3://{name}/model", model, checkpoint.describe(model, 32, {}, {}), {})
    return f"s3://{name}"


@pytest.fixture
def output(inputs: str) -> str:
    """The URI of a folder with one object."""
    output = f"{inputs}/{uuid.uuid4().hex}"
    store.write_bytes(f"{output}/a.bin", b"x")
    return output


def run_job(job: str, inputs: str, output: str) -> None:
    if job == "pack":
        pack.main([f"--pairs={inputs}/pairs", f"--output={output}"])
    elif job == "train":
        train.main([f"--data={inputs}/pairs", f"--output={output}", "--split-seed=2"])
    else:
        predict.main([f"--checkpoint={inputs}/model", f"--images={inputs}/pairs/images", f"--output={output}"])


@pytest.mark.parametrize("job", ["pack", "train", "predict"])
def test_denied_write_stops_a_job_at_once(inputs, output, object_store, monkeypatch, caplog, job):
    key = stores.new_access_key(f"reader-{uuid.uuid4().hex}", *stores.READ_ACTIONS)
    began = time.monotonic()
    with stores.enforced(object_store), stores.credentials(monkeypatch, **stores.access_key_settings(key)):
        denied = rf"^Cannot write {output}/.*: access denied; allow these credentials .*s3:PutObject"
        with pytest.raises(StorageError, match=denied):
            run_job(job, inputs, output)
    assert time.monotonic() - began < 30
    assert caplog.records == []
    assert [file.key for file in store.list_files(output)] == ["a.bin"]


@pytest.mark.slow
@pytest.mark.parametrize("job", ["pack", "train", "predict"])
def test_missing_credentials_stop_a_job_at_once(inputs, output, monkeypatch, caplog, job):
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # EC2's metadata service: accepts connections, never answers
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        missing = "no credentials were found; set AWS_PROFILE or AWS_ACCESS_KEY_ID"
        with stores.credentials(monkeypatch), pytest.raises(StorageError, match=missing):
            run_job(job, inputs, output)
    assert time.monotonic() - began < 30
    assert [record for record in caplog.records if record.name.startswith("matting")] == []
