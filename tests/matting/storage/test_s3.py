"""S3: listings, uploads in parts, regions, credentials, and requests that a store refuses."""

import hashlib
import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest
from boto3.s3.transfer import TransferConfig

from matting.storage import s3, store
from matting.storage.errors import NotFoundError, StorageError, TransientStorageError
from tests.support.stores import (
    READ_ACTIONS,
    access_key_settings,
    credentials,
    enforced,
    new_access_key,
    s3_client,
    split_s3,
)

MIB = 2**20
LATER = datetime.now(UTC) + timedelta(days=1)


def test_long_listing_leaves_out_folder_markers(bucket):
    name, _ = split_s3(bucket)
    s3_client().put_object(Bucket=name, Key="photos/", Body=b"")
    s3_client().put_object(Bucket=name, Key="photos/full/", Body=b"a body, so it is a file")
    keys = [f"{number:03}.jpg" for number in range(45)]
    for key in keys:
        store.write_bytes(f"{bucket}/photos/{key}", key.encode())
    assert [file.key for file in store.list_files(f"{bucket}/photos")] == [*keys, "full/"]


def test_small_object_is_sent_in_one_request(bucket):
    store.write_bytes(f"{bucket}/a.png", b"content")
    (file,) = store.list_files(bucket)
    assert file.etag == hashlib.md5(b"content").hexdigest()  # the ETag of a multipart upload ends in "-1"


def test_object_is_read_by_one_request(bucket, store_proxy):
    uri = f"{bucket}/a.jpg"
    for content in (b"12345", b""):
        store.write_bytes(uri, content)
        before = store_proxy.requests
        assert store.read_bytes(uri, 5) == content
        assert store_proxy.requests - before == 1


def test_too_large_object_is_not_fetched(bucket, store_proxy):
    uri = f"{bucket}/a.jpg"
    store.write_bytes(uri, bytes(5))
    before = store_proxy.requests
    with pytest.raises(StorageError, match="it has 5 bytes, more than the limit of 4"):
        store.read_bytes(uri, 4)
    assert store_proxy.requests - before == 1
    assert store.read_bytes(uri) == bytes(5)


@pytest.mark.usefixtures("object_store")
def test_region_is_the_bucket_s():
    name = f"bucket-{uuid.uuid4().hex}"
    configuration = {"LocationConstraint": "eu-west-3"}
    boto3.session.Session().client("s3", region_name="eu-west-3").create_bucket(
        Bucket=name, CreateBucketConfiguration=configuration
    )
    assert s3.connect(f"{name}/a/b")[1].region == "eu-west-3"


@pytest.mark.usefixtures("object_store")
@pytest.mark.parametrize(
    "call", [store.list_files, store.read_bytes, store.exists, store.check_writable, store.filesystem]
)
def test_missing_bucket_is_named(call):
    uri = f"s3://bucket-{uuid.uuid4().hex}/a.jpg"
    with pytest.raises(StorageError, match="the bucket does not exist; create it") as caught:
        call(uri)
    assert uri in str(caught.value)
    assert not isinstance(caught.value, NotFoundError)


