"""Where bytes live: URI -> filesystem; list, read and write whole objects.

A URI is a local path, `file://path`, `s3://bucket/key`, or any scheme fsspec knows (`memory://`, `gs://`, ...). What
follows the scheme is taken literally, as the names are stored: nothing is percent-decoded, and `#` and `?` are letters.
Through here flow `key`s (paths relative to a URI, '/' between their parts), bytes, and `StoredFile` rows of a listing.

Knows no images: what the bytes mean is for the caller.
"""

import fcntl
import logging
import os
import re
import shutil
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import fsspec.core
from pyarrow import fs

from matting import s3
from matting.attempts import FOR_NOW as FOR_NOW
from matting.attempts import NotFoundError as NotFoundError
from matting.attempts import StorageError as StorageError
from matting.attempts import attempt, refuse_password

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# A local file that is being written, beside the one that it will become.
_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial")

_PROBE = 1_000  # bytes

# The fields by which fsspec's filesystems tell two versions of a file apart, best first.
_FSSPEC_VERSION = ("etag", "ETag", "md5Hash", "mtime", "last_modified", "LastModified", "created")

_log = logging.getLogger(__name__)
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class StoredFile(NamedTuple):
    """A row of a listing. `etag` changes when the file does: S3's ETag, or the modification time and size."""

    key: str
    size: int
    etag: str


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """A filesystem for other libraries, and the path of the URI in it. Every one of the project is made here.

    Of S3 it is `s3.Handler`'s: requests are tried again and logged as those of the functions below, and its errors are
    StorageErrors.

    Raises:
        StorageError: the scheme is unknown, or the bucket cannot be reached.
    """
    scheme, path = _split(uri)
    if scheme == "file":
        return fs.LocalFileSystem(), str(Path(path).absolute())
    if scheme == "s3":
        attempt(uri, "open", lambda: s3.connect(path))
        return fs.PyFileSystem(s3.Handler()), path.rstrip("/")
    return attempt(uri, "open", lambda: _fsspec(uri))


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
    try:
        stat(uri)
    except NotFoundError:
        return False
    return True


def stat(uri: str) -> StoredFile:
    """One object, as a listing of its folder has it: its name, size and etag.

    Raises:
        NotFoundError: there is no object (a folder is none).
        StorageError: the store does not say.
    """
    scheme, path = _split(uri)
    path = path.rstrip("/")
    name = path.rpartition("/")[2]

    def look() -> StoredFile:
        if scheme == "file":
            if not Path(path).is_file():
                raise FileNotFoundError(path)
            return _local_file(name, Path(path).stat())
        if scheme == "s3":
            return StoredFile(name, *s3.stat(path))
        remote, remote_path = fsspec.core.url_to_fs(uri)
        remote.invalidate_cache()
        info = remote.info(remote_path)
        if info["type"] != "file":
            raise FileNotFoundError(path)
        return _fsspec_file(name, info)

    return attempt(uri, "look at", look)


def list_files(uri: str) -> list[StoredFile]:
    """Every file below `uri`, in all its folders, sorted by key; none that `write_bytes` is still writing.

    Raises:
        NotFoundError: the folder or prefix does not exist or holds no file.
        StorageError: the bucket does not exist or cannot be listed.
    """
    scheme, path = _split(uri)

    def look() -> list[StoredFile]:
        if scheme == "file":
            return list(_walk(Path(path), ""))
        if scheme == "s3":
            return [StoredFile(*row) for row in s3.list_files(path)]
        return list(_list_fsspec(uri))

    files = attempt(uri, "list", look)
    if not files:
        raise NotFoundError(f"Nothing to list at {uri}: it holds no files; correct the URI, or put the files there.")
    return sorted(files)


def read_bytes(uri: str, most: int | None = None) -> bytes:
    """A whole object.

    Raises:
        NotFoundError: there is none.
        StorageError: it cannot be read, or has more than `most` bytes.
    """
    scheme, path = _split(uri)

    def open_file() -> Any:
        if scheme == "s3":
            return s3.open_file(path)
        filesystem_, place = filesystem(uri)
        return filesystem_.open_input_file(place)

    def read() -> bytes:
        with open_file() as stream:
            size = stream.size()
            if most is not None and size > most:
                raise StorageError(f"Cannot read {uri}: it has {size:,} bytes, more than the limit of {most:,}.")
            return s3.read_range(stream, 0, size)

    return attempt(uri, "read", read)


def write_bytes(uri: str, data: bytes) -> None:
    """Writes a whole object, or nothing: no reader ever sees a part of it, on S3 and in local folders; elsewhere it is
    as whole as fsspec's client makes it. Folders are created as needed.

    Raises:
        StorageError: why it failed. Nothing was written, or, where the answer got lost, all of it.
    """
    scheme, path = _split(uri)

    def write() -> None:
        if scheme == "file":
            _write_local(Path(path), data)
        elif scheme == "s3":
            s3.write(path, data)
        else:
            _write_fsspec(uri, data)

    attempt(uri, "write", write)


def delete(uri: str) -> None:
    """Removes an object; one that is not there is no error. Raises StorageError."""
    scheme, path = _split(uri)

    def remove() -> None:
        if scheme == "file":
            Path(path).unlink(missing_ok=True)
        elif scheme == "s3":
            s3.delete(path)
        else:
            remote, remote_path = fsspec.core.url_to_fs(uri)
            if remote.exists(remote_path):
                remote.rm_file(remote_path)

    attempt(uri, "delete", remove)


