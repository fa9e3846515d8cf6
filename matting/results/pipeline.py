"""The pipeline that handles a block of photos: it predicts, writes outputs and records them, in an order safe to kill.

    rows of photos -> bytes, many requests in flight -> image_HWC, a micro-batch at a time -> alpha_HW -> encoded
    -> 1. write outputs, many requests in flight  2. write the block's ledger part  3. delete superseded outputs

A photo that cannot be read, decoded or written becomes a row with the reason; the others go on. The row is failed if
the photo itself is the cause, else transient: then a later run tries again. A broken device ends the block without any
row. A run that is killed between two steps repeats work, and loses nothing. Seconds are counted by stage. The pipeline
runs in the process that calls it and knows no cluster.
"""

import json
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Literal, get_args

import pyarrow as pa

from matting.data import images
from matting.data.images import BadImage, DecodedPhoto, Pixels
from matting.data.photo_tables import ReadFailure
from matting.data.photos import read_photos
from matting.inference.compose import PersonBox, person_box
from matting.inference.device_errors import DeviceError, is_device_error
from matting.inference.input_shapes import Shape
from matting.inference.predictor import PhotoPredictor, Refine
from matting.nn.metrics import confidence, coverage
from matting.nn.precision import NumberFormat
from matting.results.cutouts import Background, CutoutEncoder, CutoutFormat
from matting.results.outcomes import Row, Status, new_row, record, without_outputs
from matting.results.output_names import BadKey, output_name
from matting.results.outputs import TABLE_SCHEMA, table_path, write_table
from matting.storage import store
from matting.storage.errors import StorageError
from matting.storage.uri import is_local, join_uri

Kind = Literal["alpha", "cutout"]
Sink = Literal["files", "table"]
Stage = Literal["fetch", "decode", "network", "refine", "encode", "write", "ledger"]

REQUESTS_IN_FLIGHT = 32  # a GET or PUT of an object store takes 20-100 ms, the network 7 ms a photo

LONGEST_NAME = 255  # bytes of a part of a path, on local file systems

OnProgress = Callable[[], None]


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
        background: New background of cutouts; None to keep them transparent.
        crop: Margin around the person in cropped cutouts, as a fraction; None for the whole photo. Alphas are always
            whole.
    """

    write: tuple[Kind, ...]
    format: CutoutFormat
    refine: Refine
    sink: Sink
    precision: NumberFormat
    background: Background | None = None
    crop: float | None = None

    def __str__(self) -> str:
        values = asdict(self) | {"background": self.background and self.background.identity}
        # Without an option that is not used, the text is the same as before the option existed: no photo becomes due.
        return json.dumps({name: value for name, value in values.items() if value is not None}, sort_keys=True)

    def suffix(self, kind: Kind) -> str:
        """Return the suffix of files of this kind, without a dot."""
        return "png" if kind == "alpha" else self.format


def output_path(output: str, settings: PredictionSettings, kind: Kind, key: str) -> str:
    """Return the path below the output folder of a file with a photo's matte or cutout.

    Raises:
        BadKey: The key cannot be part of a path.
    """
    return output_name(kind, key, settings.suffix(kind), LONGEST_NAME if is_local(output) else None)


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
class _ReadPhoto:
    """A photo's ledger row, its file, and the photo, reduced as far as the predictor allows."""

    row: Row
    data: bytes
    decoded: DecodedPhoto


