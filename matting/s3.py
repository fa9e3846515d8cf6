"""S3, for `storage`: objects by their paths, and a filesystem of them for other libraries.

A path is `bucket/key`, a folder's also `bucket`. boto3 finds endpoint, region and credentials in its standard order,
lists with ETags, writes and deletes. pyarrow reads, at half the CPU time, with what boto3 found. Neither tries twice:
a function here is one attempt, and raises what the clients raise; the filesystem's methods are `attempts`.

Knows no other schemes.
"""

import io
import re
import threading
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from typing import Any

import boto3
import pyarrow as pa
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError
from pyarrow import fs

from matting.attempts import ShortRead, attempt, refuse_password

# How many threads may use a client at a time; boto3's own limit of 10 has it open connections anew for the others.
_CONNECTIONS = 64
_CONNECT_SECONDS, _ANSWER_SECONDS = 3, 20
_CONFIG = Config(
    max_pool_connections=_CONNECTIONS,
    connect_timeout=_CONNECT_SECONDS,
    read_timeout=_ANSWER_SECONDS,
    retries={"total_max_attempts": 1},
)

# Larger objects go up in parts, and boto3 aborts the upload if one fails. pyarrow's way is worse than that: its stream
# begins an upload at 5 MiB, leaves it if a part fails, and an empty object if it could not begin.
_PART = 64 * 2**20
_IN_PARTS = TransferConfig(multipart_threshold=_PART, multipart_chunksize=_PART, use_threads=False)

_AWS_ENDPOINT = re.compile(r"https://s3([.-][a-z0-9-]+)?\.amazonaws\.com(\.cn)?")

# Building a client takes 0.1 s of CPU time: of many threads that need the first, one builds it.
_BUILDING = threading.Lock()


def connect(path: str) -> tuple[Any, fs.S3FileSystem]:
    """A boto3 client and a pyarrow filesystem for a bucket, alike configured, whose credentials hold for minutes.

    Raises what tells that the bucket does not exist, that the store is not there, or that it knows no such credentials.
    """
    bucket, _ = _split(path)
    with _BUILDING:
        client, credentials = _client(bucket)
    region = _region(bucket)
    frozen = credentials.get_frozen_credentials()  # renewed when they are about to expire
    with _BUILDING:
        return client, _reader(region, client.meta.endpoint_url, frozen.access_key, frozen.secret_key, frozen.token)


def list_files(path: str) -> Iterator[tuple[str, int, str]]:
    """(key below the folder, size, etag) of each object in a folder and in those below it."""
    bucket, folder = _split(path)
    prefix = _prefix(folder)
    for page in connect(path)[0].get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for row in page.get("Contents", ()):
            # What some tools store in place of a folder: an empty object whose name ends in '/'.
            if not (row["Size"] == 0 and row["Key"].endswith("/")):
                yield row["Key"][len(prefix) :], row["Size"], row["ETag"].strip('"')


def stat(path: str) -> tuple[int, str]:
    """Size and etag of an object. Raises FileNotFoundError if there is none."""
    bucket, key = _split(path)
    client, _ = connect(path)
    try:
        answer = client.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] == "404":
            raise FileNotFoundError(path) from error
        raise
    return answer["ContentLength"], answer["ETag"].strip('"')


def open_file(path: str) -> pa.NativeFile:
    """An object, to be read from. Raises FileNotFoundError if there is none."""
    return connect(path)[1].open_input_file(path)


def read_range(stream: pa.NativeFile, start: int, count: int) -> bytes:
    """Up to `count` bytes from `start` on, fewer only where the file ends; else a ShortRead is raised."""
    data: bytes = stream.read_at(count, start)
    expected = min(count, stream.size() - start)
    if len(data) != expected:
        raise ShortRead(f"{len(data):,} bytes came of {expected:,}")
    return data


def write(path: str, data: bytes) -> None:
    """A whole object, or nothing."""
    bucket, key = _split(path)
    client, _ = connect(path)
    if len(data) <= _PART:
        client.put_object(Bucket=bucket, Key=key, Body=data)
    else:
        client.upload_fileobj(io.BytesIO(data), bucket, key, Config=_IN_PARTS)


def delete(path: str) -> None:
    """Removes an object; one that is not there is no error."""
    bucket, key = _split(path)
    # Not pyarrow's: that leaves an empty object in place of the folder.
    connect(path)[0].delete_object(Bucket=bucket, Key=key)


def uploads(path: str, before: datetime) -> list[tuple[str, str]]:
    """(path, upload ID) of each upload in parts below a folder that was begun before that time and is not complete."""
    bucket, folder = _split(path)
    pages = connect(path)[0].get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=_prefix(folder))
    found = [upload for page in pages for upload in page.get("Uploads", ())]
    return [(f"{bucket}/{upload['Key']}", upload["UploadId"]) for upload in found if upload["Initiated"] < before]


