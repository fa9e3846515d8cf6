"""S3 as a pyarrow filesystem with retries, for libraries that take one (pyarrow.parquet, pyarrow.dataset, Ray)."""

import io

import pyarrow as pa
from pyarrow import fs

from matting.storage.backend import read_range
from matting.storage.retry import with_retries
from matting.storage.s3 import S3Backend, connect

_S3 = S3Backend()


class S3Handler(fs.FileSystemHandler):  # type: ignore[misc]  # pyarrow has no types, so its classes are Any
    """Handler of a pyarrow filesystem with paths `bucket/key`.

    Every request is retried and logged like those of `store`, with the credentials of its moment. The handler can be
    pickled, and contains no secrets.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, S3Handler)

    def get_type_name(self) -> str:
        return "s3"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        def info_of(path: str) -> fs.FileInfo:
            return with_retries(f"s3://{path}", "look at", lambda: connect(path)[1].get_file_info(path))

        return [info_of(path) for path in paths]

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        folder = selector.base_dir
        return with_retries(f"s3://{folder}", "list", lambda: list(connect(folder)[1].get_file_info(selector)))

    def open_input_stream(self, path: str) -> pa.PythonFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.PythonFile:
        return pa.PythonFile(_RangeReader(path), mode="r")

    def open_output_stream(self, path: str, metadata: object) -> pa.PythonFile:
        del metadata
        return pa.PythonFile(_BufferedWriter(path), mode="w")

    def create_dir(self, path: str, recursive: bool) -> None:
        """Do nothing: an object store has no folders."""

    # pyarrow requires these methods, but no job calls them.

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


class _RangeReader:
    """Seekable file for pa.PythonFile that retries each range on its own."""

    closed = False

    def __init__(self, path: str) -> None:
        self._uri = f"s3://{path}"
        self._file = with_retries(self._uri, "open", lambda: _S3.open_file(path))

    def read(self, count: int) -> bytes:
        start = self.tell()
        data = with_retries(self._uri, "read", lambda: read_range(self._file, start, count))
        self.seek(start + len(data))
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        self.closed = True


class _BufferedWriter:
    """File for pa.PythonFile that writes the whole object when it is closed, and nothing if it is dropped before."""

    closed = False

    def __init__(self, path: str) -> None:
        self._path = path
        self._data = io.BytesIO()

    def write(self, data: pa.Buffer) -> int:
        return self._data.write(data)

    def flush(self) -> None:
        """Do nothing: the object is written as a whole."""

    def close(self) -> None:
        data, self.closed = self._data.getvalue(), True
        with_retries(f"s3://{self._path}", "write", lambda: _S3.write(self._path, data))
