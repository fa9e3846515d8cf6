"""Pack raw pairs into Parquet parts, which training reads with a few large requests.

    1. pairs, sorted by split and key, cut into parts    driver
    2. fetch, decode, shrink, soften, write one part     a task each, skipped where the part is there already
    3. the description file                              driver, last

The same pairs and options give the same bytes. A run that was killed goes on with the parts that are missing, and with
those that lack a pair; one that is finished is done, but for pairs that the store did not give.
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import PIL
import pyarrow as pa
import ray.data

from jobs import cluster, config
from matting import images, shards, storage
from matting.collection import SPLITS, RawRows, too_many_rejected
from matting.pairs import Pair, find_pairs
from matting.predictions import pair_predictions
from matting.soften import is_mask
from matting.soften import soften as softened
from matting.storage import FOR_NOW

PART_ROWS = 256  # some 10 MB at 320 pixels: a second of a store's time, seconds of a core's
JPEG_QUALITY = 95


@dataclass(frozen=True)
class PackConfig:
    """Pack raw pairs into Parquet parts.

    Args:
        pairs: URI of the raw pairs, or of a manifest; or, with photos, of the output folder of jobs/predict.py.
        output: URI of the folder for the parts.
        photos: URI of the photos that pairs are the predicted mattes of. All these pairs are for training.
        min_confidence: of a predicted matte, as its ledger has it, in [0, 1]; those with less are passed over.
        layout: folder rule: aisegment, p3m, ppm, folders, manifest; "auto" looks.
        side: pixels of the longer side, to which larger pictures are shrunk; smaller ones keep their bytes. 0: never.
        soften: pixels of the packed picture, on either side of the edge of a binary mask, in which to find a soft alpha
            by closed-form matting; 0: masks stay as they are. Mattes that are soft already always do. Needs the extra
            "soften".
        split_seed: of the 80/10/10 split by subject.
        max_unpaired_fraction: of files without a partner, above which to refuse the pairs.
        max_rejected_fraction: of pairs that cannot be decoded, above which to fail.
    """

    pairs: str
    output: str
    photos: str | None = None
    min_confidence: float = 0.0
    layout: str = "auto"
    side: int = 320
    soften: int = 0
    split_seed: int = 0
    max_unpaired_fraction: float = 0.01
    max_rejected_fraction: float = 0.01

    def __post_init__(self) -> None:
        if self.side < 0:
            raise ValueError(f"--side must be 0 or more, is {self.side}")
        if self.min_confidence and not self.photos:
            raise ValueError("--min_confidence is of predicted mattes: give --photos too")
        if self.soften < 0:
            raise ValueError(f"--soften must be 0 or more, is {self.soften}")
        if self.soften and importlib.util.find_spec("pymatting") is None:
            raise ValueError('--soften needs pymatting: pip install "matting[soften]"')


@dataclass(frozen=True)
class Part:
    """One part to be made."""

    uri: str
    split: str
    pairs: tuple[Pair, ...]
    fingerprint: str  # of what goes into it


def main(argv: Sequence[str]) -> None:
    """Pack, and say what was left out."""
    began = datetime.now(UTC)
    options = config.parse(PackConfig, argv)
    source, output = cluster.absolute(options.pairs).rstrip("/"), cluster.absolute(options.output)
    if options.photos:
        found = pair_predictions(source, cluster.absolute(options.photos), options.min_confidence)
    else:
        found = find_pairs(source, options.layout, options.split_seed, options.max_unpaired_fraction)
    name = source.rpartition("/")[2]
    recipe = {"pairs": found.fingerprint, "source": name, "side": options.side, "soften": options.soften}
    recipe["pillow"] = PIL.__version__
    parts = plan(output, found.pairs, recipe)
    plan_hash = hashlib.sha256("".join(part.fingerprint for part in parts).encode()).hexdigest()
    if shards.is_packed(output):
        description = shards.read_description(output)
        is_unavailable = any(FOR_NOW in reason for _, reason in description["rejected"])
        if description["plan"] == plan_hash and not is_unavailable:
            print(f"{output} holds these pairs already, packed with these options. Nothing left to do.")
            return
        storage.delete(storage.join(output, shards.DESCRIPTION))  # no longer true from the first part on
    storage.check_writable(output)
    cluster.start(cpus=0, reading=1, gpus=0, what="Packing tasks")
    with cluster.Console() as console:
        progress = console.progress("packing", len(found.pairs), "pairs")
        done = []
        for part in make_parts(parts, name, options.side, options.soften):
            progress.update(part["rows"] + len(part["rejected"]))
            done.append(part)
    rejected = {key: reason for part in done for key, reason in part["rejected"]}
    if failure := too_many_rejected(rejected, len(found.pairs), options.max_rejected_fraction):
        raise cluster.JobError(failure)
    counts = {split: sum(part["rows"] for part in done if part["split"] == split) for split in SPLITS}
    shards.write_description(
        output,
        {
            "plan": plan_hash,
            "layout": found.layout,
            "source": name,
            "options": {"side": options.side, "soften": options.soften, "split_seed": options.split_seed},
            "counts": counts,
            "unpaired": found.unpaired,
            "rejected": sorted(rejected.items()),
            "parts": [{field: part[field] for field in ("name", "split", "rows", "sha256")} for part in done],
        },
    )
    remove_others(output, {part["name"] for part in done})
    storage.remove_partials(output, began)
    for key, reason in [*found.unpaired, *rejected.items()]:
        print(f"left out: {key}: {reason}")
    print(f"Packed {sum(counts.values())} pairs {counts} in {len(done)} parts: {output}")


def plan(output: str, pairs: Sequence[Pair], recipe: dict[str, Any]) -> list[Part]:
    """Cut the pairs into parts of one split each, in the order of their keys."""
    parts: list[Part] = []
    for split in SPLITS:
        rows = [pair for pair in pairs if pair.split == split]
        for start in range(0, len(rows), PART_ROWS):
            some = tuple(rows[start : start + PART_ROWS])
            content = json.dumps([recipe, split, [pair.key for pair in some]])
            uri = storage.join(output, shards.part_name(len(parts)))
            parts.append(Part(uri, split, some, hashlib.sha256(content.encode()).hexdigest()))
    return parts


def make_parts(parts: Sequence[Part], source: str, side: int, soften: int) -> Iterator[dict[str, Any]]:
    """Make every part that is not there yet; what is in each, in order."""
    dataset = ray.data.from_items([{"part": number} for number in range(len(parts))], override_num_blocks=len(parts))
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    make = partial(make_part, parts=ray.put(list(parts)), source=source, side=side, soften=soften)
    dataset = dataset.map(make, num_cpus=1)
    for row in dataset.iter_rows():
        yield json.loads(row["made"])


def make_part(row: dict[str, Any], parts: ray.ObjectRef, source: str, side: int, soften: int) -> dict[str, str]:
    """One task: leave the part in the store, and say what is in it."""
    part: Part = ray.get(parts)[row["part"]]
    data = existing_part(part)
    if data is None:
        rows, rejected = [], []
        places = {name: [getattr(pair, name) for pair in part.pairs] for name in ("key", "image_uri", "matte_uri")}
        for key, image, matte, error in RawRows(pa.table(places)).fetch():
            try:
                if error:
                    raise images.BadImage(error)
                rows.append(
                    {"key": key, "split": part.split, "source": source, **pack_pair(image, matte, side, soften)}
                )
            except images.BadImage as reason:
                rejected.append((key, str(reason)))
        data = shards.encode_part(rows, shards.PartFooter(part.fingerprint, tuple(rejected)))
        storage.write_bytes(part.uri, data)
    footer = shards.part_footer(data)
    assert footer is not None
    made = {
        "name": part.uri.rpartition("/")[2],
        "split": part.split,
        "rows": len(part.pairs) - len(footer.rejected),
        "sha256": hashlib.sha256(data).hexdigest(),
        "rejected": footer.rejected,
    }
    return {"made": json.dumps(made)}


def existing_part(part: Part) -> bytes | None:
    """The part's bytes, if an earlier run made it of the same pairs with the same options and left none out, which may
    have been mended since."""
    if not storage.exists(part.uri):
        return None
    data = storage.read_bytes(part.uri)
    footer = shards.part_footer(data)
    return data if footer and footer.fingerprint == part.fingerprint and not footer.rejected else None


def pack_pair(image_bytes: bytes, matte_bytes: bytes, side: int, soften: int) -> dict[str, Any]:
    """The columns of one pair: image bytes as they are, unless they are to be shrunk; the matte as 8-bit grey PNG, soft
    if so asked.

    Raises:
        BadImage: it cannot be used.
    """
    image, alpha = images.decode_pair(image_bytes, matte_bytes)
    height, width = image.shape[:2]
    if side and max(width, height) > side:
        scale = side / max(width, height)
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
        image, alpha = images.resize(image, width, height), images.resize(alpha, width, height)
        image_bytes = images.encode_jpeg(image, JPEG_QUALITY)
    if soften and is_mask(alpha):
        alpha = softened(image, alpha, soften)
    return {"image": image_bytes, "matte": images.encode_png(alpha), "width": width, "height": height}


def remove_others(output: str, names: set[str]) -> None:
    """Parts that an earlier packing with more of them left."""
    for file in storage.list_files(output):
        if file.key.startswith("part-") and file.key.endswith(".parquet") and file.key not in names:
            storage.delete(storage.join(output, file.key))


if __name__ == "__main__":
    cluster.run(main)
