"""Operations on files of every scheme: list, read, write and delete by URI, with retries.

    URI -> backend of its scheme (local disk, S3, fsspec) -> result, or a StorageError that says what to do

`uri` describes URIs and keys. Transient errors are retried; see `retry`.
"""

import logging
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path

from pyarrow import fs

from matting.storage import s3
from matting.storage.backend import Backend, StoredFile
from matting.storage.errors import DamagedError, NotFoundError, StorageError, TooLargeError
from matting.storage.fsspec_store import FsspecBackend
from matting.storage.local import LocalBackend
from matting.storage.retry import with_retries
from matting.storage.s3_filesystem import S3Handler
from matting.storage.uri import escape_name, is_local, is_utf8, join_uri, split_range, split_uri, unsigned_uri

_LOCAL, _S3, _FSSPEC = LocalBackend(), s3.S3Backend(), FsspecBackend()

_PROBE_BYTES = 1_000

_log = logging.getLogger(__name__)


def _log_unreadable(name: str) -> None:
    _log.warning("Left out %s: its name is not UTF-8. Rename the file to use it.", name)


def list_files(uri: str, on_unreadable: Callable[[str], None] = _log_unreadable) -> list[StoredFile]:
    """Return every file below a folder or prefix, sorted by key, without files that `write_bytes` is still writing.

    A file whose name is not UTF-8 is left out, since no key can hold it.

    Args:
        uri: URI of the folder or prefix.
        on_unreadable: Function that takes the escaped key of each file that is left out, as `caf\\xe9.jpg`. By default
            each is a WARNING in the log.

    Raises:
        NotFoundError: The folder or prefix does not exist or holds no file.
        StorageError: The bucket does not exist or cannot be listed.
    """
    backend, path = _backend(uri)
    listed = with_retries(uri, "list", lambda: list(backend.list_files(path)))
    files = []
    for file in listed:
        if is_utf8(file.key):
            files.append(file)
        else:
            on_unreadable(escape_name(file.key))
    if not listed:
        raise NotFoundError(f"Nothing to list at {uri}: it holds no files; correct the URI, or put the files there.")
    return sorted(files)


def stat(uri: str) -> StoredFile:
    """Return name, size and etag of one object, as a listing of its folder has them.

    Raises:
        NotFoundError: There is no object at the URI, or only a folder.
        StorageError: The store cannot be asked.
    """
    backend, path = _backend(uri)
    name = uri.rstrip("/").rpartition("/")[2]
    return StoredFile(name, *with_retries(uri, "look at", lambda: backend.stat(path)))


def exists(uri: str) -> bool:
    """Return whether there is an object (not a folder) at a URI.

    Raises:
        StorageError: The store cannot be asked.
    """
    try:
        stat(uri)
    except NotFoundError:
        return False
    return True


