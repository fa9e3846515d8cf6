"""The pipeline that handles a block of photos: it predicts, writes outputs and records them, in an order safe to kill.

    rows of photos -> bytes, many requests in flight -> image_HWC, a micro-batch at a time -> alpha_HW -> encoded
    -> 1. write outputs, many requests in flight  2. write the block's ledger part  3. delete superseded outputs

A photo that cannot be read, decoded or written becomes a failed row with its reason; the others go on. A run that is
killed between two steps repeats work, and loses nothing. Seconds are counted by stage. The pipeline runs in the process
that calls it and knows no cluster.
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

from matting.data import images
from matting.data.images import BadImage, Pixels
from matting.data.mattes import MATTE_SCHEMA
from matting.data.photos import read_photos
from matting.inference.input_shapes import Shape
from matting.inference.predictor import Predictor, Refine
from matting.inference.refine import cutout
from matting.nn.metrics import confidence, coverage
from matting.nn.precision import NumberFormat
from matting.results import ledger
from matting.results.output_names import BadKey, output_name
from matting.storage import store
from matting.storage.errors import StorageError
from matting.storage.uri import is_local, join_uri

Kind = Literal["alpha", "cutout"]
CutoutFormat = Literal["png", "webp"]
Sink = Literal["files", "table"]
Stage = Literal["fetch", "decode", "network", "refine", "encode", "write", "ledger"]

REQUESTS_IN_FLIGHT = 32  # a GET or PUT of an object store takes 20-100 ms, the network 7 ms a photo

LONGEST_NAME = 255  # bytes of a part of a path, on local file systems
TABLE_FOLDER = "mattes"
TABLE_SCHEMA = MATTE_SCHEMA.insert(1, pa.field("etag", pa.string()))

Row = dict[str, Any]


@dataclass(frozen=True)
class PredictionSettings:
    """Settings that determine the outputs of a photo.

    Their JSON text is the ledger's `settings`: when it changes, every photo is due again.

    Args:
        write: Kinds of outputs to write.
        format: File format of cutouts; alphas are always PNG.
        refine: Way from small alphas to the photo's size.
        sink: Whether outputs are files of their own, or rows of Parquet tables.
        precision: Number format that the network predicts in, which changes single pixels of a matte.
    """

    write: tuple[Kind, ...]
    format: CutoutFormat
    refine: Refine
    sink: Sink
    precision: NumberFormat

    def __str__(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    def suffix(self, kind: Kind) -> str:
        """Return the suffix of files of this kind, without a dot."""
        return "png" if kind == "alpha" else self.format


class Stopwatch:
    """A count of seconds by stage, in the thread that handles a block.

    Fetching and writing go on in other threads; for them, only the seconds that this thread waits count.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(get_args(Stage), 0.0)

    @contextmanager
    def during(self, stage: Stage) -> Iterator[None]:
        """Count the seconds of a ``with`` block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - began


@dataclass(frozen=True)
class _DecodedPhoto:
    """A photo, reduced as far as the predictor allows; width and height are those of the whole upright photo."""

    row: Row
    data: bytes
    image_HWC: Pixels
    width: int
    height: int


@dataclass(frozen=True)
class _EncodedPhoto:
    """A photo's ledger row, and the contents of its outputs by kind; none if it failed."""

    row: Row
    contents: Mapping[str, bytes]


