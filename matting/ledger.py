"""The ledger of a collection's outputs: their names, what became of every input, and what is left to do.

    plan     a listing (key, etag, …) and the ledger -> what is new, changed, outdated, failed, done, deleted
    write    rows of a block of photos, as SCHEMA    -> <output>/_ledger/<run>-<number>.parquet
    compact  all parts of all runs                   -> <output>/_ledger/merged-<random>.parquet
    read     all parts                               -> the latest row of every key, sorted by key

The ledger is a log: a key's latest row counts, so a row may be there twice. Its parts are plain Parquet for any reader.
No part is ever changed, but for a block of photos that is handled again; a part is deleted only when its rows are in
another. So any number of runs may write, read and merge at the same time, and die anywhere: no row is lost.

Knows keys and rows; no images, and no way to make an output.
"""

import hashlib
import io
import re
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from matting import storage
from matting.storage import FOR_NOW, NotFoundError

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("etag", pa.string()),  # of the photo, as it was read
        ("size", pa.int64()),  # of the photo, in bytes
        ("model", pa.string()),  # which network, and
        ("settings", pa.string()),  # which options made the outputs
        ("status", pa.string()),  # "done" or "failed"
        ("error", pa.string()),  # why it failed; null when done
        ("width", pa.int32()),  # these four are null when failed
        ("height", pa.int32()),
        ("coverage", pa.float32()),  # mean alpha, in [0, 1]
        ("confidence", pa.float32()),  # `metrics.confidence` of the alpha, in [0, 1]
        ("outputs", pa.list_(pa.string())),  # paths relative to the output folder
        ("run", pa.string()),
        ("finished_at", pa.timestamp("us")),  # UTC; with a time zone, DuckDB's Python would ask for a package more
    ]
)
STATES = ("new", "changed", "outdated", "unavailable", "failed", "done")

_FOLDER = "_ledger"
_MERGED = "merged-"  # a part that compaction wrote
_LATEST = ("key", "finished_at", "run")  # what tells which row of a key counts
_FEW_VALUES = ["model", "settings", "status", "error"]  # columns that are held by number until they are handed out
_REQUESTS = 32  # at a time: a part costs some 50 ms of waiting on object storage, and a run leaves hundreds
_SHORTENED = re.compile(r"~[0-9a-f]{32}")

_T = TypeVar("_T")


class BadKey(ValueError):
    """A key that can name no output. The message is the reason, on one line."""


class LedgerError(Exception):
    """A part of the ledger that is none. The message names it, and says what to do."""


# Names ----------------------------------------------------------------------------------------------------------------


def output_name(kind: str, key: str, suffix: str, longest_part: int | None) -> str:
    """The path of an output below the output folder: ``("alpha", "x/a.jpg", "png")`` -> ``alpha/x/a.jpg.png``.

    Distinct keys have distinct names, and none is a folder of another's. A part of the path that is too long becomes
    its start, '~' and half of its SHA-256. So does, where there is a bound, a part that could be taken for such a
    one, or a folder that ends as the files do: therefore two names are one only if the hashes collide at 128 bits.

    Args:
        longest_part: bytes that a part of a path may have where the output lives, 255 on most file systems; None on
            object storage, which has no parts, bounds none, and keeps ``a.png`` beside ``a.png/b.png``.

    Raises:
        BadKey: the key has an empty, '.' or '..' part, with which it would lead out of the output folder or to the
            output of another, or a NUL, which no path can have.
    """
    parts = key.split("/")
    if not {"", ".", ".."}.isdisjoint(parts):
        raise BadKey(f"key {key!r} has an empty, '.' or '..' part, so it cannot name an output; rename the photo")
    if "\0" in key:
        raise BadKey(f"key {key!r} has a NUL character, so it cannot name an output; rename the photo")
    ending = f".{suffix}"
    if longest_part is None:
        return f"{kind}/{key}{ending}"
    folders = [_fit(part, "", longest_part, part.endswith(ending)) for part in parts[:-1]]
    return "/".join([kind, *folders, _fit(parts[-1], ending, longest_part, False)])


def _fit(part: str, ending: str, longest: int, is_ambiguous: bool) -> str:
    name = part.encode()
    if len(name) + len(ending) <= longest and not is_ambiguous and not _SHORTENED.fullmatch(part[-33:]):
        return part + ending
    tail = f"~{hashlib.sha256(name).hexdigest()[:32]}{ending}"
    return name[: longest - len(tail)].decode(errors="ignore") + tail