@dataclass
class _MicroBatch:
    """Photos that the predictor receives at once, and the bytes of their pixels and alphas."""

    photos: list[_ReadPhoto] = field(default_factory=list)
    bytes: int = 0

    def add(self, photo: _ReadPhoto) -> None:
        self.photos.append(photo)
        self.bytes += photo.decoded.image_HWC.nbytes + photo.decoded.width * photo.decoded.height


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
        max_pixels: Number of pixels above which a photo is refused, unread.
        max_bytes: Number of bytes, of decoded photos and their alphas, after which the predictor receives them even if
            they are fewer.

    Raises:
        BadBackground, StorageError: The background of cutouts was replaced, or cannot be read.
    """

    def __init__(
        self,
        output: str,
        settings: PredictionSettings,
        run: str,
        model: str,
        predictor: PhotoPredictor,
        micro_batch: int,
        max_pixels: int = images.MAX_PIXELS,
        max_bytes: float = math.inf,
    ) -> None:
        self._output, self._settings, self._run, self._model = output, settings, run, model
        self._predictor, self._micro_batch, self._max_pixels = predictor, micro_batch, max_pixels
        self._max_bytes = max_bytes
        self._cutouts = CutoutEncoder(settings.format, settings.background, settings.crop)

    def handle(
        self, photos: pa.Table, number: int, on_progress: OnProgress = lambda: None
    ) -> tuple[list[Row], dict[str, float]]:
        """Predict a block; write its outputs and its ledger part. See :meth:`make_outputs` and :func:`outcomes.record`.

        Args:
            photos: Rows with the columns of `PHOTO_SCHEMA` and `outputs`, the outputs in the photo's earlier
                ledger row, null if there is none.
            number: Number of the block, unique in its run. Handling a block again replaces its results.
            on_progress: Function to call whenever a photo has come one step further.
        """
        rows, seconds = self.make_outputs(photos, f"{number:06d}", on_progress)
        on_progress()
        began = time.perf_counter()
        record(self._output, self._run, number, photos, rows)
        return rows, {**seconds, "ledger": time.perf_counter() - began}

    def make_outputs(
        self, photos: pa.Table, part: str, on_progress: OnProgress = lambda: None
    ) -> tuple[list[Row], dict[str, float]]:
        """Predict photos and write their outputs.

        Args:
            photos: Rows with the columns of `PHOTO_SCHEMA`.
            part: Name of the table's part, unique in its run.
            on_progress: Function to call whenever a photo has come one step further.

        Returns:
            A ledger row for each photo, in no order, with two more entries, `read` and `written`, in bytes; and the
            seconds of each `Stage`.

        Raises:
            DeviceError: The device that computes the network is broken.
            StorageError: The part of the table cannot be written.
        """
        watch = Stopwatch()
        encoded = self._predict(photos, watch, on_progress)
        if self._settings.sink == "table":
            rows = self._into_table(encoded, part, watch)
        else:
            rows = self._into_files(encoded, watch, on_progress)
        return rows, watch.seconds

    def _into_files(self, photos: Iterator[_EncodedPhoto], watch: Stopwatch, on_progress: OnProgress) -> list[Row]:
        rows: list[Row] = []
        with ThreadPoolExecutor(REQUESTS_IN_FLIGHT) as pool:
            writing = deque[Future[Row]]()

            def take_first() -> None:
                with watch.during("write"):
                    rows.append(writing.popleft().result())
                on_progress()

            for encoded in photos:
                writing.append(pool.submit(self._write, encoded))
                if len(writing) > REQUESTS_IN_FLIGHT:
                    take_first()
            while writing:
                take_first()
        return rows

    def _write(self, encoded: _EncodedPhoto) -> Row:
        row = encoded.row
        if row["status"] == "done":
            try:
                for kind in self._settings.write:
                    path = output_path(self._output, self._settings, kind, row["key"])
                    store.write_bytes(join_uri(self._output, path), encoded.contents[kind])
                    row["outputs"].append(path)
                    row["written"] += len(encoded.contents[kind])
            except (BadKey, StorageError) as error:
                for path in row["outputs"]:  # a failed row lists no outputs, so none may stay
                    store.delete(join_uri(self._output, path))
                status: Status = "failed" if isinstance(error, BadKey) else "transient"
                row = without_outputs(row, status, f"cannot be written: {error}")
        return {**row, "finished_at": datetime.now(UTC)}

    def _into_table(self, photos: Iterator[_EncodedPhoto], part: str, watch: Stopwatch) -> list[Row]:
        path = table_path(self._run, part)
        rows: list[Row] = []
        contents: list[Row] = []
        for encoded in photos:
            rows.append(encoded.row)
            if encoded.row["status"] == "done":
                encoded.row["outputs"].append(path)
                encoded.row["written"] = sum(map(len, encoded.contents.values()))
                contents.append({"key": encoded.row["key"], "etag": encoded.row["etag"], **encoded.contents})
        if contents:
            with watch.during("write"):
                write_table(join_uri(self._output, path), pa.Table.from_pylist(contents, TABLE_SCHEMA))
        return [{**row, "finished_at": datetime.now(UTC)} for row in rows]

    def _predict(self, photos: pa.Table, watch: Stopwatch, on_progress: OnProgress) -> Iterator[_EncodedPhoto]:
        """Yield every photo of the block with its encoded outputs, or with the reason why it has none."""
        inputs = photos.select(["key", "etag", "size"]).to_pylist()
        arriving = read_photos(photos, REQUESTS_IN_FLIGHT)
        waiting = defaultdict[Shape | None, _MicroBatch](_MicroBatch)
        while True:
            with watch.during("fetch"):
                arrived = list(islice(arriving, min(self._micro_batch, REQUESTS_IN_FLIGHT)))
            if not arrived:
                break
            for index, data in arrived:
                on_progress()
                row = new_row(inputs[index], self._model, str(self._settings), self._run)
                if isinstance(data, ReadFailure):
                    status: Status = "transient" if data.is_transient else "failed"
                    yield _EncodedPhoto(without_outputs(row, status, f"cannot be read: {data.reason}"), {})
                    continue
                row["read"] = len(data)
                try:
                    with watch.during("decode"):
                        decoded = images.decode_photo(data, self._predictor.min_side, self._max_pixels)
                except BadImage as error:
                    yield _EncodedPhoto(without_outputs(row, "failed", str(error)), {})
                    continue
                row["warning"] = decoded.warning
                key = self._predictor.batch_key(decoded.width, decoded.height)
                waiting[key].add(_ReadPhoto(row, data, decoded))
                if len(waiting[key].photos) == self._micro_batch or waiting[key].bytes >= self._max_bytes:
                    yield from self._predict_decoded(waiting.pop(key).photos, watch)
        for micro_batch in waiting.values():
            on_progress()
            yield from self._predict_decoded(micro_batch.photos, watch)

    def _predict_decoded(self, photos: list[_ReadPhoto], watch: Stopwatch) -> list[_EncodedPhoto]:
        """Predict and encode photos of one input shape; if that fails, each on its own to find the culprit.

        Raises:
            DeviceError: The device that computes the network is broken.
        """
        images_HWC = [photo.decoded.image_HWC for photo in photos]
        sizes = [(photo.decoded.width, photo.decoded.height) for photo in photos]
        try:
            alphas = self._predictor.timed_alphas(images_HWC, sizes, watch.during)
            with watch.during("encode"):
                return [self._encode(photo, alpha) for photo, alpha in zip(photos, alphas, strict=True)]
        except Exception as error:  # any type: among 10**8 photos, one will fail in a way that nobody foresaw
            if is_device_error(error):
                raise DeviceError.of(error) from error
            if len(photos) > 1:
                return [encoded for photo in photos for encoded in self._predict_decoded([photo], watch)]
            if isinstance(error, BadImage):
                return [_EncodedPhoto(without_outputs(photos[0].row, "failed", str(error)), {})]
            reason = f"{type(error).__name__}: {error}"
            return [_EncodedPhoto(without_outputs(photos[0].row, "transient", reason), {})]

    def _encode(self, photo: _ReadPhoto, pred_alpha_HW: Pixels) -> _EncodedPhoto:
        alpha_HW = photo.decoded.limit(pred_alpha_HW)
        contents: dict[str, bytes] = {
            kind: self._encode_kind(kind, photo, pred_alpha_HW) for kind in self._settings.write
        }
        measured = {
            "width": photo.decoded.width,
            "height": photo.decoded.height,
            "coverage": coverage(alpha_HW),
            "confidence": confidence(alpha_HW),
            **(box._asdict() if (box := person_box(alpha_HW)) else dict.fromkeys(PersonBox._fields)),
        }
        return _EncodedPhoto(photo.row | measured, contents)

    def _encode_kind(self, kind: Kind, photo: _ReadPhoto, pred_alpha_HW: Pixels) -> bytes:
        if kind == "alpha":
            return images.encode_png(photo.decoded.limit(pred_alpha_HW))
        return self._cutouts.encode(photo.data, photo.decoded, pred_alpha_HW, self._max_pixels)
