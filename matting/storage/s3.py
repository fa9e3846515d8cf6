"""Objects on S3 and S3-compatible stores, by boto3 and pyarrow.

boto3 finds endpoint, region and credentials in its standard order; it lists with ETags, reads whole objects, writes
and deletes. pyarrow reads ranges, with the settings that boto3 found; it would read a whole object by a HEAD and a GET,
at twice the price. The clients' own retries are off: `retry` makes and logs them.
"""

import io
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from functools import lru_cache
from typing import Any

import boto3
import pyarrow as pa
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError
from pyarrow import fs

from matting.storage.backend import Backend, StoredFile
from matting.storage.uri import refuse_password

# Number of threads that may share a client. With boto3's default of 10, further threads would open new connections.
_CONNECTIONS = 64
_CONNECT_SECONDS, _ANSWER_SECONDS = 3, 20
_CONFIG = Config(
    max_pool_connections=_CONNECTIONS,
    connect_timeout=_CONNECT_SECONDS,
    read_timeout=_ANSWER_SECONDS,
    retries={"total_max_attempts": 1},
)

# Larger objects are uploaded in parts, and boto3 aborts the upload if a part fails. pyarrow's streams are worse: they
# begin an upload at 5 MiB, leave it unfinished if a part fails, and leave an empty object if it could not begin.
_PART = 64 * 2**20  # bytes
_IN_PARTS = TransferConfig(multipart_threshold=_PART, multipart_chunksize=_PART, use_threads=False)

_AWS_ENDPOINT = re.compile(r"https://s3([.-][a-z0-9-]+)?\.amazonaws\.com(\.cn)?")

# Building a client takes 0.1 s of CPU time: when many threads need the first, only one builds it.
_BUILDING = threading.Lock()


class S3Backend(Backend):
    """Object storage with the S3 API. A path is `bucket/key`, or `bucket` for the whole bucket."""

    def list_files(self, path: str) -> Iterator[StoredFile]:
        """Yield every object below a prefix, except the markers that some tools store in place of folders."""
        bucket, folder = _split(path)
        prefix = _prefix(folder)
        client, _ = connect(path)
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for row in page.get("Contents", ()):
                is_folder_marker = row["Size"] == 0 and row["Key"].endswith("/")
                if not is_folder_marker:
                    yield StoredFile(row["Key"][len(prefix) :], row["Size"], row["ETag"].strip('"'))

    def stat(self, path: str) -> tuple[int, str]:
        """Return size in bytes and ETag of an object."""
        bucket, key = _split(path.rstrip("/"))
        client, _ = connect(path)
        try:
            answer = client.head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if error.response["Error"]["Code"] == "404":
                raise FileNotFoundError(path) from error
            raise
        return answer["ContentLength"], answer["ETag"].strip('"')

    def open_file(self, path: str) -> pa.NativeFile:
        """Open an object for reading."""
        return connect(path)[1].open_input_file(path)

    def read(self, path: str, check: Callable[[int], None]) -> bytes:
        """Return the content of an object, by a single GET."""
        bucket, key = _split(path)
        client, _ = connect(path)
        try:
            answer = client.get_object(Bucket=bucket, Key=key)
        except client.exceptions.NoSuchKey as error:
            raise FileNotFoundError(path) from error
        with closing(answer["Body"]) as body:
            check(answer["ContentLength"])
            data: bytes = body.read()
            return data

    def read_part(self, path: str, start: int, count: int) -> bytes:
        """Return a part of an object, by a single GET."""
        bucket, key = _split(path)
        client, _ = connect(path)
        try:
            answer = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{start + count - 1}")
        except client.exceptions.NoSuchKey as error:
            raise FileNotFoundError(path) from error
        except ClientError as error:
            if error.response["Error"]["Code"] == "InvalidRange":
                return b""
            raise
        with closing(answer["Body"]) as body:
            data: bytes = body.read()
            return data

    def write(self, path: str, data: bytes) -> None:
        """Write a whole object or nothing."""
        bucket, key = _split(path)
        client, _ = connect(path)
        if len(data) <= _PART:
            client.put_object(Bucket=bucket, Key=key, Body=data)
        else:
            client.upload_fileobj(io.BytesIO(data), bucket, key, Config=_IN_PARTS)

    def create(self, path: str, data: bytes) -> None:
        """Write an object that does not exist yet, by a conditional put."""
        bucket, key = _split(path)
        client, _ = connect(path)
        try:
            client.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("412", "PreconditionFailed"):
                raise
            raise FileExistsError(path) from error

    def delete(self, path: str) -> None:
        """Delete an object; do nothing if there is none."""
        bucket, key = _split(path)
        # By boto3, since pyarrow leaves an empty object in place of the folder.
        connect(path)[0].delete_object(Bucket=bucket, Key=key)

    def unfinished_uploads(self, path: str, before: datetime) -> list[tuple[str, str]]:
        """Return (path, upload ID) of each unfinished multipart upload below a prefix that began before a time."""
        bucket, folder = _split(path)
        pages = connect(path)[0].get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=_prefix(folder))
        uploads = [upload for page in pages for upload in page.get("Uploads", ())]
        return [(f"{bucket}/{upload['Key']}", upload["UploadId"]) for upload in uploads if upload["Initiated"] < before]

    def abort_upload(self, path: str, upload_id: str) -> None:
        """Abort a multipart upload, which frees its storage; do nothing if there is none."""
        bucket, key = _split(path)
        client, _ = connect(path)
        try:
            client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)
        except client.exceptions.NoSuchUpload:
            return


def connect(path: str) -> tuple[Any, fs.S3FileSystem]:
    """Return a boto3 client and a pyarrow filesystem for a bucket, both with the same settings and valid credentials.

    Credentials that expire are renewed here, so the results are for use within minutes.

    Args:
        path: Bucket, or path of an object or folder in it.

    Raises:
        Exception: Error of boto3: the bucket does not exist, the store cannot be reached or refuses the credentials.
    """
    bucket, _ = _split(path)
    with _BUILDING:
        client, credentials = _client(bucket)
    region = _region(bucket)
    frozen = credentials.get_frozen_credentials()  # renewed when they are about to expire
    with _BUILDING:
        return client, _reader(region, client.meta.endpoint_url, frozen.access_key, frozen.secret_key, frozen.token)


@lru_cache
def _client(bucket: str) -> tuple[Any, Any]:
    """Return a boto3 client and its credentials. One for each bucket, since the environment may change in between."""
    del bucket
    # A session of its own: boto3's default session is not thread-safe.
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
            client.list_objects_v2(Bucket=bucket, MaxKeys=1)  # this answer has a body, which names the cause
        except ClientError as reason:
            # Credentials for objects alone are denied the bucket, yet the answer's headers have its region.
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