def new_run(now: datetime) -> str:
    """A name for a run that begins now: sorts by time, unique also among runs of the same second, fit for a file."""
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"


# Parts ----------------------------------------------------------------------------------------------------------------


def write_part(output: str, run: str, number: int, rows: pa.Table | Sequence[Mapping[str, Any]]) -> None:
    """The rows of one block of photos, as in SCHEMA. The same run and number again replaces them.

    Raises:
        StorageError: nothing was written, and why.
    """
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows), schema=SCHEMA)
    _write(output, f"{run}-{number:06d}.parquet", table)


def read(output: str, columns: Sequence[str] = SCHEMA.names) -> pa.Table:
    """The latest row of every key (by finished_at, then by run), sorted by key; no rows where there is no ledger.

    Only the columns asked for are decoded. Holds against runs that write or compact meanwhile.

    Raises:
        LedgerError: a part is damaged or foreign.
        StorageError: the store does not answer.
    """
    _, rows = _read_parts(output, [name for name in SCHEMA.names if name in {*columns, *_LATEST}])
    return _latest(rows).select(list(columns))


def compact(output: str, without: Collection[str] | pa.Array | pa.ChunkedArray = ()) -> pa.Table:
    """Merge all parts into one with one row per key, sorted by key, and return it. Where nothing is to merge or to
    drop, nothing is written.

    Several runs may do so at the same time. Each writes what it merged under a name of its own, and only then deletes
    what it read. It takes its own part back if another was faster, which shows in parts that it read and that are gone,
    or has begun as well, with a part whose name sorts first: else two that keep step could merge each other's parts for
    ever. It ends when its own is the only merged part; parts that another run has written since are for that run to
    compact. One that dies leaves rows twice, which the next compaction mends.

    Args:
        without: keys whose rows are dropped.

    Raises:
        LedgerError: a part is damaged or foreign; nothing was deleted.
        StorageError: the store does not answer; nothing is lost, run again.
    """
    dropped = without if isinstance(without, pa.Array | pa.ChunkedArray) else pa.array(list(without), pa.string())
    while True:
        parts, rows = _read_parts(output, SCHEMA.names)
        merged = _latest(rows)
        merged = merged.filter(pc.invert(pc.is_in(merged["key"], dropped)))
        if len(parts) <= 1 and len(merged) == len(rows):
            return merged
        name = f"{_MERGED}{uuid.uuid4().hex}.parquet"
        _write(output, name, merged)
        found = _list(output)
        if parts <= found and name == min(_merged(found - parts), default=None):
            _delete(output, parts)
            if _merged(_list(output)) == {name}:
                return merged
        else:
            _delete(output, {name})


