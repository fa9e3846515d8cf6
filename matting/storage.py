"""Where bytes live: URI -> filesystem; list, read and write whole objects.

A URI is a local path, `file://path`, `s3://bucket/key`, or any scheme fsspec knows (`memory://`, `gs://`, ...). What
follows the scheme is taken literally, as the names are stored: nothing is percent-decoded, and `#` and `?` are letters.
Through here flow `key`s (paths relative to a URI, '/' between their parts), bytes, and `StoredFile` rows of a listing.

Knows no images: what the bytes mean is for the caller.
"""

import errno
import fcntl
import os
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import fsspec.core
from botocore.config import Config
from botocore.exceptions import ClientError
from pyarrow import fs

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_AWS_ENDPOINT = re.compile(r"https://s3([.-][a-z0-9-]+)?\.amazonaws\.com(\.cn)?")

# A local file that is being written, beside the one that it will become.
_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial")

# How many threads may look at objects at a time; boto3's own limit of 10 has it open connections anew for the others.
_CONNECTIONS = 64

# Building a client takes 0.1 s of CPU time: of many threads that need the first, one builds it.
_BUILDING_S3 = threading.Lock()

# pyarrow sends an object of up to 5 MiB in one request and a larger one in parts of 10 MiB: two parts.
_SMALL_PROBE, _MULTIPART_PROBE = 1_000, 12_000_000

# The fields by which fsspec's filesystems tell two versions of a file apart, best first.
_FSSPEC_VERSION = ("etag", "ETag", "md5Hash", "mtime", "last_modified", "LastModified", "created")

_NO_BUCKET = "the bucket does not exist; create it, or correct the URI"
_DENIED = (
    "access denied; allow these credentials s3:ListBucket on the bucket and s3:GetObject, s3:PutObject and "
    "s3:DeleteObject on its objects"
)
_REGION = "the bucket is in another region; set AWS_REGION (boto3: AWS_DEFAULT_REGION) to the bucket's own"
_EXPIRED = "the credentials have expired; renew them (for example `aws sso login`) and run again"
_CREDENTIALS = "the store does not know these credentials; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE"
_NO_CREDENTIALS = "no credentials were found; set AWS_PROFILE or AWS_ACCESS_KEY_ID, or run under a role that has access"
_UNREACHABLE = "cannot connect; check the network, AWS_ENDPOINT_URL and the region"
_BUSY = "the store asks for fewer requests; run again with less concurrency"

# What an error means and what to do, by its code: botocore's (`NoSuchBucket`), pyarrow's (`NO_SUCH_BUCKET`; compared
# without case and underscores), the HTTP status where an answer has no body, or the name of the errno or exception.
_ADVICE = {
    "nosuchbucket": _NO_BUCKET,
    "404": _NO_BUCKET,
    "accessdenied": _DENIED,
    "forbidden": _DENIED,
    "403": _DENIED,
    "301": _REGION,
    "permanentredirect": _REGION,
    "authorizationheadermalformed": _REGION,
    "expiredtoken": _EXPIRED,
    "requestexpired": _EXPIRED,
    "tokenretrievalerror": _EXPIRED,
    "unauthorizedssotokenerror": _EXPIRED,
    "invalidaccesskeyid": _CREDENTIALS,
    "signaturedoesnotmatch": _CREDENTIALS,
    "invalidtoken": _CREDENTIALS,
    "nocredentialserror": _NO_CREDENTIALS,
    "networkconnection": _UNREACHABLE,
    "requesttimeout": _UNREACHABLE,
    "endpointconnectionerror": _UNREACHABLE,
    "connecttimeouterror": _UNREACHABLE,
    "readtimeouterror": _UNREACHABLE,
    "slowdown": _BUSY,
    "503": _BUSY,
    "eacces": "the file system denies access; correct the owner or mode of the folder, or choose another",
    "erofs": "the file system is read-only; choose another folder",
    "enospc": "the disk is full; make room or choose another",
    "eexist": "a part of the path is a file, where a folder is needed; correct the path",
    "enotdir": "a part of the path is a file, where a folder is needed; correct the path",
    "eisdir": "this is a folder, where a file is needed; correct the path",
    "unicodedecodeerror": "the name of a file in it is not UTF-8; rename the file",
    "arrowinvalid": "S3 clients cannot name an object with an empty, '.' or '..' part in its path; rename it",
    "importerror": "a package that speaks this scheme is not installed; install the one that the message names",
}


