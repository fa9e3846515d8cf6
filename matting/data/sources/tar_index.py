"""Files of tar archives, remembered between runs: reading their headers again may mean reading all of an archive.

TarIndex.read   URI of a Parquet file      -> what earlier runs found
.members        URI and version of an archive -> its files, from the index or from its headers
.save           URI of the Parquet file    <- what this run used
"""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from matting.data.sources.tar import list_tar
from matting.storage import store
from matting.storage.backend import StoredFile
from matting.storage.errors import NotFoundError

INDEX_NAME = "_archives.parquet"

_ARCHIVE = [("archive", pa.string()), ("version", pa.string())]
_MEMBER = [("name", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("reason", pa.string())]
_SCHEMA = pa.schema([*_ARCHIVE, *_MEMBER])


class TarIndex:
    """Files of archives, by the archive's URI and version.

    Args:
        rows: One row of the index's schema for each file, archive by archive. A file that cannot be used has a
            `reason`; an archive without files has one row without a name.
    """

    def __init__(self, rows: pa.Table | None = None) -> None:
        self._known: dict[tuple[str, str], pa.Table] = {}
        self._used: set[tuple[str, str]] = set()
        for archive in _split_by_archive(rows) if rows is not None and len(rows) else []:
            self._known[archive["archive"][0].as_py(), archive["version"][0].as_py()] = archive
        self._saved = set(self._known)

    @classmethod
    def read(cls, uri: str) -> "TarIndex":
        """Read an index; an empty one if there is none, or another version wrote it.

        Raises:
            StorageError: The file cannot be read.
        """
        try:
            rows = pq.read_table(pa.BufferReader(store.read_bytes(uri)))
        except (NotFoundError, OSError, pa.ArrowException):  # it is made again
            return cls()
        return cls(rows if rows.schema.equals(_SCHEMA) else None)

    def members(self, uri: str, stored: StoredFile) -> pa.Table:
        """Return the files of an archive: `name`, `offset` and `size` in it, and the `reason` of those left out.

        Raises:
            StorageError: The archive cannot be read.
        """
        key = uri, f"{stored.etag}-{stored.size}"
        if key not in self._known:
            self._known[key] = _read_headers(*key, stored.size)
        self._used.add(key)
        rows = self._known[key]
        return rows.filter(pc.is_valid(rows["name"]))

    def save(self, uri: str) -> None:
        """Write the archives that were asked for, if they are not those of the file.

        Raises:
            StorageError: The file cannot be written.
        """
        if self._used == self._saved:
            return
        sink = pa.BufferOutputStream()
        pq.write_table(pa.concat_tables([self._known[key] for key in sorted(self._used)]), sink, compression="zstd")
        store.write_bytes(uri, sink.getvalue().to_pybytes())


def _split_by_archive(rows: pa.Table) -> list[pa.Table]:
    versions = pc.binary_join_element_wise(rows["archive"], rows["version"], "\n").combine_chunks()
    starts = [0, *(index + 1 for index in pc.indices_nonzero(pc.not_equal(versions[1:], versions[:-1])).to_pylist())]
    return [rows.slice(start, end - start) for start, end in zip(starts, [*starts[1:], len(rows)], strict=True)]


def _read_headers(uri: str, version: str, size: int) -> pa.Table:
    members, left_out = list_tar(uri, size)
    rows = [{"name": member.name, **member.span._asdict()} for member in members]
    rows += [{"name": name, "reason": reason} for name, reason in left_out]
    return pa.Table.from_pylist([{"archive": uri, "version": version, **row} for row in rows or [{}]], _SCHEMA)