@pytest.mark.usefixtures("object_store", "no_waiting")
def test_unreachable_store_is_named(monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(TransientStorageError, match="cannot connect; check the network, AWS_ENDPOINT_URL"):
            store.list_files(f"s3://bucket-{uuid.uuid4().hex}")


def test_password_in_the_endpoint_is_refused_unrepeated(object_store, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", object_store.replace("http://", "http://user:hunter2@"))
    with pytest.raises(StorageError, match="has a password in it") as caught:
        store.exists("s3://bucket-of-an-endpoint-with-a-password/a")
    assert "hunter2" not in str(caught.value)


# Uploads in parts -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_PART", 5 * MIB)  # the minimum that stores accept
    in_parts = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB, use_threads=False)
    monkeypatch.setattr(s3, "_IN_PARTS", in_parts)


def unfinished_uploads(folder: str) -> list[str]:
    bucket, prefix = split_s3(folder)
    uploads = s3_client().list_multipart_uploads(Bucket=bucket, Prefix=f"{prefix}/").get("Uploads", [])
    return [upload["Key"].removeprefix(f"{prefix}/") for upload in uploads]


def begin_upload(folder: str, key: str) -> None:
    bucket, prefix = split_s3(folder)
    s3_client().create_multipart_upload(Bucket=bucket, Key=f"{prefix}/{key}")


@pytest.mark.usefixtures("no_waiting", "small_parts")
def test_multipart_upload_survives_any_fault(folder, store_proxy, caplog):
    before, data = store_proxy.requests, os.urandom(6 * MIB)
    store.write_bytes(f"{folder}/large", data)
    requests = store_proxy.requests - before
    assert requests == 4  # begin, two parts, complete
    for number in range(requests):
        caplog.clear()
        data = data[::-1]
        store_proxy.next_faults.extend([None] * number + ["cut request"])
        store.write_bytes(f"{folder}/large", data)
        assert len(caplog.records) == 1
        assert store.read_bytes(f"{folder}/large") == data
    assert unfinished_uploads(folder) == []


@pytest.mark.usefixtures("small_parts")
def test_aborted_live_upload_starts_again(folder, store_proxy, caplog):
    begin_upload(f"{folder}-2", "of-a-neighbor")
    begin_upload(folder, "deep/dead")
    assert store.remove_partials(folder, datetime(2001, 1, 1, tzinfo=UTC)) == 0
    assert store.remove_partials(folder, LATER) == 1
    assert unfinished_uploads(folder) == []

    data, delays = os.urandom(6 * MIB), store_proxy.faults["delay"]
    store_proxy.next_faults.extend([None, None, None, "delay"])  # the last request of the upload
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(store.write_bytes, f"{folder}/large", data)
        while store_proxy.faults["delay"] == delays:
            time.sleep(0.01)
        assert store.remove_partials(folder, LATER) == 1
        writing.result()
    assert store.read_bytes(f"{folder}/large") == data
    (record,) = caplog.records
    assert "CompleteMultipartUpload" in record.message
    assert unfinished_uploads(f"{folder}-2") == ["of-a-neighbor"]


def test_denied_list_of_uploads_is_a_warning(folder, object_store, monkeypatch, caplog):
    key = new_access_key(f"reader-{uuid.uuid4().hex}", *READ_ACTIONS)
    with enforced(object_store), credentials(monkeypatch, **access_key_settings(key)):
        assert store.remove_partials(folder, LATER) == 0
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "Unfinished uploads of dead runs may stay" in record.message
    assert "access denied" in record.message


# Refused requests -----------------------------------------------------------------------------------------------------


class RefusingHandler(BaseHTTPRequestHandler):
    """Answers every request with the server's `refusal`: a status and a code."""

    protocol_version = "HTTP/1.1"

    def refuse(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests += 1
        status, code = self.server.refusal
        body = b"" if self.command == "HEAD" else f"<Error><Code>{code}</Code><Message>No.</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("x-amz-bucket-region", "eu-west-3")
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET = do_PUT = do_DELETE = refuse

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def refusing_store() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), RefusingHandler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("object_store")
@pytest.mark.parametrize(
    ("status", "code", "advice"),
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
def test_refused_requests_are_not_retried(refusing_store, monkeypatch, caplog, status, code, advice):
    refusing_store.refusal, refusing_store.requests = (status, code), 0
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{refusing_store.server_address[1]}")
    uri = f"s3://bucket-{uuid.uuid4().hex}/out"
    began = time.monotonic()
    with pytest.raises(StorageError, match=rf"^Cannot write {uri}/.*: {advice}") as caught:
        store.check_writable(uri)
    assert time.monotonic() - began < 30
    assert not isinstance(caught.value, TransientStorageError)
    assert "tried" not in str(caught.value)
    assert caplog.records == []
    assert refusing_store.requests <= 3


@pytest.mark.parametrize(("action", "verb"), [("PutObject", "write"), ("GetObject", "read")])
def test_writable_check_names_the_denied_action(bucket, action, verb):
    name, _ = split_s3(bucket)
    deny = {"Effect": "Deny", "Principal": "*", "Action": f"s3:{action}", "Resource": f"arn:aws:s3:::{name}/*"}
    s3_client().put_bucket_policy(Bucket=name, Policy=json.dumps({"Version": "2012-10-17", "Statement": [deny]}))
    with pytest.raises(StorageError, match=f"Cannot {verb} {bucket}/.*: access denied; allow .* s3:{action}"):
        store.check_writable(bucket)


def test_unknown_credentials_are_named(bucket, object_store):
    store.write_bytes(f"{bucket}/a.jpg", b"x")

    with enforced(object_store):
        with pytest.raises(StorageError, match="the store does not know these credentials; check AWS_ACCESS_KEY_ID"):
            store.list_files(bucket)
        for call, advice in (
            (store.read_bytes, "the store does not know these credentials"),
            (store.exists, "access denied; allow these credentials"),  # the answer to a HEAD has no body
        ):
            with pytest.raises(StorageError, match=advice):
                call(f"{bucket}/a.jpg")
        with pytest.raises(StorageError, match=r"Cannot write .*the store does not know these credentials"):
            store.check_writable(bucket)


# A credential process: gives out the access keys in a file one after the other. All but the last have expired.
CREDENTIAL_PROCESS = """
import datetime, json, pathlib, sys
keys = pathlib.Path(sys.argv[1])
key, *left = keys.read_text().splitlines()
keys.write_text("\\n".join(left or [key]))
hours = 1 if not left else 0
until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=hours, seconds=2)
print(json.dumps({"Version": 1, "Expiration": until.isoformat(), **json.loads(key)}))
"""


def test_pyarrow_uses_renewed_credentials(folder, object_store, tmp_path, monkeypatch):
    names = [f"user-{uuid.uuid4().hex}" for _ in range(2)]
    keys = [new_access_key(name, *READ_ACTIONS, "s3:PutObject") for name in names]
    (tmp_path / "keys").write_text("\n".join(map(json.dumps, keys)))
    (tmp_path / "process.py").write_text(CREDENTIAL_PROCESS)
    (tmp_path / "config").write_text(
        f"[profile team]\nregion = us-east-1\nendpoint_url = {object_store}\n"
        f"credential_process = {sys.executable} {tmp_path / 'process.py'} {tmp_path / 'keys'}\n"
    )
    settings = {"AWS_PROFILE": "team", "AWS_CONFIG_FILE": str(tmp_path / "config")}
    with enforced(object_store), credentials(monkeypatch, **settings), monkeypatch.context() as environment:
        environment.delenv("AWS_ENDPOINT_URL")
        environment.delenv("AWS_DEFAULT_REGION")
        filesystem, path = store.filesystem(f"{folder}/a.bin")
        assert s3.connect(path)[1].region == "us-east-1"
        store.write_bytes(f"{folder}/b.bin", b"12345")
        assert store.read_bytes(f"{folder}/b.bin") == b"12345"
        assert filesystem.open_input_file(path).read_at(10, 20) == bytes(range(20, 30))
        assert (tmp_path / "keys").read_text() == json.dumps(keys[1])