def abort(path: str, upload: str) -> None:
    """Ends an upload and frees what it has stored; one that is not there is no error."""
    bucket, key = _split(path)
    client, _ = connect(path)
    try:
        client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
    except client.exceptions.NoSuchUpload:
        return


class Handler(fs.FileSystemHandler):  # type: ignore[misc]
    """S3 for libraries that take a pyarrow filesystem, by paths `bucket/key`: every request is tried as `storage`'s
    are, with the credentials of its time. It can be pickled, and has no secrets in it."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handler)

    def get_type_name(self) -> str:
        return "s3"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        def look_at(path: str) -> fs.FileInfo:
            return attempt(f"s3://{path}", "look at", lambda: connect(path)[1].get_file_info(path))

        return [look_at(path) for path in paths]

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        place = selector.base_dir
        return attempt(f"s3://{place}", "list", lambda: list(connect(place)[1].get_file_info(selector)))

    def open_input_stream(self, path: str) -> pa.PythonFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.PythonFile:
        return pa.PythonFile(_Ranges(path), mode="r")

    def open_output_stream(self, path: str, metadata: object) -> pa.PythonFile:
        del metadata
        return pa.PythonFile(_Whole(path), mode="w")

    def create_dir(self, path: str, recursive: bool) -> None:
        """Nothing: a store has no folders."""

    # What no job needs.

    def delete_dir(self, path: str) -> None:
        raise NotImplementedError

    def delete_file(self, path: str) -> None:
        raise NotImplementedError

    def delete_dir_contents(self, path: str, missing_dir_ok: bool) -> None:
        raise NotImplementedError

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError

    def move(self, source: str, target: str) -> None:
        raise NotImplementedError

    def copy_file(self, source: str, target: str) -> None:
        raise NotImplementedError

    def open_append_stream(self, path: str, metadata: object) -> pa.PythonFile:
        raise NotImplementedError


class _Ranges:
    """A file for pa.PythonFile, of which every range is an attempt."""

    closed = False

    def __init__(self, path: str) -> None:
        self._uri = f"s3://{path}"
        self._file = attempt(self._uri, "open", lambda: open_file(path))

    def read(self, count: int) -> bytes:
        start = self.tell()
        data = attempt(self._uri, "read", lambda: read_range(self._file, start, count))
        self.seek(start + len(data))
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        self.closed = True


class _Whole:
    """A file for pa.PythonFile that is written when it is closed. One that is dropped before is not."""

    closed = False

    def __init__(self, path: str) -> None:
        self._path = path
        self._data = io.BytesIO()

    def write(self, data: pa.Buffer) -> int:
        return self._data.write(data)

    def flush(self) -> None:
        """There is nothing to be seen before it is whole."""

    def close(self) -> None:
        data, self.closed = self._data.getvalue(), True
        attempt(f"s3://{self._path}", "write", lambda: write(self._path, data))


@lru_cache
def _client(bucket: str) -> tuple[Any, Any]:
    """For one bucket, since the next may be asked for when the environment is another."""
    del bucket
    # A session of its own: boto3's default one is not safe to use from several threads.
    session = boto3.session.Session()
    client = session.client("s3", config=_CONFIG)
    refuse_password(client.meta.endpoint_url)
    return client, session.get_credentials()


@lru_cache
def _region(bucket: str) -> str:
    client, _ = _client(bucket)
    try:
        answer = client.head_bucket(Bucket=bucket)
    except ClientError as error:
        answer = error.response
        if answer["Error"]["Code"] not in ("400", "403"):
            raise
        try:
            client.list_objects_v2(Bucket=bucket, MaxKeys=1)  # has an answer with a body, which says what is wrong
        except ClientError as reason:
            # Credentials for objects alone may not look at the bucket, yet are told its region.
            if reason.response["Error"]["Code"] != "AccessDenied":
                raise
    return str(answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region", client.meta.region_name))


@lru_cache
def _reader(region: str, endpoint: str, access_key: str, secret_key: str, token: str | None) -> fs.S3FileSystem:
    return fs.S3FileSystem(
        access_key=access_key,
        secret_key=secret_key,
        session_token=token,
        region=region,
        endpoint_override=None if _AWS_ENDPOINT.fullmatch(endpoint) else endpoint,
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_ANSWER_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
    )


def _split(path: str) -> tuple[str, str]:
    bucket, _, key = path.partition("/")
    return bucket, key


def _prefix(folder: str) -> str:
    return folder.rstrip("/") + "/" if folder else ""
