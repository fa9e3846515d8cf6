"""List the files of a collection or dataset: those in a folder, and those in its tar archives.

    list_collection   URI -> Listing: key, etag, size and URI of every file; what is left out, with reasons

A tar archive counts as a folder of its name: `a.jpg` in `shards/7.tar` has the key `7.tar/a.jpg` in the collection
`shards`, and the key `a.jpg` in the collection `shards/7.tar`.
"""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from matting.data.sources.tables import TABLE_SUFFIXES
from matting.data.sources.tar import COMPRESSED, PACKED_TAR_SUFFIXES, TAR_SUFFIX
from matting.data.sources.tar_index import TarIndex
from matting.storage import store
from matting.storage.backend import StoredFile
from matting.storage.concurrent import concurrently
from matting.storage.errors import NotFoundError, StorageError
from matting.storage.uri import IMPOSSIBLE_KEY, Span, range_uri

FILE_SCHEMA = pa.schema([("key", pa.string()), ("etag", pa.string()), ("size", pa.int64()), ("uri", pa.string())])

_ARCHIVES = 16  # tar archives that are listed at a time
_NOT_UTF8 = "has a name that is not UTF-8; rename it"
_IMPOSSIBLE = "has an empty, '.' or '..' part in its name, so it cannot name an output; rename it"
_LEDGER_PART = r"(^|/)_ledger/[^/]+\.parquet$"
_OUTPUTS = ("_ledger/", "alpha/", "cutout/")  # folders that jobs/predict.py writes into its output folder


@dataclass(frozen=True)
class Listing:
    """Files of a collection.

    Args:
        files: One row of `FILE_SCHEMA` per file, sorted by key. The etag of a file in an archive is that of the archive
            and the file's offset in it.
        left_out: Key and reason of each file, archive or folder that is left out.
    """

    files: pa.Table
    left_out: tuple[tuple[str, str], ...]


def list_collection(uri: str, without: str = "", index: TarIndex | None = None) -> Listing:
    """List every file below a folder or prefix, or in a tar archive.

    These are left out, with the reason: names that are not UTF-8, keys that cannot name outputs, what is damaged in an
    archive, compressed archives, and output folders of jobs/predict.py, which have a ledger.

    Args:
        uri: URI of a folder, or of a .tar file.
        without: Key of a folder to pass over; "" for none.
        index: Files of archives that were listed before; those of others are added to it.

    Raises:
        NotFoundError: There is nothing at `uri`, or a file that is no tar archive.
        StorageError: The folder cannot be listed, or an archive cannot be read.
    """
    place, index = uri.rstrip("/"), index or TarIndex()
    if place.lower().endswith(TAR_SUFFIX) and store.exists(place):
        files, left_out = _files_in_tar(place, store.stat(place), "", index)
        return Listing(files.sort_by("key"), tuple((key or place, reason) for key, reason in left_out))
    left_out = []
    try:
        stored = store.list_files(uri, lambda key: left_out.append((key, _NOT_UTF8)))
    except StorageError as error:
        raise _explain_file(place, error) from error
    if without:
        stored = [file for file in stored if not file.key.startswith(f"{without}/")]
    keys = pa.array([file.key for file in stored], pa.string())
    columns = {
        "key": keys,
        "etag": pa.array([file.etag for file in stored], pa.string()),
        "size": pa.array([file.size for file in stored], pa.int64()),
        "uri": pc.binary_join_element_wise(place, keys, "/"),
    }
    files = pa.table(columns, schema=FILE_SCHEMA)
    files, outputs = _without_outputs(files)
    files, impossible = _split(files, pc.match_substring_regex(files["key"], IMPOSSIBLE_KEY))
    left_out += [*outputs, *((repr(key), _IMPOSSIBLE) for key in impossible["key"].to_pylist())]
    files, archives = _split(files, _ends_with(files, (TAR_SUFFIX, *PACKED_TAR_SUFFIXES)))
    packed, archives = _split(archives, _ends_with(archives, (TAR_SUFFIX,)))
    left_out += [(key, COMPRESSED) for key in packed["key"].to_pylist()]

    def list_archive(file: dict[str, Any]) -> tuple[pa.Table, list[tuple[str, str]]]:
        return _files_in_tar(file["uri"], StoredFile(file["key"], file["size"], file["etag"]), f"{file['key']}/", index)

    tables = [files]
    for _, (members, reasons) in concurrently(list_archive, archives.to_pylist(), _ARCHIVES):
        tables.append(members)
        left_out += reasons
    if len(archives):
        files = pa.concat_tables(tables).sort_by("key")
    return Listing(files, tuple(left_out))


def _files_in_tar(uri: str, stored: StoredFile, prefix: str, index: TarIndex) -> tuple[pa.Table, list[tuple[str, str]]]:
    """Return the files in an archive, and names and reasons of what is left out; names begin with `prefix`."""
    rows = index.members(uri, stored)
    files, left_out = _split(rows, pc.is_valid(rows["reason"]))
    spans = list(map(Span, files["offset"].to_pylist(), files["size"].to_pylist()))
    columns = {
        "key": [prefix + name for name in files["name"].to_pylist()],
        "etag": [f"{stored.etag}@{span.offset}" for span in spans],
        "size": files["size"],
        "uri": [range_uri(uri, span) for span in spans],
    }
    names = [f"{prefix}{name}".rstrip("/") for name in left_out["name"].to_pylist()]
    return pa.table(columns, schema=FILE_SCHEMA), list(zip(names, left_out["reason"].to_pylist(), strict=True))


def _explain_file(place: str, error: StorageError) -> StorageError:
    """Return the error of a listing, or a better one if there is a file where a folder is expected."""
    try:
        is_file = store.exists(place)
    except StorageError:
        is_file = False
    if not is_file:
        return error
    kinds = f"a folder, a table ({', '.join(TABLE_SUFFIXES)}) or a tar archive ({TAR_SUFFIX}, not compressed)"
    return NotFoundError(f"{place} is a file; expected {kinds}. Unpack it, or give the folder that it is in.")


def _split(files: pa.Table, condition: pa.ChunkedArray) -> tuple[pa.Table, pa.Table]:
    """Return the rows for which a condition is false, and those for which it is true."""
    if not pc.any(condition).as_py():
        return files, files.slice(0, 0)
    return files.filter(pc.invert(condition)), files.filter(condition)


def _ends_with(files: pa.Table, suffixes: tuple[str, ...]) -> pa.ChunkedArray:
    pattern = "|".join(suffix.replace(".", r"\.") for suffix in suffixes)
    return pc.match_substring_regex(files["key"], f"({pattern})$", ignore_case=True)


def _without_outputs(files: pa.Table) -> tuple[pa.Table, list[tuple[str, str]]]:
    """Leave out the output folders of jobs/predict.py; of the top folder, only what the job wrote."""
    ledgers = files["key"].filter(pc.match_substring(files["key"], "_ledger/"))
    parts = ledgers.filter(pc.match_substring_regex(ledgers, _LEDGER_PART)).to_pylist()
    left_out = []
    for folder in sorted({part.rpartition("_ledger/")[0] for part in parts}):
        for prefix in [folder] if folder else _OUTPUTS:
            files, inside = _split(files, pc.starts_with(files["key"], prefix))
            if len(inside):
                left_out.append((prefix, f"is the output of another run, with {len(inside):,} files"))
    return files, left_out
