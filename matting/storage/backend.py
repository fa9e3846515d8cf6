"""The interface of a storage backend: the operations of one kind of store, without retries.

Each method tries once and raises what the client library raises; FileNotFoundError means that there is no such file.
`store` adds retries and turns errors into StorageErrors.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pyarrow as pa

from matting.storage.errors import ShortRead


class StoredFile(NamedTuple):
    """One file of a listing.

    Attributes:
        key: Path relative to the listed folder, with '/' between its parts.
        size: Number of bytes.
        etag: Version of the content, different whenever the file changes: S3's ETag, or modification time and size.
    """

    key: str
    size: int
    etag: str


class Backend(ABC):
    """Operations of one kind of store.

    A path is the text after the scheme of a URI, except for fsspec, whose paths are whole URIs.
    """

    @abstractmethod
    def list_files(self, path: str) -> Iterator[StoredFile]:
        """Yield every file in a folder and in all folders below it, in any order."""

    @abstractmethod
    def stat(self, path: str) -> tuple[int, str]:
        """Return size in bytes and etag of a file; a folder counts as not found."""

    @abstractmethod
    def open_file(self, path: str) -> pa.NativeFile:
        """Open a file for reading."""

    def read(self, path: str, check: Callable[[int], None]) -> bytes:
        """Return the content of a file.

        Args:
            path: Path of the file.
            check: Function that takes the size in bytes before the content is read, and may raise an exception.
        """
        with self.open_file(path) as stream:
            size = stream.size()
            check(size)
            return read_range(stream, 0, size)

    def read_part(self, path: str, start: int, count: int) -> bytes:
        """Return `count` bytes of a file from offset `start`, or fewer if the file ends before."""
        with self.open_file(path) as stream:
            return read_range(stream, start, count)

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Write a whole file, as atomically as the store can."""

    @abstractmethod
    def create(self, path: str, data: bytes) -> None:
        """Write a whole file that does not exist yet, as exclusively as the store can.

        Raises:
            FileExistsError: The file exists.
        """

    @abstractmethod
    def delete(self, path: str) -> None:
        """Delete a file; do nothing if there is none."""


def read_range(stream: pa.NativeFile, start: int, count: int) -> bytes:
    """Return `count` bytes from offset `start`, or fewer if the file ends before.

    Raises:
        ShortRead: Fewer bytes came, although the file is longer.
    """
    data: bytes = stream.read_at(count, start)
    expected = max(0, min(count, stream.size() - start))
    if len(data) != expected:
        raise ShortRead(f"{len(data):,} bytes came of {expected:,}")
    return data
