"""A block of photos, dealt with: what is written for each, and in which order, so that a crash costs work only.

    rows of photos -> bytes, many requests in flight -> image_HWC, a few at a time -> alpha_HW -> encoded
    -> 1. written whole, many requests in flight  2. the block's ledger part  3. what they supersede is removed

A photo that cannot be read, decoded or written becomes a failed row with its reason; the others go on.
Knows no cluster: a block is dealt with wherever it is called.
"""

import io
import json
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from matting import images, ledger, storage
from matting.images import BadImage, Pixels
from matting.ledger import BadKey
from matting.photos import read_photos
from matting.predictor import Predictor, Refine
from matting.refine import foreground

Kind = Literal["alpha", "cutout"]
CutoutFormat = Literal["png", "webp"]
Sink = Literal["files", "table"]

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


@dataclass(frozen=True)
class _Matted:
    """A photo's alpha, encoded. The sizes are those of the upright photo."""

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

    def handle(self, photos: pa.Table, number: int) -> list[Row]:
        """Leave the outputs and the ledger part of a block.

        Args:
            photos: columns of `photos.SCHEMA`, and `outputs`: of the photo's earlier ledger row, null if there is none.
            number: of the block, unique in its run. The same block again replaces what it left.

        Returns:
            A ledger row for each photo, in no order, with one thing more: `certainty`, the mean of |2 alpha - 1|,
            1 where every pixel is clear or solid, None for a failed photo.

        Raises:
            storage.StorageError: the ledger part, or the part of the table, cannot be written.
        """
        rows = list((self._into_table if self._settings.sink == "table" else self._into_files)(photos, number))
        ledger.write_part(
            self._output, self._run, number, [{name: row[name] for name in ledger.SCHEMA.names} for row in rows]
        )
        earlier = dict(zip(photos["key"].to_pylist(), photos["outputs"].to_pylist(), strict=True))
        for row in rows:
            for path in set(earlier[row["key"]] or ()) - set(row["outputs"]):
                if not path.startswith(f"{TABLE_FOLDER}/"):  # a part holds other photos too
                    storage.delete(storage.join(self._output, path))
        return rows

    def _into_files(self, photos: pa.Table, number: int) -> Iterator[Row]:  # noqa: ARG002 - as _into_table
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            writing = deque[Future[Row]]()
            for matted in self._matted(photos):
                writing.append(pool.submit(self._write, matted))
                if len(writing) > IN_FLIGHT:
                    yield writing.popleft().result()
            yield from (future.result() for future in writing)

    def _write(self, matted: _Matted) -> Row:
        row = matted.row
        if row["status"] == "done":
            try:
                for kind in self._settings.write:
                    path = ledger.output_name(kind, row["key"], self._settings.suffix(kind), self._longest)
                    storage.write_bytes(storage.join(self._output, path), matted.contents[kind])
                    row["outputs"].append(path)
            except (BadKey, storage.StorageError) as error:
                for path in row["outputs"]:  # a failed row lists none
                    storage.delete(storage.join(self._output, path))
                row = _failed(row, f"cannot be written: {error}")
        return {**row, "finished_at": datetime.now(UTC)}

    def _into_table(self, photos: pa.Table, number: int) -> Iterator[Row]:
        path = f"{TABLE_FOLDER}/{self._run}-{number:06d}.parquet"
        rows: list[Row] = []
        contents: list[Row] = []
        for matted in self._matted(photos):
            rows.append(matted.row)
            if matted.row["status"] == "done":
                matted.row["outputs"].append(path)
                contents.append({"key": matted.row["key"], "etag": matted.row["etag"], **matted.contents})
        if contents:
            _write_table(storage.join(self._output, path), pa.Table.from_pylist(contents, TABLE_SCHEMA))
        yield from ({**row, "finished_at": datetime.now(UTC)} for row in rows)

    def _matted(self, photos: pa.Table) -> Iterator[_Matted]:
        """Every photo of the block with its alpha, or the reason why it has none."""
        inputs = photos.select(["key", "etag", "size"]).to_pylist()
        arriving = read_photos(photos, IN_FLIGHT)
        while some := list(islice(arriving, self._together)):
            decoded: list[tuple[Row, Pixels]] = []
            for index, data in some:
                row = self._row(inputs[index])
                try:
                    if isinstance(data, str):
                        raise BadImage(f"cannot be read: {data}")
                    decoded.append((row, images.decode_image(data)))
                except BadImage as error:
                    yield _Matted(_failed(row, str(error)), {})
            if decoded:
                yield from self._predicted(decoded)

    def _predicted(self, decoded: list[tuple[Row, Pixels]]) -> list[_Matted]:
        try:
            alphas = self._predictor.alphas([image for _, image in decoded])
            return [
                _Matted(
                    row | {"height": alpha.shape[0], "width": alpha.shape[1], **_coverage_and_certainty(alpha)},
                    {kind: self._encode(kind, image, alpha) for kind in self._settings.write},
                )
                for (row, image), alpha in zip(decoded, alphas, strict=True)
            ]
        except Exception as error:  # of any type: of 10**8 photos, one will find what nobody thought of
            if len(decoded) > 1:
                return [matted for one in decoded for matted in self._predicted([one])]
            reason = str(error) if isinstance(error, BadImage) else f"{type(error).__name__}: {error}"
            return [_Matted(_failed(decoded[0][0], reason), {})]

    def _encode(self, kind: Kind, image_HWC: Pixels, alpha_HW: Pixels) -> bytes:
        if kind == "alpha":
            return images.encode_png(alpha_HW)
        cutout_HWC = np.dstack([foreground(image_HWC, alpha_HW), alpha_HW])
        return images.encode_webp(cutout_HWC) if self._settings.format == "webp" else images.encode_png(cutout_HWC)

    def _row(self, photo: Mapping[str, Any]) -> Row:
        return {
            **photo,
            "model": self._model,
            "settings": str(self._settings),
            "status": "done",
            "error": None,
            "outputs": [],
            "run": self._run,
        }


def read_alpha(output: str, key: str, paths: Sequence[str]) -> Pixels:
    """A photo's alpha_HW from its outputs, as its ledger row lists them."""
    path = paths[0]
    if not path.startswith(f"{TABLE_FOLDER}/"):
        return images.decode_alpha(storage.read_bytes(storage.join(output, path)))
    part = pq.read_table(pa.BufferReader(storage.read_bytes(storage.join(output, path))), filters=[("key", "==", key)])
    return images.decode_alpha(part["alpha"][0].as_py() or part["cutout"][0].as_py())


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
    nothing = dict.fromkeys(("width", "height", "coverage", "certainty"))
    return {**row, **nothing, "status": "failed", "error": reason, "outputs": []}


def _coverage_and_certainty(alpha_HW: Pixels) -> dict[str, float]:
    counts = np.bincount(alpha_HW.ravel(), minlength=256) / alpha_HW.size
    alpha = np.arange(256) / 255
    return {"coverage": float(counts @ alpha), "certainty": float(counts @ np.abs(2 * alpha - 1))}