class StorageError(Exception):
    """What URI, what went wrong, what to do: one paragraph, fit to be shown as it is."""


class NotFoundError(StorageError):
    """The store answered, and holds nothing at this URI: no such object, no such folder, or an empty one."""


class StoredFile(NamedTuple):
    """A row of a listing. `etag` changes when the file does: S3's ETag, or the modification time and size."""

    key: str
    size: int
    etag: str


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a URI, and the path of the URI in it. Every filesystem of the project is made here.

    S3 follows boto3's configuration (AWS_ENDPOINT_URL, profiles, roles), in the region of the bucket.

    Raises:
        StorageError: the scheme is unknown, or the bucket cannot be reached.
    """
    scheme, path = _split(uri)
    with _explained(uri, "open"):
        if scheme == "file":
            return fs.LocalFileSystem(), str(Path(path).absolute())
        if scheme == "s3":
            return _s3(path.partition("/")[0])[1], path.rstrip("/")
        remote, path = fsspec.core.url_to_fs(uri)
        return fs.PyFileSystem(fs.FSSpecHandler(remote)), path


def is_local(uri: str) -> bool:
    """Whether a URI names a place in the local file system."""
    return _split(uri)[0] == "file"


def join(uri: str, key: str) -> str:
    """The URI of a key below `uri`. A key with a `..` part, which would lead out of it, is a StorageError."""
    if ".." in key.split("/"):
        raise StorageError(f"Key {key!r} has a '..' part and would lead out of {uri}; rename the file.")
    return f"{uri.rstrip('/')}/{key}"


def resolve(folder: str, uri: str) -> str:
    """What a table in `folder` ("", or a URI that ends in '/') means by `uri`: a relative path begins in its folder."""
    return uri if _SCHEME.match(uri) or uri.startswith("/") else folder + uri


def default_key(folder: str, uri: str) -> str:
    """The key of a URI for which a table in `folder` has none: its path below the folder, or all of it without scheme
    and leading slashes."""
    return _split(uri.removeprefix(folder))[1].lstrip("/")


def exists(uri: str) -> bool:
    """Whether an object (not a folder) is at this URI. Raises StorageError where the store does not say."""
    filesystem_, path = filesystem(uri)
    with _explained(uri, "look at"):
        return bool(filesystem_.get_file_info(path).type == fs.FileType.File)


def stat(uri: str) -> StoredFile:
    """One object, as a listing of its folder has it: its name, size and etag.

    Raises:
        NotFoundError: there is no object (a folder is none).
        StorageError: the store does not say.
    """
    scheme, path = _split(uri)
    path = path.rstrip("/")
    name = path.rpartition("/")[2]
    with _explained(uri, "look at"):
        if scheme == "file":
            if not Path(path).is_file():
                raise FileNotFoundError(path)
            return _local_file(name, Path(path).stat())
        if scheme == "s3":
            return _head_s3(name, *path.partition("/")[::2])
        remote, path = fsspec.core.url_to_fs(uri)
        remote.invalidate_cache()
        info = remote.info(path)
        if info["type"] != "file":
            raise FileNotFoundError(path)
        return _fsspec_file(name, info)


def list_files(uri: str) -> list[StoredFile]:
    """Every file below `uri`, in all its folders, sorted by key; none that `write_bytes` is still writing.

    Raises:
        NotFoundError: the folder or prefix does not exist or holds no file.
        StorageError: the bucket does not exist or cannot be listed.
    """
    scheme, path = _split(uri)
    with _explained(uri, "list"):
        if scheme == "file":
            files = list(_walk(Path(path), ""))
        elif scheme == "s3":
            files = list(_list_s3(*path.partition("/")[::2]))
        else:
            files = list(_list_fsspec(uri))
    if not files:
        raise NotFoundError(f"Nothing to list at {uri}: it holds no files; correct the URI, or put the files there.")
    return sorted(files)


def read_bytes(uri: str) -> bytes:
    """A whole object. Raises NotFoundError where there is none, StorageError for any other reason."""
    filesystem_, path = filesystem(uri)
    with _explained(uri, "read"), filesystem_.open_input_file(path) as stream:
        return bytes(stream.read())


def write_bytes(uri: str, data: bytes) -> None:
    """Writes a whole object, or nothing: no reader ever sees a part of it, on S3 and in local folders; elsewhere it is
    as whole as fsspec's client makes it. Folders are created as needed.

    Raises:
        StorageError: nothing was written, and why.
    """
    filesystem_, path = filesystem(uri)
    with _explained(uri, "write"):
        if isinstance(filesystem_, fs.LocalFileSystem):
            _write_local(Path(path), data)
            return
        try:
            stream = filesystem_.open_output_stream(path, compression=None)
        except FileNotFoundError:  # a store that has folders
            filesystem_.create_dir(path.rpartition("/")[0])
            stream = filesystem_.open_output_stream(path, compression=None)
        with stream:
            stream.write(data)


def delete(uri: str) -> None:
    """Removes an object; one that is not there is no error. Raises StorageError."""
    scheme, path = _split(uri)
    with _explained(uri, "delete"):
        if scheme == "file":
            Path(path).unlink(missing_ok=True)
        elif scheme == "s3":
            # Not pyarrow's: that leaves an empty object in place of the folder.
            bucket, key = path.partition("/")[::2]
            _s3(bucket)[0].delete_object(Bucket=bucket, Key=key)
        else:
            remote, path = fsspec.core.url_to_fs(uri)
            if remote.exists(path):
                remote.rm_file(path)


def remove_partials(uri: str) -> int:
    """Removes from a local folder, and from all below it, what killed processes left half written; returns how many.

    A file that is still being written is locked by its writer and stays, as does one that may not be opened, and every
    one on a file system without locks. Elsewhere than in a local folder, nothing is ever half written.
    """
    if not is_local(uri):
        return 0
    found = os.walk(_split(uri)[1], followlinks=True)
    partials = (Path(folder, name) for folder, _, names in found for name in names if _PARTIAL.fullmatch(name))
    return sum(_remove_abandoned(partial) for partial in partials)


def check_writable(uri: str) -> None:
    """Proves an output location before work is spent on it: writes, reads back and removes a small object and, where
    it is not a local folder, one so large that it goes up in parts, which some S3-compatible stores garble silently.

    Raises:
        StorageError: what could not be done, or came back different, and what to do.
    """
    for size in (_SMALL_PROBE,) if is_local(uri) else (_SMALL_PROBE, _MULTIPART_PROBE):
        probe = join(uri, f".matting-probe-{uuid.uuid4().hex}")
        written = os.urandom(size)
        write_bytes(probe, written)
        try:
            read = read_bytes(probe)
        finally:
            delete(probe)
        if read != written:
            raise StorageError(
                f"Cannot use {uri}: an object of {size:,} bytes came back as {len(read):,} different ones. The store "
                "may not know the checksums of current S3 clients: set AWS_REQUEST_CHECKSUM_CALCULATION=when_required."
            )


def _split(uri: str) -> tuple[str, str]:
    match = _SCHEME.match(uri)
    return (match[1].lower(), uri[match.end() :]) if match else ("file", uri)


def _write_local(target: Path, data: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    written = False
    while not written:
        partial = target.with_name(f".{uuid.uuid4().hex}.partial")
        with partial.open("xb") as stream:
            try:
                with suppress(OSError):  # a file system without locks, on which `remove_partials` removes nothing
                    fcntl.flock(stream, fcntl.LOCK_EX)
                # Between its creation and its lock, a sweep may have taken the file for an abandoned one.
                if os.fstat(stream.fileno()).st_nlink:
                    stream.write(data)
                    stream.flush()
                    partial.replace(target)
                    written = True
            finally:
                partial.unlink(missing_ok=True)


def _remove_abandoned(partial: Path) -> bool:
    try:
        with partial.open("r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink()
    except OSError:
        return False
    return True


def _s3(bucket: str) -> tuple[Any, fs.S3FileSystem]:
    with _BUILDING_S3:
        return _build_s3(bucket)


@lru_cache
def _build_s3(bucket: str) -> tuple[Any, fs.S3FileSystem]:
    """A boto3 client (listings with ETag) and a pyarrow filesystem (bytes, at half the CPU time), alike configured."""
    # A session of its own: boto3's default one is not safe to use from several threads.
    client = boto3.session.Session().client("s3", config=Config(max_pool_connections=_CONNECTIONS))
    try:
        answer = client.head_bucket(Bucket=bucket)
    except ClientError as error:
        answer = error.response
        # Credentials for objects alone may not look at the bucket, yet are told its region.
        if answer["Error"]["Code"] != "403":
            raise
    region = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region", client.meta.region_name)
    endpoint = client.meta.endpoint_url
    return client, fs.S3FileSystem(
        region=region,
        endpoint_override=None if _AWS_ENDPOINT.fullmatch(endpoint) else endpoint,
        allow_delayed_open=True,  # a small object in one request, not the three of a multi-part upload
    )


def _walk(folder: Path, prefix: str) -> Iterator[StoredFile]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if _PARTIAL.fullmatch(entry.name):
                continue
            key = prefix + os.fsencode(entry.name).decode()
            if entry.is_dir():
                yield from _walk(Path(entry.path), key + "/")
            elif entry.is_file():
                try:
                    yield _local_file(key, entry.stat())
                except FileNotFoundError:
                    continue  # removed since its folder was read
            elif entry.is_symlink():
                yield StoredFile(key, 0, "broken-link")  # listed, so that whoever reads it learns that it is broken


def _local_file(key: str, info: os.stat_result) -> StoredFile:
    return StoredFile(key, info.st_size, f"{info.st_mtime_ns:x}-{info.st_size:x}")


def _list_s3(bucket: str, folder: str) -> Iterator[StoredFile]:
    prefix = folder.rstrip("/") + "/" if folder else ""
    for page in _s3(bucket)[0].get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for row in page.get("Contents", ()):
            # What some tools store in place of a folder: an empty object whose name ends in '/'.
            if not (row["Size"] == 0 and row["Key"].endswith("/")):
                yield StoredFile(row["Key"][len(prefix) :], row["Size"], row["ETag"].strip('"'))


def _head_s3(name: str, bucket: str, key: str) -> StoredFile:
    client = _s3(bucket)[0]
    try:
        answer = client.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] == "404":
            raise FileNotFoundError(key) from error
        raise
    return StoredFile(name, answer["ContentLength"], answer["ETag"].strip('"'))


def _list_fsspec(uri: str) -> Iterator[StoredFile]:
    remote, root = fsspec.core.url_to_fs(uri)
    remote.invalidate_cache()
    prefix = root.rstrip("/") + "/"
    for path, info in remote.find(root, detail=True).items():
        if path.startswith(prefix):
            yield _fsspec_file(path[len(prefix) :], info)


def _fsspec_file(key: str, info: dict[str, Any]) -> StoredFile:
    version = next((info[field] for field in _FSSPEC_VERSION if field in info), "")
    if isinstance(version, datetime):
        version = version.timestamp()  # some filesystems say the one of a single file and the other in a listing
    size = info["size"] or 0  # some web servers do not say
    return StoredFile(key, size, f"{version}-{size:x}")


@contextmanager
def _explained(uri: str, action: str) -> Iterator[None]:
    """Any error of a storage client, of which there is no common type, as a StorageError."""
    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError as error:
        raise NotFoundError(f"Cannot {action} {uri}: it does not exist; correct the URI.") from error
    except Exception as error:
        code = _code(error)
        advice = _ADVICE.get(code.lower().replace("_", ""), "the store's own message follows")
        raise StorageError(f"Cannot {action} {uri}: {advice}. [{code}: {error}]") from error


def _code(error: Exception) -> str:
    if isinstance(error, ClientError):
        return str(error.response["Error"]["Code"])
    if match := re.search(r"AWS Error (?:UNKNOWN \(HTTP status (\d+)\)|(\w+))", str(error)):
        return match[1] or match[2]
    if isinstance(error, OSError) and error.errno:
        return errno.errorcode.get(error.errno, type(error).__name__)
    return type(error).__name__
