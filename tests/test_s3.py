"""s3 and attempts: what becomes of requests that a network or a busy store spoils, and of those that are refused."""

import io
import json
import logging
import os
import pickle
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError
from tenacity import wait_none

from jobs import pack, predict, train
from jobs.workload import untrained
from matting import attempts, checkpoint, photos, s3, storage
from matting.storage import NotFoundError, StorageError
from matting.unet import UNetConfig
from tests.drawing import write_folders
from tests.faults import KINDS
from tests.stores import enforced

MIB = 2**20
LATER = datetime.now(UTC) + timedelta(days=1)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "_WAIT", wait_none())


@pytest.fixture(scope="module")
def own_bucket(object_store: str) -> str:
    """The URI of a bucket for this module, so that its clients are made once."""
    del object_store
    name = f"bucket-{uuid.uuid4().hex}"
    client().create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture
def folder(own_bucket: str) -> str:
    """Holds a.bin, of 100 bytes."""
    folder = f"{own_bucket}/{uuid.uuid4().hex}"
    storage.write_bytes(f"{folder}/a.bin", bytes(range(100)))
    return folder


def client():
    return boto3.session.Session().client("s3")


def read_range(folder: str) -> bytes:
    filesystem, path = storage.filesystem(f"{folder}/a.bin")
    with filesystem.open_input_file(path) as stream:
        return stream.read_at(10, 20)


def write_through_filesystem(folder: str) -> None:
    filesystem, path = storage.filesystem(f"{folder}/b.bin")
    with filesystem.open_output_stream(path) as stream:
        stream.write(b"12")
        stream.write(b"345")


# What a job does to a folder that holds a.bin, and what it gets.
OPERATIONS = {
    "open": (lambda folder: storage.filesystem(folder)[1], lambda folder: folder.removeprefix("s3://")),
    "list": (lambda folder: [file.key for file in storage.list_files(folder)], ["a.bin"]),
    "look at": (lambda folder: storage.stat(f"{folder}/a.bin").size, 100),
    "read": (lambda folder: storage.read_bytes(f"{folder}/a.bin"), bytes(range(100))),
    "read a range": (read_range, bytes(range(20, 30))),
    "write": (lambda folder: storage.write_bytes(f"{folder}/b.bin", b"12345"), None),
    "write through the filesystem": (write_through_filesystem, None),
    "delete": (lambda folder: storage.delete(f"{folder}/c.bin"), None),
}


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_request_of_an_operation_may_fail_once(folder, store_proxy, caplog, operation):
    operate, expected = OPERATIONS[operation]
    if operation == "open":
        s3._region.cache_clear()
        expected = expected(folder)
    before = store_proxy.requests
    operate(folder)
    requests = store_proxy.requests - before
    assert caplog.records == []
    for place in range(requests):
        for kind in KINDS:
            if operation == "open":
                s3._region.cache_clear()
            caplog.clear()
            store_proxy.next_faults.extend([None] * place + [kind])
            assert operate(folder) == expected
            assert not store_proxy.next_faults
            if kind == "delay":
                assert caplog.records == []
                continue
            (record,) = caplog.records
            assert (record.name, record.levelno) == ("matting.attempts", logging.WARNING)
            assert folder in record.message
            assert "attempt 1 of 6, waiting 0.0 s: " in record.message
    if "write" in operation:
        assert storage.read_bytes(f"{folder}/b.bin") == b"12345"


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(
    ("kind", "advice"), [("throttle", "the store asks for fewer requests"), ("refuse", "the connection broke")]
)
def test_in_the_end_an_error_says_how_often_it_was_tried(folder, store_proxy, caplog, kind, advice):
    for call, verb in ((storage.read_bytes, "read"), (storage.stat, "look at"), (storage.delete, "delete")):
        caplog.clear()
        store_proxy.next_faults.extend([kind] * 6)
        with pytest.raises(StorageError, match=rf"Cannot {verb} {folder}/a\.bin for now, tried 6 times: {advice}"):
            call(f"{folder}/a.bin")
        assert not store_proxy.next_faults
        assert [record.args[2] for record in caplog.records] == [1, 2, 3, 4, 5]


class Short(io.BytesIO):
    """Gives less than it has."""

    def read(self, count: int | None = -1) -> bytes:
        return super().read(count)[:-1]