def delete_folder(uri: str) -> None:
    """Removes a folder and all that is in it; one that is not there is no error. Raises StorageError."""
    scheme, path = _split(uri)

    def remove() -> None:
        with suppress(FileNotFoundError):
            shutil.rmtree(path)

    if scheme == "file":
        attempt(uri, "delete", remove)
        return
    with suppress(NotFoundError):
        for file in list_files(uri):
            delete(join(uri, file.key))


def remove_partials(uri: str, before: datetime) -> int:
    """Removes what killed processes left half written in a folder and in all below it; returns how many.

    In a local folder, a file that is still being written is locked by its writer and stays, as does one that may not be
    opened, and every one on a file system without locks. On S3, it aborts the uploads in parts that were begun before
    the time `before`, at which the caller's own work began. One that lives all the same is written again as a whole by
    its writer. Where uploads cannot be listed or aborted, they stay, with a WARNING. Elsewhere, nothing is looked for.
    """
    scheme, path = _split(uri)
    if scheme == "file":
        found = os.walk(path, followlinks=True)
        partials = (Path(folder, name) for folder, _, names in found for name in names if _PARTIAL.fullmatch(name))
        return sum(_remove_abandoned(partial) for partial in partials)
    if scheme != "s3":
        return 0
    try:
        uploads = attempt(uri, "list unfinished uploads of", lambda: s3.uploads(path, before))
        for upload in uploads:
            attempt(uri, "abort an unfinished upload of", partial(s3.abort, *upload))
    except StorageError as error:
        _log.warning("Unfinished uploads of dead runs may stay, and cost storage until they are aborted. %s", error)
        return 0
    return len(uploads)


def check_writable(uri: str) -> None:
    """Proves an output location before work is spent on it: writes, reads back and removes a small object.

    Raises:
        StorageError: what could not be done, or came back different, as from some S3-compatible stores, and what to do.
    """
    probe = join(uri, f".matting-probe-{uuid.uuid4().hex}")
    written = os.urandom(_PROBE)
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


def concurrently(
    call: Callable[[_Item], _Result], items: Iterable[_Item], ahead: int
) -> Iterator[tuple[_Item, _Result]]:
    """(item, call(item)) of each item, in order, for calls that wait for a store. At most `ahead` of them are under way
    or wait to be taken, at least 1: so what they return takes bounded memory. What a call raises is raised in its turn.
    """
    waiting = iter(items)
    with ThreadPoolExecutor(ahead) as pool:
        started = deque((item, pool.submit(call, item)) for item in islice(waiting, ahead))
        while started:
            item, future = started.popleft()
            result = future.result()
            started.extend((item, pool.submit(call, item)) for item in islice(waiting, 1))
            yield item, result


def _split(uri: str) -> tuple[str, str]:
    match = _SCHEME.match(uri)
    if not match:
        return "file", uri
    refuse_password(uri)
    return match[1].lower(), uri[match.end() :]


def _write_local(target: Path, data: bytes) -> None:
    written = False
    while not written:
        partial = target.with_name(f".{uuid.uuid4().hex}.partial")
        with _created(partial) as stream:
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
                if not written:
                    partial.unlink(missing_ok=True)


def _created(path: Path) -> BinaryIO:
    try:
        return path.open("xb")
    except FileNotFoundError:  # rarer than a folder that is there
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")


def _remove_abandoned(partial: Path) -> bool:
    try:
        with partial.open("r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink()
    except OSError:
        return False
    return True


def _walk(folder: Path, prefix: str, above: tuple[os.stat_result, ...] = ()) -> Iterator[StoredFile]:
    folders = (*above, folder.stat())
    with os.scandir(folder) as entries:
        for entry in entries:
            if _PARTIAL.fullmatch(entry.name):
                continue
            key = prefix + os.fsencode(entry.name).decode()
            if entry.is_symlink() and _leads_nowhere(entry, folders):
                yield StoredFile(key, 0, "broken-link")  # listed, so that whoever reads it learns that it is broken
            elif entry.is_dir():
                yield from _walk(Path(entry.path), key + "/", folders)
            elif entry.is_file():
                try:
                    yield _local_file(key, entry.stat())
                except FileNotFoundError:
                    continue  # removed since its folder was read


def _leads_nowhere(link: os.DirEntry[str], folders: tuple[os.stat_result, ...]) -> bool:
    """Whether it leads to nothing, to itself, or back to one of the folders that it is in, and so round and round."""
    try:
        target = link.stat()
    except OSError:
        return True
    return any(os.path.samestat(target, folder) for folder in folders)


def _local_file(key: str, info: os.stat_result) -> StoredFile:
    return StoredFile(key, info.st_size, f"{info.st_mtime_ns:x}-{info.st_size:x}")


def _fsspec(uri: str) -> tuple[fs.FileSystem, str]:
    remote, path = fsspec.core.url_to_fs(uri)
    return fs.PyFileSystem(fs.FSSpecHandler(remote)), path


def _write_fsspec(uri: str, data: bytes) -> None:
    remote, path = _fsspec(uri)
    try:
        stream = remote.open_output_stream(path, compression=None)
    except FileNotFoundError:  # a store that has folders
        remote.create_dir(path.rpartition("/")[0])
        stream = remote.open_output_stream(path, compression=None)
    with stream:
        stream.write(data)


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
