"""A block of photos, dealt with: what is written for each, and in which order, so that a crash costs work only.

    rows of photos -> bytes, many requests in flight -> image_HWC, a few at a time -> alpha_HW -> encoded
    -> 1. written whole, many requests in flight  2. the block's ledger part  3. what they supersede is removed

A photo that cannot be read, decoded or written becomes a failed row with its reason; the others go on. Where the time
went is told by stage.
Knows no cluster: a block is dealt with wherever it is called.
"""

import io
import json
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from matting import images, ledger, storage
from matting.images import BadImage, Pixels
from matting.ledger import BadKey
from matting.metrics import confidence, coverage
from matting.photos import read_photos
from matting.predictor import Predictor, Refine, Shape
from matting.refine import cutout

Kind = Literal["alpha", "cutout"]
CutoutFormat = Literal["png", "webp"]
Sink = Literal["files", "table"]
Stage = Literal["fetch", "decode", "network", "refine", "encode", "write", "ledger"]

IN_FLIGHT = 32  # requests: a GET or PUT of an object store takes 20-100 ms, the network 7 ms a photo
LONGEST_NAME = 255  # bytes, on local file systems
TABLE_FOLDER = "mattes"
TABLE_SCHEMA = pa.schema([("key", pa.string()), ("etag", pa.string()), ("alpha", pa.binary()), ("cutout", pa.binary())])

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What is made of a photo. Its text is the ledger's `settings`: other settings make every photo due again."""

    write: tuple[Kind, ...]
    format: CutoutFormat  # of cutouts; alphas are always PNG
    refine: Refine
    sink: Sink

    def __str__(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    def suffix(self, kind: Kind) -> str:
        """Of the files of this kind."""
        return "png" if kind == "alpha" else self.format


class Stopwatch:
    """Seconds of the thread that deals with a block, by stage; of fetching and writing, which go on beside it, the
    seconds that it waits for them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(get_args(Stage), 0.0)

    @contextmanager
    def during(self, stage: Stage) -> Iterator[None]:
        """Count what is done inside a ``with``."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - began


@dataclass(frozen=True)
class _Decoded:
    """A photo, reduced to what the predictor looks at; width and height are those of the upright whole."""

    row: Row
    data: bytes
    image_HWC: Pixels
    width: int
    height: int


@dataclass(frozen=True)
class _Matted:
    """A photo's alpha, encoded."""

    row: Row
    contents: Mapping[str, bytes]  # by kind


class Outputs:
    """Deals with blocks of photos.

    Args:
        output: URI of the folder for results.
        settings: what to make.
        run: name of this run.
        model: identity of the checkpoint.
        predictor: of that checkpoint.
        together: photos given to the predictor at once.
    """

    def __init__(
        self, output: str, settings: Settings, run: str, model: str, predictor: Predictor, together: int
    ) -> None:
        self._output, self._settings, self._run, self._model = output, settings, run, model
        self._predictor, self._together = predictor, together
        self._longest = LONGEST_NAME if storage.is_local(output) else None

    def handle(self, photos: pa.Table, number: int) -> tuple[list[Row], dict[str, float]]:
        """Leave the outputs and the ledger part of a block.

        Args:
            photos: columns of `photos.SCHEMA`, and `outputs`: of the photo's earlier ledger row, null if there is none.
            number: of the block, unique in its run. The same block again replaces what it left.

        Returns:
            A ledger row for each photo, in no order, with two things more: `read` and `written`, in bytes. And the
            seconds of each `Stage`.

        Raises:
            storage.StorageError: the ledger part, or the part of the table, cannot be written.
        """
        watch = Stopwatch()
        if self._settings.sink == "table":
            rows = self._into_table(photos, number, watch)
        else:
            rows = self._into_files(photos, watch)
        with watch.during("ledger"):
            ledger.write_part(
                self._output, self._run, number, [{name: row[name] for name in ledger.SCHEMA.names} for row in rows]
            )
            self._remove_superseded(photos, rows)
        return rows, watch.seconds

    def _remove_superseded(self, photos: pa.Table, rows: list[Row]) -> None:
        earlier = dict(zip(photos["key"].to_pylist(), photos["outputs"].to_pylist(), strict=True))
        for row in rows:
            for path in set(earlier[row["key"]] or ()) - set(row["outputs"]):
                if not path.startswith(f"{TABLE_FOLDER}/"):  # a part holds other photos too
                    storage.delete(storage.join(self._output, path))

    def _into_files(self, photos: pa.Table, watch: Stopwatch) -> list[Row]:
        rows: list[Row] = []
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            writing = deque[Future[Row]]()
            for matted in self._matted(photos, watch):
                writing.append(pool.submit(self._write, matted))
                if len(writing) > IN_FLIGHT:
                    with watch.during("write"):
                        rows.append(writing.popleft().result())
            with watch.during("write"):
                rows += [future.result() for future in writing]
        return rows

    def _write(self, matted: _Matted) -> Row:
        row = matted.row
        if row["status"] == "done":
            try:
                for kind in self._settings.write:
                    path = ledger.output_name(kind, row["key"], self._settings.suffix(kind), self._longest)
                    storage.write_bytes(storage.join(self._output, path), matted.contents[kind])
                    row["outputs"].append(path)
                    row["written"] += len(matted.contents[kind])
            except (BadKey, storage.StorageError) as error:
                for path in row["outputs"]:  # a failed row lists none
                    storage.delete(storage.join(self._output, path))
                row = _failed(row, f"cannot be written: {error}")
        return {**row, "finished_at": datetime.now(UTC)}

    def _into_table(self, photos: pa.Table, number: int, watch: Stopwatch) -> list[Row]:
        path = f"{TABLE_FOLDER}/{self._run}-{number:06d}.parquet"
        rows: list[Row] = []
        contents: list[Row] = []
        for matted in self._matted(photos, watch):
            rows.append(matted.row)
            if matted.row["status"] == "done":
                matted.row["outputs"].append(path)
                matted.row["written"] = sum(map(len, matted.contents.values()))
                contents.append({"key": matted.row["key"], "etag": matted.row["etag"], **matted.contents})
        if contents:
            with watch.during("write"):
                _write_table(storage.join(self._output, path), pa.Table.from_pylist(contents, TABLE_SCHEMA))
        return [{**row, "finished_at": datetime.now(UTC)} for row in rows]

    def _matted(self, photos: pa.Table, watch: Stopwatch) -> Iterator[_Matted]:
        """Every photo of the block with its alpha, or the reason why it has none."""
        inputs = photos.select(["key", "etag", "size"]).to_pylist()
        arriving = read_photos(photos, IN_FLIGHT)
        waiting = defaultdict[Shape, list[_Decoded]](list)  # for others that the network sees in the same shape
        while True:
            with watch.during("fetch"):
                some = list(islice(arriving, self._together))
            if not some:
                break
            for index, data in some:
                row = self._row(inputs[index], data)
                try:
                    if isinstance(data, str):
                        raise BadImage(f"cannot be read: {data}")
                    with watch.during("decode"):
                        photo = _Decoded(row, data, *images.decode_reduced(data, self._predictor.side))
                except BadImage as error:
                    yield _Matted(_failed(row, str(error)), {})
                    continue
                shape = self._predictor.shape(photo.width, photo.height)
                waiting[shape].append(photo)
                if len(waiting[shape]) == self._together:
                    yield from self._predicted(waiting.pop(shape), watch)
        for alike in waiting.values():
            yield from self._predicted(alike, watch)

    def _predicted(self, decoded: list[_Decoded], watch: Stopwatch) -> list[_Matted]:
        pictures = [photo.image_HWC for photo in decoded]
        sizes = [(photo.width, photo.height) for photo in decoded]
        try:
            with watch.during("network"):
                looks = self._predictor.looks(pictures, sizes)
            with watch.during("refine"):
                alphas = self._predictor.enlarged(looks, pictures, sizes)
            with watch.during("encode"):
                return [self._encoded(photo, alpha) for photo, alpha in zip(decoded, alphas, strict=True)]
        except Exception as error:  # of any type: of 10**8 photos, one will find what nobody thought of
            if len(decoded) > 1:
                return [matted for photo in decoded for matted in self._predicted([photo], watch)]
            reason = str(error) if isinstance(error, BadImage) else f"{type(error).__name__}: {error}"
            return [_Matted(_failed(decoded[0].row, reason), {})]

    def _encoded(self, photo: _Decoded, alpha_HW: Pixels) -> _Matted:
        size = {"width": photo.width, "height": photo.height}
        contents: dict[str, bytes] = {kind: self._encode(kind, photo, alpha_HW) for kind in self._settings.write}
        said = {"coverage": coverage(alpha_HW), "confidence": confidence(alpha_HW)}
        return _Matted(photo.row | size | said, contents)

    def _encode(self, kind: Kind, photo: _Decoded, alpha_HW: Pixels) -> bytes:
        if kind == "alpha":
            return images.encode_png(alpha_HW)
        is_whole = photo.image_HWC.shape[:2] == alpha_HW.shape
        image_HWC = photo.image_HWC if is_whole else images.decode_image(photo.data)
        cutout_HWC = cutout(image_HWC, alpha_HW)
        return images.encode_webp(cutout_HWC) if self._settings.format == "webp" else images.encode_png(cutout_HWC)

    def _row(self, photo: Mapping[str, Any], data: bytes | str) -> Row:
        return {
            **photo,
            "model": self._model,
            "settings": str(self._settings),
            "status": "done",
            "error": None,
            "outputs": [],
            "run": self._run,
            "read": len(data) if isinstance(data, bytes) else 0,
            "written": 0,
        }


def remove(output: str, paths_by_key: Mapping[str, Sequence[str]]) -> None:
    """Remove what these ledger rows list; what is gone already is no error.

    Raises:
        storage.StorageError: something could not be removed.
    """
    parts = defaultdict[str, list[str]](list)
    for key, paths in paths_by_key.items():
        for path in paths:
            if path.startswith(f"{TABLE_FOLDER}/"):
                parts[path].append(key)
            else:
                storage.delete(storage.join(output, path))
    for path, keys in parts.items():
        uri = storage.join(output, path)
        if storage.exists(uri):
            table = pq.read_table(pa.BufferReader(storage.read_bytes(uri)))
            _write_table(uri, table.filter(pc.invert(pc.is_in(table["key"], pa.array(keys)))))


def _write_table(uri: str, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="none")  # PNGs are compressed
    storage.write_bytes(uri, buffer.getvalue())


def _failed(row: Row, reason: str) -> Row:
    nothing = dict.fromkeys(("width", "height", "coverage", "confidence"))
    return {**row, **nothing, "status": "failed", "error": reason, "outputs": [], "written": 0}