@pytest.mark.usefixtures("no_waiting")
def test_a_read_that_is_short_without_an_error_is_one():
    with pa.PythonFile(Short(b"12345"), mode="r") as stream:
        with pytest.raises(StorageError, match=r"tried 6 times: the connection broke.*ShortRead: 2 bytes came of 3"):
            attempts.attempt("s3://b/k", "read", lambda: s3.read_range(stream, 1, 3))
        assert s3.read_range(stream, 5, 3) == b""


@pytest.mark.usefixtures("no_waiting")
def test_a_write_that_fails_leaves_what_was_there(folder, store_proxy):
    for kind in ("cut request", "throttle", "refuse"):
        store_proxy.next_faults.extend([kind] * 6)
        with pytest.raises(StorageError, match=r"Cannot write .* tried 6 times"):
            storage.write_bytes(f"{folder}/a.bin", bytes(1000))
    assert storage.read_bytes(f"{folder}/a.bin") == bytes(range(100))


def test_other_libraries_read_and_write_through_the_filesystem(folder):
    filesystem, path = storage.filesystem(folder)
    for name in ("run/1.parquet", "run/deep/2.parquet"):
        filesystem.create_dir(f"{path}/run/deep")
        pq.write_table(pa.table({"a": range(100)}), f"{path}/{name}", filesystem=filesystem)
    assert pq.read_table(f"{path}/run", filesystem=filesystem).num_rows == 200
    assert filesystem.get_file_info(f"{path}/run/1.parquet").is_file
    with pytest.raises(NotFoundError, match=r"run/3\.parquet: it does not exist"):
        filesystem.open_input_file(f"{path}/run/3.parquet")


def test_the_filesystem_travels_to_other_processes_without_secrets(folder):
    filesystem, path = storage.filesystem(f"{folder}/a.bin")
    data = pickle.dumps(filesystem)
    assert b"testing" not in data
    assert pickle.loads(data) == filesystem
    assert pickle.loads(data).open_input_file(path).read() == bytes(range(100))


# Uploads in parts -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_PART", 5 * MIB)  # the least that stores take
    in_parts = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB, use_threads=False)
    monkeypatch.setattr(s3, "_IN_PARTS", in_parts)


def unfinished(folder: str) -> list[str]:
    bucket, _, prefix = folder.removeprefix("s3://").partition("/")
    uploads = client().list_multipart_uploads(Bucket=bucket, Prefix=f"{prefix}/").get("Uploads", [])
    return [upload["Key"].removeprefix(f"{prefix}/") for upload in uploads]


def begin_upload(folder: str, key: str) -> None:
    bucket, _, prefix = folder.removeprefix("s3://").partition("/")
    client().create_multipart_upload(Bucket=bucket, Key=f"{prefix}/{key}")


@pytest.mark.usefixtures("no_waiting", "small_parts")
def test_a_large_object_is_whole_whichever_of_its_requests_fails(folder, store_proxy, caplog):
    before, data = store_proxy.requests, os.urandom(6 * MIB)
    storage.write_bytes(f"{folder}/large", data)
    requests = store_proxy.requests - before
    assert requests == 4  # begin, two parts, complete
    for place in range(requests):
        caplog.clear()
        data = data[::-1]
        store_proxy.next_faults.extend([None] * place + ["cut request"])
        storage.write_bytes(f"{folder}/large", data)
        assert len(caplog.records) == 1
        assert storage.read_bytes(f"{folder}/large") == data
    assert unfinished(folder) == []


@pytest.mark.usefixtures("small_parts")
def test_uploads_of_dead_runs_are_aborted_and_a_living_one_begins_again(folder, store_proxy, caplog):
    begin_upload(f"{folder}-2", "of-a-neighbour")
    begin_upload(folder, "deep/dead")
    assert storage.remove_partials(folder, datetime(2001, 1, 1, tzinfo=UTC)) == 0
    assert storage.remove_partials(folder, LATER) == 1
    assert unfinished(folder) == []

    data, delays = os.urandom(6 * MIB), store_proxy.faults["delay"]
    store_proxy.next_faults.extend([None, None, None, "delay"])  # the last of the upload's requests
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(storage.write_bytes, f"{folder}/large", data)
        while store_proxy.faults["delay"] == delays:
            time.sleep(0.01)
        assert storage.remove_partials(folder, LATER) == 1
        writing.result()
    assert storage.read_bytes(f"{folder}/large") == data
    (record,) = caplog.records
    assert "CompleteMultipartUpload" in record.message
    assert unfinished(f"{folder}-2") == ["of-a-neighbour"]


@pytest.mark.usefixtures("no_waiting")
def test_an_aborted_upload_is_trouble_that_passes():
    answers = iter([ClientError({"Error": {"Code": "NoSuchUpload"}}, "UploadPart"), "written"])

    def write() -> str:
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    assert attempts.attempt("s3://b/k", "write", write) == "written"