class PhotoPipeline:
    """Handles blocks of photos.

    Args:
        output: URI of the output folder.
        settings: Settings that determine the outputs.
        run: Name of this run.
        model: Identity of the checkpoint.
        predictor: Predictor of that checkpoint.
        micro_batch: Number of photos that the predictor receives at once.
    """

    def __init__(
        self, output: str, settings: PredictionSettings, run: str, model: str, predictor: Predictor, micro_batch: int
    ) -> None:
        self._output, self._settings, self._run, self._model = output, settings, run, model
        self._predictor, self._micro_batch = predictor, micro_batch
        self._longest_name = LONGEST_NAME if is_local(output) else None

    def handle(self, photos: pa.Table, number: int) -> tuple[list[Row], dict[str, float]]:
        """Predict a block; write its outputs and its ledger part.

        Args:
            photos: Rows with the columns of `PHOTO_SCHEMA` and `outputs`, the outputs in the photo's earlier
                ledger row, null if there is none.
            number: Number of the block, unique in its run. Handling a block again replaces its results.

        Returns:
            A ledger row for each photo, in no order, with two more entries, `read` and `written`, in bytes; and the
            seconds of each `Stage`.

        Raises:
            StorageError: The ledger part, or the part of the table, cannot be written.
        """
        watch = Stopwatch()
        if self._settings.sink == "table":
            rows = self._into_table(photos, number, watch)
        else:
            rows = self._into_files(photos, watch)
        with watch.during("ledger"):
            ledger.write_part(
                self._output,
                self._run,
                number,
                [{name: row[name] for name in ledger.LEDGER_SCHEMA.names} for row in rows],
            )
            self._remove_superseded(photos, rows)
        return rows, watch.seconds

    def _remove_superseded(self, photos: pa.Table, rows: list[Row]) -> None:
        earlier = dict(zip(photos["key"].to_pylist(), photos["outputs"].to_pylist(), strict=True))
        for row in rows:
            for path in set(earlier[row["key"]] or ()) - set(row["outputs"]):
                if not path.startswith(f"{TABLE_FOLDER}/"):  # a table holds mattes of other photos, too
                    store.delete(join_uri(self._output, path))

    def _into_files(self, photos: pa.Table, watch: Stopwatch) -> list[Row]:
        rows: list[Row] = []
        with ThreadPoolExecutor(REQUESTS_IN_FLIGHT) as pool:
            writing = deque[Future[Row]]()
            for encoded in self._predict(photos, watch):
                writing.append(pool.submit(self._write, encoded))
                if len(writing) > REQUESTS_IN_FLIGHT:
                    with watch.during("write"):
                        rows.append(writing.popleft().result())
            with watch.during("write"):
                rows += [future.result() for future in writing]
        return rows

    def _write(self, encoded: _EncodedPhoto) -> Row:
        row = encoded.row
        if row["status"] == "done":
            try:
                for kind in self._settings.write:
                    path = output_name(kind, row["key"], self._settings.suffix(kind), self._longest_name)
                    store.write_bytes(join_uri(self._output, path), encoded.contents[kind])
                    row["outputs"].append(path)
                    row["written"] += len(encoded.contents[kind])
            except (BadKey, StorageError) as error:
                for path in row["outputs"]:  # a failed row lists no outputs, so none may stay
                    store.delete(join_uri(self._output, path))
                row = _failed(row, f"cannot be written: {error}")
        return {**row, "finished_at": datetime.now(UTC)}

    def _into_table(self, photos: pa.Table, number: int, watch: Stopwatch) -> list[Row]:
        path = f"{TABLE_FOLDER}/{self._run}-{number:06d}.parquet"
        rows: list[Row] = []
        contents: list[Row] = []
        for encoded in self._predict(photos, watch):
            rows.append(encoded.row)
            if encoded.row["status"] == "done":
                encoded.row["outputs"].append(path)
                encoded.row["written"] = sum(map(len, encoded.contents.values()))
                contents.append({"key": encoded.row["key"], "etag": encoded.row["etag"], **encoded.contents})
        if contents:
            with watch.during("write"):
                _write_table(join_uri(self._output, path), pa.Table.from_pylist(contents, TABLE_SCHEMA))
        return [{**row, "finished_at": datetime.now(UTC)} for row in rows]

    def _predict(self, photos: pa.Table, watch: Stopwatch) -> Iterator[_EncodedPhoto]:
        """Yield every photo of the block with its encoded outputs, or with the reason why it has none."""
        inputs = photos.select(["key", "etag", "size"]).to_pylist()
        arriving = read_photos(photos, REQUESTS_IN_FLIGHT)
        waiting = defaultdict[Shape, list[_DecodedPhoto]](list)  # photos of one input shape form a micro-batch
        while True:
            with watch.during("fetch"):
                arrived = list(islice(arriving, self._micro_batch))
            if not arrived:
                break
            for index, data in arrived:
                row = self._row(inputs[index], data)
                try:
                    if isinstance(data, str):
                        raise BadImage(f"cannot be read: {data}")
                    with watch.during("decode"):
                        photo = _DecodedPhoto(row, data, *images.decode_reduced(data, self._predictor.min_side))
                except BadImage as error:
                    yield _EncodedPhoto(_failed(row, str(error)), {})
                    continue
                shape = self._predictor.input_shape(photo.width, photo.height)
                waiting[shape].append(photo)
                if len(waiting[shape]) == self._micro_batch:
                    yield from self._predict_decoded(waiting.pop(shape), watch)
        for micro_batch in waiting.values():
            yield from self._predict_decoded(micro_batch, watch)

    def _predict_decoded(self, photos: list[_DecodedPhoto], watch: Stopwatch) -> list[_EncodedPhoto]:
        """Predict and encode photos of one input shape; if that fails, each on its own to find the culprit."""
        images_HWC = [photo.image_HWC for photo in photos]
        sizes = [(photo.width, photo.height) for photo in photos]
        try:
            with watch.during("network"):
                small = self._predictor.predict_small(images_HWC, sizes)
            with watch.during("refine"):
                alphas = self._predictor.enlarge(small, images_HWC, sizes)
            with watch.during("encode"):
                return [self._encode(photo, alpha) for photo, alpha in zip(photos, alphas, strict=True)]
        except Exception as error:  # any type: among 10**8 photos, one will fail in a way that nobody foresaw
            if len(photos) > 1:
                return [encoded for photo in photos for encoded in self._predict_decoded([photo], watch)]
            reason = str(error) if isinstance(error, BadImage) else f"{type(error).__name__}: {error}"
            return [_EncodedPhoto(_failed(photos[0].row, reason), {})]

    def _encode(self, photo: _DecodedPhoto, alpha_HW: Pixels) -> _EncodedPhoto:
        contents: dict[str, bytes] = {kind: self._encode_kind(kind, photo, alpha_HW) for kind in self._settings.write}
        measured = {
            "width": photo.width,
            "height": photo.height,
            "coverage": coverage(alpha_HW),
            "confidence": confidence(alpha_HW),
        }
        return _EncodedPhoto(photo.row | measured, contents)

    def _encode_kind(self, kind: Kind, photo: _DecodedPhoto, alpha_HW: Pixels) -> bytes:
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
    """Remove outputs; missing ones are no error.

    Args:
        output: URI of the output folder.
        paths_by_key: Keys, and the `outputs` of their ledger rows.

    Raises:
        StorageError: An output could not be removed.
    """
    parts = defaultdict[str, list[str]](list)
    for key, paths in paths_by_key.items():
        for path in paths:
            if path.startswith(f"{TABLE_FOLDER}/"):
                parts[path].append(key)
            else:
                store.delete(join_uri(output, path))
    for path, keys in parts.items():
        uri = join_uri(output, path)
        if store.exists(uri):
            table = pq.read_table(pa.BufferReader(store.read_bytes(uri)))
            _write_table(uri, table.filter(pc.invert(pc.is_in(table["key"], pa.array(keys)))))


def _write_table(uri: str, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="none")  # its PNGs are compressed already
    store.write_bytes(uri, buffer.getvalue())


def _failed(row: Row, reason: str) -> Row:
    unknown = dict.fromkeys(("width", "height", "coverage", "confidence"))
    return {**row, **unknown, "status": "failed", "error": reason, "outputs": [], "written": 0}
