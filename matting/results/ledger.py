"""The ledger of a collection: one current row for every photo that a run has handled.

    plan     listing (key, etag, …) and ledger  -> state of every photo, and the photos that are due
    write    rows of a block (LEDGER_SCHEMA)    -> <output>/_ledger/<run>-<number>.parquet
    compact  all parts of all runs              -> <output>/_ledger/merged-<random>.parquet
    read     all parts                          -> latest row of every key, sorted by key

A photo is in one of these states:

    new        the ledger has no row with its key
    changed    its etag is not the row's: the file was replaced
    outdated   another model or other settings made its outputs
    transient  it failed for a reason outside itself, such as a store or a device; a later run may succeed
    failed     it failed for a reason of its own, such as a damaged file
    done       its outputs are up to date

The ledger is a log: the latest row of a key counts, so a row may exist twice. Its parts are plain Parquet for any
reader. A part never changes, except when its block of photos is handled again, and is deleted only when its rows are in
another part. Therefore any number of runs may write, read and compact at the same time, and may stop anywhere: no row
is lost.
"""

import io
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from matting.storage import store
from matting.storage.concurrent import concurrently
from matting.storage.errors import NotFoundError
from matting.storage.uri import join_uri

LEDGER_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("etag", pa.string()),  # etag of the photo that was read
        ("size", pa.int64()),  # bytes of the photo's file
        ("model", pa.string()),  # identity of the checkpoint
        ("settings", pa.string()),  # str(PredictionSettings)
        ("status", pa.string()),  # "done", "failed" or "transient"
        ("error", pa.string()),  # reason of a failure; null when done
        ("warning", pa.string()),  # damage of the file that left its pixels whole, or doubtful colours; else null
        ("width", pa.int32()),  # this column and the next seven are null unless done
        ("height", pa.int32()),
        ("coverage", pa.float32()),  # mean alpha, in [0, 1]
        ("confidence", pa.float32()),  # `metrics.confidence` of the alpha, in [0, 1]
        ("left", pa.int32()),  # `compose.PersonBox`; this column and the next three are null if there is nobody
        ("top", pa.int32()),
        ("right", pa.int32()),
        ("bottom", pa.int32()),
        ("outputs", pa.list_(pa.string())),  # paths relative to the output folder
        ("run", pa.string()),
        ("finished_at", pa.timestamp("us")),  # UTC without a time zone: DuckDB would need one more package
    ]
)
MEASURED = ("width", "height", "coverage", "confidence", "left", "top", "right", "bottom")  # figures of a done photo
STATES = ("new", "changed", "outdated", "transient", "failed", "done")

_FOLDER = "_ledger"
_MERGED = "merged-"  # prefix of the parts that compaction writes
_ORDER = ("key", "finished_at", "run")  # the last row of a key, sorted by these columns, is its current one
_ADDED = ("warning", "left", "top", "right", "bottom")  # columns that the parts of earlier versions lack: null there
_FEW_VALUES = ["model", "settings", "status", "error", "warning"]  # columns that are dictionary-encoded in memory
_REQUESTS = 32  # parallel requests: a part takes some 50 ms on object storage, and a run leaves hundreds of parts

_Result = TypeVar("_Result")


class LedgerError(Exception):
    """A part of the ledger cannot be read. The message names the part and says what to do."""


def new_run_name(now: datetime) -> str:
    """Return a name for a run that begins now: sortable by time, unique within a second, and fit for a file name."""
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"


# Parts ----------------------------------------------------------------------------------------------------------------


def write_part(output: str, run: str, number: int, rows: pa.Table | Sequence[Mapping[str, Any]]) -> None:
    """Write the rows of a block of photos. Writing the same run and number again replaces them.

    Args:
        output: URI of the output folder.
        run: Name of the run.
        number: Number of the block, unique in its run.
        rows: Rows with the columns of LEDGER_SCHEMA.

    Raises:
        StorageError: Nothing was written; the message says why.
    """
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows), schema=LEDGER_SCHEMA)
    _write(output, f"{run}-{number:06d}.parquet", table)


def read(output: str, columns: Sequence[str] = LEDGER_SCHEMA.names) -> pa.Table:
    """Return the latest row of every key (by finished_at, then by run), sorted by key; no rows if there is no ledger.

    Other runs may write or compact at the same time.

    Args:
        output: URI of the output folder.
        columns: Names of the columns to read; others are not decoded.

    Raises:
        LedgerError: A part is damaged or foreign.
        StorageError: The store does not answer.
    """
    _, rows = _read_parts(output, [name for name in LEDGER_SCHEMA.names if name in {*columns, *_ORDER}])
    return _latest(rows).select(list(columns))