# What is refused ------------------------------------------------------------------------------------------------------


class Refusing(BaseHTTPRequestHandler):
    """Answers every request with the server's `refusal`: a status and a code."""

    protocol_version = "HTTP/1.1"

    def handle_one(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests += 1
        status, code = self.server.refusal
        body = b"" if self.command == "HEAD" else f"<Error><Code>{code}</Code><Message>No.</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("x-amz-bucket-region", "eu-west-3")
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET = do_PUT = do_DELETE = handle_one

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def refusing_store() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("object_store")
@pytest.mark.parametrize(
    ("status", "code", "cure"),
    [
        (400, "ExpiredToken", "the credentials have expired; renew them"),
        (403, "InvalidAccessKeyId", "the store does not know these credentials; check AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "the store does not know these credentials"),
        (403, "AccessDenied", "access denied; allow these credentials s3:ListBucket on the bucket and"),
        (400, "AuthorizationHeaderMalformed", "the bucket is in another region; set AWS_REGION"),
        (301, "PermanentRedirect", "the bucket is in another region; set AWS_REGION"),
        (404, "NoSuchBucket", "the bucket does not exist; create it"),
    ],
)
def test_what_is_refused_is_not_asked_again(refusing_store, monkeypatch, caplog, status, code, cure):
    refusing_store.refusal, refusing_store.requests = (status, code), 0
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{refusing_store.server_address[1]}")
    uri = f"s3://bucket-{uuid.uuid4().hex}/out"
    began = time.monotonic()
    with pytest.raises(StorageError, match=rf"^Cannot write {uri}/.*: {cure}") as caught:
        storage.check_writable(uri)
    assert time.monotonic() - began < 30
    assert "tried" not in str(caught.value)
    assert caplog.records == []
    assert refusing_store.requests <= 3


def new_key(user: str, *actions: str) -> dict[str, str]:
    """Of a new user who may do this to everything."""
    iam = boto3.session.Session().client("iam")
    iam.create_user(UserName=user)
    statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName=user, PolicyName="may", PolicyDocument=policy)
    key = iam.create_access_key(UserName=user)["AccessKey"]
    return {"AccessKeyId": key["AccessKeyId"], "SecretAccessKey": key["SecretAccessKey"]}


READS = ("s3:ListBucket", "s3:HeadBucket", "s3:GetObject")


@pytest.fixture(scope="module")
def inputs(own_bucket: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Pairs and a checkpoint in the store."""
    local = tmp_path_factory.mktemp("inputs")
    write_folders(local, 12, 32)
    for path in local.rglob("*.png"):
        storage.write_bytes(f"{own_bucket}/pairs/{path.relative_to(local)}", path.read_bytes())
    model = untrained(UNetConfig(width=4))
    checkpoint.save(f"{own_bucket}/model", model, checkpoint.describe(model, 32, {}, {}), {})
    return {"pairs": f"{own_bucket}/pairs", "photos": f"{own_bucket}/pairs/images", "model": f"{own_bucket}/model"}


@contextmanager
def credentials(monkeypatch: pytest.MonkeyPatch, **settings: str) -> Iterator[None]:
    """The process as one that begins with these settings, and has no other credentials."""
    forget = (s3._client.cache_clear, s3._region.cache_clear)
    with monkeypatch.context() as environment:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
            environment.delenv(name)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            environment.setenv(name, os.devnull)
        for name, value in settings.items():
            environment.setenv(name, value)
        for each in forget:
            each()
        try:
            yield
        finally:
            for each in forget:
                each()


def jobs_that_write(inputs: dict[str, str], output: str) -> dict[str, tuple]:
    return {
        "pack": (pack.main, [f"--pairs={inputs['pairs']}", f"--output={output}"]),
        "train": (train.main, [f"--data={inputs['pairs']}", f"--output={output}", "--split-seed=2"]),
        "predict": (
            predict.main,
            [f"--checkpoint={inputs['model']}", f"--images={inputs['photos']}", f"--output={output}"],
        ),
    }


@pytest.mark.parametrize("job", ["pack", "train", "predict"])
def test_a_job_that_may_not_write_says_so_before_it_works(inputs, folder, object_store, monkeypatch, caplog, job):
    main, options = jobs_that_write(inputs, folder)[job]
    key = new_key(f"reader-{uuid.uuid4().hex}", *READS)
    settings = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    began = time.monotonic()
    with enforced(object_store), credentials(monkeypatch, **settings):
        denied = rf"^Cannot write {folder}/.*: access denied; allow these credentials .*s3:PutObject"
        with pytest.raises(StorageError, match=denied):
            main(options)
    assert time.monotonic() - began < 30
    assert caplog.records == []
    assert [file.key for file in storage.list_files(folder)] == ["a.bin"]


def test_unfinished_uploads_that_may_not_be_listed_stay_with_a_warning(folder, object_store, monkeypatch, caplog):
    key = new_key(f"reader-{uuid.uuid4().hex}", *READS)
    settings = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    with enforced(object_store), credentials(monkeypatch, **settings):
        assert storage.remove_partials(folder, LATER) == 0
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "Unfinished uploads of dead runs may stay" in record.message
    assert "access denied" in record.message


@pytest.mark.parametrize("job", ["pack", "train", "predict"])
def test_a_job_without_credentials_says_so_before_it_works(inputs, folder, monkeypatch, caplog, job):
    main, options = jobs_that_write(inputs, folder)[job]
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # for EC2's metadata: takes connections and says nothing
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        missing = "no credentials were found; set AWS_PROFILE or AWS_ACCESS_KEY_ID"
        with credentials(monkeypatch), pytest.raises(StorageError, match=missing):
            main(options)
    assert time.monotonic() - began < 30
    assert [record for record in caplog.records if record.name.startswith("matting")] == []


PROCESS = """
import datetime, json, pathlib, sys
keys = pathlib.Path(sys.argv[1])
key, *left = keys.read_text().splitlines()
keys.write_text("\\n".join(left or [key]))
hours = 1 if not left else 0
until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=hours, seconds=2)
print(json.dumps({"Version": 1, "Expiration": until.isoformat(), **json.loads(key)}))
"""


def test_pyarrow_has_the_endpoint_and_credentials_that_boto3_finds_also_when_they_expire(
    folder, object_store, tmp_path, monkeypatch
):
    names = [f"user-{uuid.uuid4().hex}" for _ in range(2)]
    keys = [new_key(name, *READS, "s3:PutObject") for name in names]
    (tmp_path / "keys").write_text("\n".join(map(json.dumps, keys)))
    (tmp_path / "process.py").write_text(PROCESS)
    (tmp_path / "config").write_text(
        f"[profile team]\nregion = us-east-1\nendpoint_url = {object_store}\n"
        f"credential_process = {sys.executable} {tmp_path / 'process.py'} {tmp_path / 'keys'}\n"
    )
    settings = {"AWS_PROFILE": "team", "AWS_CONFIG_FILE": str(tmp_path / "config")}
    with enforced(object_store), credentials(monkeypatch, **settings), monkeypatch.context() as environment:
        environment.delenv("AWS_ENDPOINT_URL")
        environment.delenv("AWS_DEFAULT_REGION")
        filesystem, path = storage.filesystem(f"{folder}/a.bin")
        assert s3.connect(path)[1].region == "us-east-1"
        storage.write_bytes(f"{folder}/b.bin", b"12345")
        assert storage.read_bytes(f"{folder}/b.bin") == b"12345"
        assert filesystem.open_input_file(path).read_at(10, 20) == bytes(range(20, 30))
        assert (tmp_path / "keys").read_text() == json.dumps(keys[1])


@pytest.mark.usefixtures("no_waiting")
def test_photos_in_a_parquet_file_bear_trouble_and_name_what_is_lost_to_it(folder, store_proxy):
    uri, contents = f"{folder}/photos.parquet", [os.urandom(2000) for _ in range(6)]
    filesystem, path = storage.filesystem(uri)
    table = pa.table({"key": [str(number) for number in range(6)], "image": contents})
    pq.write_table(table, path, filesystem=filesystem, row_group_size=3)
    photos_ = photos.find_photos(uri).table
    store_proxy.next_faults.extend(["refuse", None, "throttle", None, "cut answer"])
    assert dict(photos.read_photos(photos_, ahead=1)) == dict(enumerate(contents))
    store_proxy.next_faults.extend([None] * 3 + ["refuse"] * 6)  # a row group's bytes, after what describes them
    found = dict(photos.read_photos(photos_, ahead=1))
    lost = [number for number, data in found.items() if isinstance(data, str)]
    assert lost in ([0, 1, 2], [3, 4, 5], list(range(6)))
    assert all(found[number] == contents[number] for number in found if number not in lost)
    assert all("tried 6 times: the connection broke" in found[number] for number in lost)