def _write(output: str, name: str, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(
        table.select(SCHEMA.names).cast(SCHEMA),
        sink,
        compression="zstd",
        use_dictionary=[*_FEW_VALUES, "run"],
        write_page_checksum=True,
        store_schema=False,  # types that Parquet itself has, and no words for Arrow alone
    )
    storage.write_bytes(_part_uri(output, name), sink.getvalue())


def _delete(output: str, names: Collection[str]) -> None:
    _at_once(lambda name: storage.delete(_part_uri(output, name)), names)


def _list(output: str) -> set[str]:
    try:
        files = storage.list_files(storage.join(output, _FOLDER))
    except NotFoundError:
        return set()
    return {file.key for file in files if file.key.endswith(".parquet") and "/" not in file.key}


def _merged(names: Iterable[str]) -> set[str]:
    return {name for name in names if name.startswith(_MERGED)}


def _list_whole(output: str) -> set[str]:
    """All parts. A long listing is not of one moment: it may miss a part that is deleted before it gets there, and also
    the one that has its rows, if that appears behind it. The next listing has the latter."""
    seen = _list(output)
    while not seen <= (names := _list(output)):
        seen = names
    return names


def _read_parts(output: str, columns: Sequence[str]) -> tuple[set[str], pa.Table]:
    """All parts and all their rows, in no order."""
    names = _list_whole(output)
    while True:
        try:
            tables = _at_once(lambda name: _read_part(_part_uri(output, name), columns), names)
        except NotFoundError:
            before, names = names, _list_whole(output)
            if names == before:  # listed, yet not there: not merged by another run, but a broken link
                raise
        else:
            return names, pa.concat_tables([_held(columns).empty_table(), *tables])


def _read_part(uri: str, columns: Sequence[str]) -> pa.Table:
    # Whole and not by columns: that is one request, and one version where the part is being replaced.
    data = storage.read_bytes(uri)
    try:
        file = pq.ParquetFile(io.BytesIO(data), read_dictionary=_FEW_VALUES, page_checksum_verification=True)
        return file.read(columns=list(columns)).select(columns).cast(_held(columns))
    except (OSError, KeyError, pa.ArrowException) as error:  # Parquet's words for damage, other columns, other types
        raise LedgerError(
            f"{uri} is damaged or no part of a ledger ({error}). Move it away; if it was one, the photos that only it "
            "knows are handled again."
        ) from error


def _held(columns: Iterable[str]) -> pa.Schema:
    """SCHEMA as it is held: a million times the same model and settings would be hundreds of megabytes."""
    number = pa.dictionary(pa.int32(), pa.string())
    return pa.schema([(name, number if name in _FEW_VALUES else SCHEMA.field(name).type) for name in columns])


def _part_uri(output: str, name: str) -> str:
    return storage.join(output, f"{_FOLDER}/{name}")


def _at_once(function: Callable[[str], _T], names: Iterable[str]) -> list[_T]:
    return [result for _, result in storage.concurrently(function, sorted(names), _REQUESTS)]


def _latest(rows: pa.Table) -> pa.Table:
    """The last row of every key, sorted by key."""
    order = pc.sort_indices(rows, sort_keys=[(name, "ascending") for name in _LATEST])
    keys = rows["key"].take(order)
    is_last = pc.not_equal(keys[:-1], keys[1:]).combine_chunks()
    ends = pa.array([True] * min(len(rows), 1), pa.bool_())  # after the last row comes no other key
    latest = rows.take(order.filter(pa.concat_arrays([is_last, ends])))
    return latest.cast(pa.schema([SCHEMA.field(name) for name in rows.column_names]))


# What is left to do ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What a run finds, and what it has to do.

    Args:
        states: of each photo, in order: one of STATES.
        due: the photos to handle, in order, with all their columns.
        deleted: keys of the ledger that are no longer among the photos.
        counts: photos in each state, for all of STATES.
    """

    states: pa.ChunkedArray
    due: pa.Table
    deleted: pa.ChunkedArray
    counts: dict[str, int]


def plan(photos: pa.Table, ledger: pa.Table, model: str, settings: str, retry_failed: bool) -> Plan:
    """Compare a collection with its ledger. Due is a photo that is new to it, changed (another etag), outdated
    (handled by another model or with other settings) or unavailable (when last tried, the store failed); one that
    failed for a reason of its own only with `retry_failed`.

    Args:
        photos: columns key (each once) and etag, and any others.
        ledger: one row per key, as from `read`; columns key, etag, model, settings, status and error.
    """
    place = pc.index_in(photos["key"], ledger["key"])
    is_current = pc.and_(pc.equal(ledger["model"], model), pc.equal(ledger["settings"], settings))
    is_failed = pc.equal(ledger["status"], "failed")
    # In the order of STATES, of which the first that holds counts; null, where there is no row, does not.
    holds = [
        pc.is_null(place),
        pc.not_equal(photos["etag"], ledger["etag"].take(place)),
        pc.invert(is_current.take(place)),
        pc.match_substring(ledger["error"], FOR_NOW).take(place),
        is_failed.take(place),
    ]
    states = pc.case_when(pc.make_struct(*holds), *STATES)
    due_states = [state for state in STATES if state != "done" and (state != "failed" or retry_failed)]
    found = {entry["values"]: entry["counts"] for entry in pc.value_counts(states).to_pylist()}
    return Plan(
        states=states,
        due=photos.filter(pc.is_in(states, pa.array(due_states))),
        deleted=ledger["key"].filter(pc.invert(pc.is_in(ledger["key"], photos["key"]))),
        counts={state: found.get(state, 0) for state in STATES},
    )


def last_rate(ledger: pa.Table) -> float | None:
    """Photos per second of the last run in the ledger, from its first photo to its last; None where that cannot be
    told. Columns run and finished_at."""
    last = ledger.filter(pc.equal(ledger["run"], pc.max(ledger["run"])))["finished_at"].cast(pa.int64())
    if len(last) < 2:
        return None
    span = pc.min_max(last).as_py()
    microseconds = span["max"] - span["min"]
    return (len(last) - 1) * 1e6 / microseconds if microseconds else None