def read_bytes(uri: str, max_bytes: int | None = None) -> bytes:
    """Return the content of an object, or of the part of it that `uri.range_uri` names.

    Args:
        uri: URI of the object.
        max_bytes: Maximum size; a larger object is not fetched.

    Raises:
        NotFoundError: There is no such object.
        TooLargeError: The object has more than `max_bytes` bytes.
        DamagedError: The object ends before the part that is asked for.
        StorageError: The object cannot be read.
    """
    uri, span = split_range(uri)
    backend, path = _backend(uri)

    def check(size: int) -> None:
        if max_bytes is not None and size > max_bytes:
            raise TooLargeError(
                f"Cannot read {unsigned_uri(uri)}: it has {size:,} bytes, more than the limit of {max_bytes:,}."
            )

    if span is None:
        return with_retries(uri, "read", lambda: backend.read(path, check))
    check(span.size)
    data = with_retries(uri, "read", lambda: backend.read_part(path, *span)) if span.size else b""
    if len(data) < span.size:
        raise DamagedError(
            f"Cannot read {span.size:,} bytes from offset {span.offset:,} of {unsigned_uri(uri)}: it ends before. It "
            "was replaced since it was listed; run again."
        )
    return data


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole object or nothing. Folders are created as needed.

    On S3 and on local disk, no reader ever sees a part of the object; elsewhere that depends on fsspec's client.

    Raises:
        StorageError: Nothing was written; or all of it, if only the store's answer was lost.
    """
    backend, path = _backend(uri)
    with_retries(uri, "write", lambda: backend.write(path, data))


def create_bytes(uri: str, data: bytes) -> bool:
    """Write a whole object unless there is one. Return whether the object is the caller's.

    Of several processes that create the same object, one gets True if their data differ. On fsspec's stores, several
    that write in the same moment may get True.

    Raises:
        StorageError: As for `write_bytes`.
    """
    backend, path = _backend(uri)

    def create() -> bool:
        try:
            backend.create(path, data)
        except FileExistsError:
            return False
        return True

    if with_retries(uri, "create", create):
        return True
    try:
        return read_bytes(uri) == data  # as when the first try succeeded, and only its answer was lost
    except NotFoundError:
        return False


def delete(uri: str) -> None:
    """Delete an object; do nothing if there is none.

    Raises:
        StorageError: The object cannot be deleted.
    """
    backend, path = _backend(uri)
    with_retries(uri, "delete", lambda: backend.delete(path))


def delete_folder(uri: str) -> None:
    """Delete a folder and everything in it; do nothing if there is none.

    Raises:
        StorageError: A part of the folder cannot be deleted.
    """
    if is_local(uri):
        _, path = split_uri(uri)
        with_retries(uri, "delete", lambda: _LOCAL.delete_folder(path))
        return
    with suppress(NotFoundError):
        for file in list_files(uri):
            delete(join_uri(uri, file.key))


def remove_partials(uri: str, before: datetime) -> int:
    """Remove what killed processes left half written below a folder. Return the number of things removed.

    On local disk, removes partial files, unless their writers are alive. On S3, aborts the multipart uploads that began
    before a time; a writer that is alive all the same starts its upload again. Where uploads cannot be listed or
    aborted, they stay, with a WARNING. Stores of other schemes are left alone.

    Args:
        uri: URI of the folder.
        before: Time at which the caller's own work began.
    """
    scheme, path = split_uri(uri)
    if scheme == "file":
        return _LOCAL.remove_partials(path)
    if scheme != "s3":
        return 0
    try:
        uploads = with_retries(uri, "list unfinished uploads of", lambda: _S3.unfinished_uploads(path, before))
        for upload in uploads:
            with_retries(uri, "abort an unfinished upload of", partial(_S3.abort_upload, *upload))
    except StorageError as error:
        _log.warning("Unfinished uploads of dead runs may stay, and cost storage until they are aborted. %s", error)
        return 0
    return len(uploads)


def check_writable(uri: str) -> None:
    """Verify an output location before work is spent on it: write, read back and delete a small object.

    Raises:
        StorageError: A step failed, or the object came back different, as from some S3-compatible stores.
    """
    probe = join_uri(uri, f".matting-probe-{uuid.uuid4().hex}")
    written = os.urandom(_PROBE_BYTES)
    write_bytes(probe, written)
    try:
        read = read_bytes(probe)
    finally:
        delete(probe)
    if read != written:
        raise StorageError(
            f"Cannot use {uri}: an object of {len(written):,} bytes came back as {len(read):,} different ones. The "
            "store may not know the checksums of current S3 clients: set "
            "AWS_REQUEST_CHECKSUM_CALCULATION=when_required."
        )


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """Return a pyarrow filesystem for other libraries, and the path of the URI in it.

    Every filesystem of the project is made here. On S3, its requests are retried and logged as those of this module,
    and its errors are StorageErrors.

    Raises:
        StorageError: The scheme is unknown, or the bucket cannot be reached.
    """
    scheme, path = split_uri(uri)
    if scheme == "file":
        return fs.LocalFileSystem(), str(Path(path).absolute())
    if scheme == "s3":
        with_retries(uri, "open", lambda: s3.connect(path))
        return fs.PyFileSystem(S3Handler()), path.rstrip("/")
    return with_retries(uri, "open", lambda: _FSSPEC.filesystem(uri))


def _backend(uri: str) -> tuple[Backend, str]:
    """Return the backend for a URI, and the URI's path in it."""
    scheme, path = split_uri(uri)
    if scheme == "file":
        return _LOCAL, path
    if scheme == "s3":
        return _S3, path
    return _FSSPEC, uri
