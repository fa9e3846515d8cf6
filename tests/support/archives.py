"""Tar archives, made for tests."""

import io
import tarfile
from collections.abc import Iterable

Entry = tuple[str, bytes] | tarfile.TarInfo


def tar_bytes(entries: Iterable[Entry], mode: str = "w", **options: object) -> bytes:
    """Return an archive of files, given as (name, content), or of other entries."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, errors="surrogateescape", **options) as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
            else:
                name, content = entry
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def other_entry(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """Return an entry that is no file: a link, a folder, a device."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info