def compact(output: str, without: Collection[str] | pa.Array | pa.ChunkedArray = ()) -> pa.Table:
    """Merge all parts into one part with one row per key, sorted by key, and return it.

    Nothing is written where there is nothing to merge or to drop.

    Several runs may compact at the same time. Each writes its merged part under a name of its own and deletes the parts
    that it read only after that. A run takes its own merged part back in two cases: another run was faster, so that
    parts that it read are gone; or another run has begun to compact as well, and that run's merged part sorts first.
    Without the second rule, two runs in step could merge each other's parts for ever. A run ends when its own part is
    the only merged one; parts that another run has written since are left to that run. A run that dies leaves rows
    twice, which the next compaction cleans up.

    Args:
        output: URI of the output folder.
        without: Keys whose rows are dropped.

    Raises:
        LedgerError: A part is damaged or foreign; nothing was deleted.
        StorageError: The store does not answer; nothing is lost, run again.
    """
    dropped = without if isinstance(without, pa.Array | pa.ChunkedArray) else pa.array(list(without), pa.string())
    while True:
        parts, rows = _read_parts(output, LEDGER_SCHEMA.names)
        merged = _latest(rows)
        merged = merged.filter(pc.invert(pc.is_in(merged["key"], dropped)))
        if len(parts) <= 1 and len(merged) == len(rows):
            return merged
        name = f"{_MERGED}{uuid.uuid4().hex}.parquet"
        _write(output, name, merged)
        found = _list(output)
        if parts <= found and name == min(_merged_names(found - parts), default=None):
            _delete(output, parts)
            if _merged_names(_list(output)) == {name}:
                return merged
        else:
            _delete(output, {name})


