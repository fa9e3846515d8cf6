"""Files on local disk: atomic writes, listings that follow links, removal of partial files."""

import errno
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
from pyarrow import fs

from matting.storage.backend import Backend, StoredFile

# Name of a partial file: one that is being written, beside the file that it will become.
_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial")


class LocalBackend(Backend):
    """Local disk. A path is absolute or relative to the working directory."""

    def list_files(self, path: str) -> Iterator[StoredFile]:
        """Yield every file below a folder except partial files. Links are followed."""
        return _walk(Path(path), "")

    def stat(self, path: str) -> tuple[int, str]:
        """Return size in bytes and etag of a file."""
        try:
            is_file = Path(path).is_file()
        except OSError as error:
            is_file = False
            if error.errno != errno.ENAMETOOLONG:  # no file has such a name; it may be an image as text
                raise
        if not is_file:
            raise FileNotFoundError(path)
        return _size_and_etag(Path(path).stat())

    def open_file(self, path: str) -> pa.NativeFile:
        """Open a file for reading."""
        if Path(path).is_dir():  # pyarrow's error has no code
            raise IsADirectoryError(errno.EISDIR, "is a folder", path)
        return fs.LocalFileSystem().open_input_file(str(Path(path).absolute()))

    def write(self, path: str, data: bytes) -> None:
        """Write a whole file or nothing, by renaming a partial file. Folders are created as needed."""
        _write(Path(path), data, Path.replace)

    def create(self, path: str, data: bytes) -> None:
        """Write a whole file that does not exist yet, by linking a partial file to its name."""
        _write(Path(path), data, _link)

    def delete(self, path: str) -> None:
        """Delete a file; do nothing if there is none."""
        Path(path).unlink(missing_ok=True)

    def delete_folder(self, path: str) -> None:
        """Delete a folder and everything in it; do nothing if there is none."""
        with suppress(FileNotFoundError):
            shutil.rmtree(path)

    def remove_partials(self, path: str) -> int:
        """Remove the partial files of killed processes below a folder. Return their number.

        A file that is still being written is locked by its writer and stays. So does a file that cannot be opened, and
        every file on a file system without locks.
        """
        folders = os.walk(path, followlinks=True)
        partials = (Path(folder, name) for folder, _, names in folders for name in names if _PARTIAL.fullmatch(name))
        return sum(_remove_unlocked(partial) for partial in partials)


@contextmanager
def locked_partial(folder: Path) -> Iterator[Path]:
    """Create an empty partial file in a folder, which listings leave out, and remove it at the end of the ``with``.

    If this process dies, `LocalBackend.remove_partials` removes it.
    """
    file = folder / f".{uuid.uuid4().hex}.partial"
    with _create(file) as stream:
        with suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            yield file
        finally:
            file.unlink(missing_ok=True)


def _write(target: Path, data: bytes, publish: Callable[[Path, Path], object]) -> None:
    """Write a partial file, and let `publish` turn it into the target."""
    written = False
    while not written:
        partial = target.with_name(f".{uuid.uuid4().hex}.partial")
        with _create(partial) as stream:
            try:
                with suppress(OSError):  # no locks on this file system; remove_partials then removes nothing either
                    fcntl.flock(stream, fcntl.LOCK_EX)
                # Between creation and lock, remove_partials of another process may have removed the file.
                if os.fstat(stream.fileno()).st_nlink:
                    stream.write(data)
                    stream.flush()
                    publish(partial, target)
                    written = True
            finally:
                if not written:
                    partial.unlink(missing_ok=True)


def _link(partial: Path, target: Path) -> None:
    """Give a partial file another name, which must be free."""
    try:
        target.hardlink_to(partial)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        with target.open("xb") as stream:
            stream.write(partial.read_bytes())
    partial.unlink()


def _create(path: Path) -> BinaryIO:
    try:
        return path.open("xb")
    except FileNotFoundError:  # a missing folder is the rarer case, so it is not looked for first
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")


def _remove_unlocked(partial: Path) -> bool:
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
            key = prefix + os.fsencode(entry.name).decode(errors="surrogateescape")
            if entry.is_symlink() and _is_broken(entry, folders):
                yield StoredFile(key, 0, "broken-link")  # listed, so that its reader gets an error that names it
            elif entry.is_dir():
                yield from _walk(Path(entry.path), key + "/", folders)
            elif entry.is_file():
                try:
                    yield StoredFile(key, *_size_and_etag(entry.stat()))
                except FileNotFoundError:
                    continue  # removed since its folder was read


def _is_broken(link: os.DirEntry[str], folders: tuple[os.stat_result, ...]) -> bool:
    """Return whether a link has no target, leads to itself, or leads back to a folder above it."""
    try:
        target = link.stat()
    except OSError:
        return True
    return any(os.path.samestat(target, folder) for folder in folders)


def _size_and_etag(info: os.stat_result) -> tuple[int, str]:
    return info.st_size, f"{info.st_mtime_ns:x}-{info.st_size:x}"
