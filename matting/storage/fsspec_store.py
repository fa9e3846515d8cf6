"""Files in every store that fsspec has a filesystem for (`memory://`, `gs://`, `https://`, ...)."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import fsspec.core
import pyarrow as pa
from pyarrow import fs

from matting.storage.backend import Backend, StoredFile

# Fields in which fsspec's filesystems report the version of a file, best first.
_VERSION_FIELDS = ("etag", "ETag", "md5Hash", "mtime", "last_modified", "LastModified", "created")


class FsspecBackend(Backend):
    """All stores that fsspec knows. A path is the whole URI, since its scheme selects fsspec's filesystem."""

    def filesystem(self, path: str) -> tuple[fs.FileSystem, str]:
        """Return a pyarrow filesystem for a URI, and the path in it."""
        remote, remote_path = fsspec.core.url_to_fs(path)
        return fs.PyFileSystem(fs.FSSpecHandler(remote)), remote_path

    def list_files(self, path: str) -> Iterator[StoredFile]:
        """Yield every file below a folder."""
        remote, root = fsspec.core.url_to_fs(path)
        remote.invalidate_cache()
        prefix = root.rstrip("/") + "/"
        for remote_path, info in remote.find(root, detail=True).items():
            if remote_path.startswith(prefix):
                yield StoredFile(remote_path[len(prefix) :], *_size_and_version(info))

    def stat(self, path: str) -> tuple[int, str]:
        """Return size in bytes and etag of a file."""
        remote, remote_path = fsspec.core.url_to_fs(path)
        remote.invalidate_cache()
        info = remote.info(remote_path)
        if info["type"] != "file":
            raise FileNotFoundError(path)
        return _size_and_version(info)

    def open_file(self, path: str) -> pa.NativeFile:
        """Open a file for reading."""
        remote, remote_path = self.filesystem(path)
        return remote.open_input_file(remote_path)

    def read_part(self, path: str, start: int, count: int) -> bytes:
        """Return a part of a file, by a single request where the store knows ranges."""
        remote, remote_path = fsspec.core.url_to_fs(path)
        data: bytes = remote.cat_file(remote_path, start=start, end=start + count)
        return data

    def write(self, path: str, data: bytes) -> None:
        """Write a file. Whether others may see a part of it depends on fsspec's filesystem."""
        remote, remote_path = self.filesystem(path)
        try:
            stream = remote.open_output_stream(remote_path, compression=None)
        except FileNotFoundError:  # a store with real folders
            remote.create_dir(remote_path.rpartition("/")[0])
            stream = remote.open_output_stream(remote_path, compression=None)
        with stream:
            stream.write(data)

    def create(self, path: str, data: bytes) -> None:
        """Write a file that does not exist yet; two processes that do so in the same moment may both succeed."""
        remote, remote_path = fsspec.core.url_to_fs(path)
        remote.invalidate_cache()
        if remote.exists(remote_path):
            raise FileExistsError(path)
        self.write(path, data)

    def delete(self, path: str) -> None:
        """Delete a file; do nothing if there is none."""
        remote, remote_path = fsspec.core.url_to_fs(path)
        if remote.exists(remote_path):
            remote.rm_file(remote_path)


def _size_and_version(info: dict[str, Any]) -> tuple[int, str]:
    version = next((info[field] for field in _VERSION_FIELDS if field in info), "")
    if isinstance(version, datetime):
        version = version.timestamp()  # some filesystems report a float for one file and a datetime in a listing
    size = info["size"] or 0  # None from web servers that report no length
    return size, f"{version}-{size:x}"