def _write(output: str, name: str, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(
        table.select(LEDGER_SCHEMA.names).cast(LEDGER_SCHEMA),
        sink,
        compression="zstd",
        use_dictionary=[*_FEW_VALUES, "run"],
        write_page_checksum=True,
        store_schema=False,  # keeps Arrow's own metadata out, for readers that know Parquet only
    )
    store.write_bytes(_part_uri(output, name), sink.getvalue())


def _delete(output: str, names: Collection[str]) -> None:
    _for_each(lambda name: store.delete(_part_uri(output, name)), names)


def _list(output: str) -> set[str]:
    try:
        files = store.list_files(join_uri(output, _FOLDER))
    except NotFoundError:
        return set()
    return {file.key for file in files if file.key.endswith(".parquet") and "/" not in file.key}


def _merged_names(names: Iterable[str]) -> set[str]:
    return {name for name in names if name.startswith(_MERGED)}


def _list_whole(output: str) -> set[str]:
    """Return the names of all parts, repeating the listing until it misses nothing that the one before had.

    A long listing is not a snapshot. It may miss a part that is deleted before the listing reaches it, and also the
    merged part that replaces it, if that one appears in a place that the listing has passed. The next listing has it.
    """
    seen = _list(output)
    while not seen <= (names := _list(output)):
        seen = names
    return names


def _read_parts(output: str, columns: Sequence[str]) -> tuple[set[str], pa.Table]:
    """Return the names of all parts, and all their rows in no order."""
    names = _list_whole(output)
    while True:
        try:
            tables = _for_each(lambda name: _read_part(_part_uri(output, name), columns), names)
        except NotFoundError:
            before, names = names, _list_whole(output)
            if names == before:  # a part that is listed but missing was not merged by another run: a broken link
                raise
        else:
            return names, pa.concat_tables([_memory_schema(columns).empty_table(), *tables])


def _read_part(uri: str, columns: Sequence[str]) -> pa.Table:
    # Reading the whole object takes one request, and gives one version of a part that is being replaced.
    data = store.read_bytes(uri)
    try:
        encoded = [name for name in _FEW_VALUES if name not in _ADDED]  # naming a column that is missing is an error
        file = pq.ParquetFile(io.BytesIO(data), read_dictionary=encoded, page_checksum_verification=True)
        table = file.read(columns=list(columns))
        for name in {*_ADDED}.intersection(columns).difference(table.column_names):
            table = table.append_column(name, pa.nulls(len(table), LEDGER_SCHEMA.field(name).type))
        return table.select(columns).cast(_memory_schema(columns))
    except (OSError, KeyError, pa.ArrowException) as error:  # damage, other columns, or other types
        raise LedgerError(
            f"{uri} is damaged or no part of a ledger ({error}). Move it away; if it was one, the photos that only it "
            "lists are handled again."
        ) from error


def _memory_schema(columns: Iterable[str]) -> pa.Schema:
    """Return LEDGER_SCHEMA with dictionaries: a million copies of model and settings take hundreds of megabytes."""
    encoded = pa.dictionary(pa.int32(), pa.string())
    return pa.schema([(name, encoded if name in _FEW_VALUES else LEDGER_SCHEMA.field(name).type) for name in columns])


def _part_uri(output: str, name: str) -> str:
    return join_uri(output, f"{_FOLDER}/{name}")


def _for_each(function: Callable[[str], _Result], names: Iterable[str]) -> list[_Result]:
    return [result for _, result in concurrently(function, sorted(names), _REQUESTS)]


def _latest(rows: pa.Table) -> pa.Table:
    """Return the current row of every key, sorted by key."""
    order = pc.sort_indices(rows, sort_keys=[(name, "ascending") for name in _ORDER])
    keys = rows["key"].take(order)
    is_last = pc.not_equal(keys[:-1], keys[1:]).combine_chunks()
    ends = pa.array([True] * min(len(rows), 1), pa.bool_())  # the last row of all is the last of its key
    latest = rows.take(order.filter(pa.concat_arrays([is_last, ends])))
    return latest.cast(pa.schema([LEDGER_SCHEMA.field(name) for name in rows.column_names]))


# Planning -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """State of every photo of a collection, and the work that follows from it.

    Args:
        states: State of each photo, in order: one of STATES.
        due: Photos to handle, in order, with all their columns.
        deleted: Keys of the ledger that are no longer among the photos.
        counts: Number of photos in each state, for all of STATES.
    """

    states: pa.ChunkedArray
    due: pa.Table
    deleted: pa.ChunkedArray
    counts: dict[str, int]


def plan(photos: pa.Table, ledger: pa.Table, model: str, settings: str, retry_failed: bool) -> Plan:
    """Compare a collection with its ledger.

    Photos are due if they are new, changed, outdated or transient, and with `retry_failed` if they failed.

    Args:
        photos: Listing of the collection: columns key (each once) and etag, and any others.
        ledger: One row per key, as from `read`: columns key, etag, model, settings and status.
        model: Identity of the checkpoint that this run uses.
        settings: Text of the PredictionSettings that this run uses.
        retry_failed: Whether photos that failed for a reason of their own are due again.
    """
    place = pc.index_in(photos["key"], ledger["key"])
    is_current = pc.and_(pc.equal(ledger["model"], model), pc.equal(ledger["settings"], settings))
    # One condition for each of STATES but the last; the first that is true decides. Without a row it is null: not true.
    conditions = [
        pc.is_null(place),
        pc.not_equal(photos["etag"], ledger["etag"].take(place)),
        pc.invert(is_current.take(place)),
        pc.equal(ledger["status"], "transient").take(place),
        pc.equal(ledger["status"], "failed").take(place),
    ]
    states = pc.case_when(pc.make_struct(*conditions), *STATES)
    due_states = [state for state in STATES if state != "done" and (state != "failed" or retry_failed)]
    found = {entry["values"]: entry["counts"] for entry in pc.value_counts(states).to_pylist()}
    return Plan(
        states=states,
        due=photos.filter(pc.is_in(states, pa.array(due_states))),
        deleted=ledger["key"].filter(pc.invert(pc.is_in(ledger["key"], photos["key"]))),
        counts={state: found.get(state, 0) for state in STATES},
    )


def last_rate(ledger: pa.Table) -> float | None:
    """Return the throughput of the ledger's last run, in photos per second from its first photo to its last.

    Args:
        ledger: Rows with the columns run and finished_at.

    Returns:
        Photos per second; None if the run has fewer than two photos, or finished all at the same time.
    """
    last = ledger.filter(pc.equal(ledger["run"], pc.max(ledger["run"])))["finished_at"].cast(pa.int64())
    if len(last) < 2:
        return None
    span = pc.min_max(last).as_py()
    microseconds = span["max"] - span["min"]
    return (len(last) - 1) * 1e6 / microseconds if microseconds else None
