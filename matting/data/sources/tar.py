"""List the files in a tar archive, such as a WebDataset shard, without reading their contents.

    list_tar   URI, size -> TarContents: name and place of every file, and what is left out, with reasons

Headers are read by ranges: many at a time where files are small, one at a time where they are large. A file is read
later by its own range, so no archive is ever in memory.
"""

import tarfile
from typing import NamedTuple

from matting.storage import store
from matting.storage.uri import Span, escape_name, is_utf8, range_uri

TAR_SUFFIX = ".tar"
PACKED_TAR_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
COMPRESSED = "is a compressed tar archive, whose files cannot be read by range; unpack it to .tar"

_MAGIC = (
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ",
    b"\x28\xb5\x2f\xfd",
    b"\x04\x22\x4d\x18",
)  # gzip, bzip2, xz, zstd, lz4

# A request takes as long as some MB take to arrive, so what lies between the headers of small files is read with them.
_FEW, _MANY = 16_384, 4_000_000  # bytes fetched at a time, after a large file and after a small one
_SMALL = 256_000  # bytes
_MAX_HEADER = 1_000_000  # bytes of a long name and other attributes; more would be made to exhaust memory
_TAIL = 65_536  # bytes that are examined behind the end mark; tar fills up to 10,240


class TarMember(NamedTuple):
    """A file in an archive.

    Attributes:
        name: Path, without '.' and empty parts.
        span: Place of its content in the archive.
    """

    name: str
    span: Span


class TarContents(NamedTuple):
    """The files in an archive.

    Attributes:
        members: The files in the order of the archive; of several of one name, the last, as when unpacking.
        left_out: Name and reason of each file that cannot be used; the name is "" where the archive itself is damaged.
    """

    members: list[TarMember]
    left_out: list[tuple[str, str]]


def list_tar(uri: str, size: int) -> TarContents:
    """List the regular files of an archive. Damage leaves out only what comes after it.

    Args:
        uri: URI of the archive.
        size: Number of its bytes.

    Raises:
        StorageError: The archive cannot be read.
    """
    file = _HeaderReader(uri, size)
    if file.peek(0, 8).startswith(_MAGIC):
        return TarContents([], [("", COMPRESSED)])
    members: dict[str, TarMember] = {}
    left_out: list[tuple[str, str]] = []
    seen = 0
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:  # type: ignore[call-overload]  # typeshed wants more methods than tarfile calls
            while (info := archive.next()) is not None:
                archive.members.clear()  # tarfile would keep them all
                seen += 1
                if info.isdir():
                    continue
                name, reason = _usable_name(info, size)
                if reason:
                    left_out.append((name, reason))
                    continue
                if members.pop(name, None):
                    left_out.append((name, "is in the archive more than once; the last one counts"))
                members[name] = TarMember(name, Span(info.offset_data, info.size))
            if reason := _damage_at(file, archive.offset):
                left_out.append(("", f"{reason} after {seen:,} files"))
    except (tarfile.TarError, EOFError, ValueError, ArithmeticError, RecursionError) as error:
        left_out.append(("", f"is damaged after {seen:,} files ({error})"))
    return TarContents(list(members.values()), left_out)


def _usable_name(info: tarfile.TarInfo, size: int) -> tuple[str, str]:
    """Return the name of an entry, and why it cannot be used, or ""."""
    if not is_utf8(info.name):
        return escape_name(info.name), "has a name that is not UTF-8"
    parts = [part for part in info.name.split("/") if part not in ("", ".")]
    name = "/".join(parts)
    if ".." in parts or not parts:
        return info.name, "has a name that leads out of the archive"
    if info.issparse() or not info.isreg():
        return name, "is a link, a device or a sparse file"
    if info.size < 0 or info.offset_data + info.size > size:
        return name, "is cut, since the archive ends in it"
    return name, ""


def _damage_at(file: "_HeaderReader", end: int) -> str:
    """Return what is wrong with the end of an archive, whose last file ends at `end`, or ""."""
    tail = file.peek(end, _TAIL)
    if not tail:
        return "has no end mark, so it may be cut"
    return "is damaged, or joined from several," if tail.strip(b"\0") else ""


class _HeaderReader:
    """File for `tarfile` that reads ahead as far as it pays.

    Args:
        uri: URI of the archive.
        size: Number of its bytes.
    """

    def __init__(self, uri: str, size: int) -> None:
        self._uri, self._size = uri, size
        self._place = 0
        self._start, self._block = 0, b""

    def tell(self) -> int:
        """Return the offset of the next byte."""
        return self._place

    def seek(self, place: int) -> int:
        """Go to an offset further on.

        Raises:
            tarfile.ReadError: The offset is further back, where an archive may send its reader in circles.
        """
        if place < self._place:
            raise tarfile.ReadError("a header leads back")
        self._place = place
        return place

    def read(self, count: int) -> bytes:
        """Read the next bytes; fewer at the end.

        Raises:
            tarfile.ReadError: More is asked for than a header has.
        """
        if count > _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {count:,} bytes")
        data = self.peek(self._place, count)
        self._place += len(data)
        return data

    def peek(self, place: int, count: int) -> bytes:
        """Return bytes from an offset, fewer at the end, and stay in place."""
        count = min(count, self._size - place)
        if count <= 0:
            return b""
        end = self._start + len(self._block)
        if not self._start <= place <= place + count <= end:
            ahead = _MANY if 0 <= place - end <= _SMALL else _FEW
            span = Span(place, min(max(count, ahead), self._size - place))
            self._start, self._block = place, store.read_bytes(range_uri(self._uri, span))
        begin = place - self._start
        return self._block[begin : begin + count]
