"""Pack raw pairs into Parquet parts, which training reads with a few large requests.

    1. pairs, sorted by split and key, cut into parts           driver
    2. fetch, decode, shrink, soften, write one part            one task per part, skipped if the part is there already
    3. the description file                                     driver, last

The same pairs and options give the same bytes. After a kill, the same command makes the missing parts, and again those
that lack a pair. On a finished packing it does nothing, unless storage failed on some of its pairs.
"""

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import PIL
import pyarrow as pa
import ray.data

from jobs.common import cluster, config
from jobs.common.cli import JobError, run_job
from jobs.common.console import Console
from matting.data import images, shards
from matting.data.checks.pair_checks import suspicion
from matting.data.dataset import SPLITS, check_mattes, index_raw, join_splits, too_many_rejected
from matting.data.mattes import MatteReading
from matting.data.pairs import Pair, RawPairOptions, find_pairs
from matting.data.photo_tables import ReadFailure
from matting.data.rows import DecodedPair, RawRows, decode_pair
from matting.data.soften import is_mask
from matting.data.soften import soften as soften_mask
from matting.messages import first_few
from matting.results.pseudo_labels import pair_predictions
from matting.storage import store
from matting.storage.uri import absolute_uri, join_uri

PART_ROWS = 256  # some 10 MB at 320 pixels: about a second of storage time, and seconds of a core's time
JPEG_QUALITY = 95


@dataclass(frozen=True, kw_only=True)
class PackConfig(RawPairOptions):
    """Pack raw pairs into Parquet parts.

    Args:
        pairs: URI of the raw pairs, or of a manifest; or, with photos, of the output folder of jobs/predict.py.
        output: URI of the folder for the parts.
        photos: URI of photos whose predicted mattes are the pairs (pseudo-labels). All of them are for training.
        min_confidence: Lowest confidence of a predicted matte, in [0, 1], as in its ledger; others are left out.
        side: Longer side, in pixels, to which larger images are shrunk; smaller ones keep their bytes. 0 for never.
        soften: Distance from the edge of a binary mask, in pixels of the packed image, within which closed-form matting
            finds a soft alpha. 0 keeps masks as they are; soft mattes are always kept. Needs the extra "soften".
    """

    pairs: str
    output: str
    photos: str | None = None
    min_confidence: float = 0.0
    side: int = 320
    soften: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.side < 0:
            raise ValueError(f"--side must be 0 or more, is {self.side}")
        if self.min_confidence and not self.photos:
            raise ValueError("--min-confidence is of predicted mattes: give --photos too")
        if self.soften < 0:
            raise ValueError(f"--soften must be 0 or more, is {self.soften}")
        if self.soften and importlib.util.find_spec("pymatting") is None:
            raise ValueError('--soften needs pymatting: pip install "matting[soften]"')


@dataclass(frozen=True)
class Part:
    """Plan of one part.

    Args:
        uri: URI of the part's file.
        split: Split of its pairs.
        pairs: The pairs, sorted by key.
        fingerprint: Hash of the pairs and options that go into the part.
    """

    uri: str
    split: str
    pairs: tuple[Pair, ...]
    fingerprint: str


def main(argv: Sequence[str]) -> None:
    """Plan the parts, make the missing ones, describe them, and print which pairs are left out."""
    began = datetime.now(UTC)
    options = config.parse(PackConfig, argv)
    source, output = absolute_uri(options.pairs).rstrip("/"), absolute_uri(options.output)
    if options.photos:
        found = pair_predictions(source, absolute_uri(options.photos), options.min_confidence)
    else:
        found = find_pairs(source, options)
    source_name = source.rpartition("/")[2]
    kept = {name: getattr(options, name) for name in ("side", "soften", "matte_range", "invert")}
    recipe = {"pairs": found.fingerprint, "source": source_name, "pillow": PIL.__version__, **kept}
    parts = plan_parts(output, found.pairs, recipe)
    plan_hash = hashlib.sha256("".join(part.fingerprint for part in parts).encode()).hexdigest()
    if is_finished(output, plan_hash):
        print(f"{output} holds these pairs already, packed with these options. Nothing left to do.")
        return
    store.check_writable(output)
    pairs = join_splits(index_raw(found), RawRows, options.reading)
    for warning in check_mattes(pairs, source_name, options):
        print(f"WARNING: {warning}")
    store.delete(join_uri(output, shards.DESCRIPTION))  # of an earlier packing: not true any more after the first part

    made = make_all_parts(parts, source_name, options)
    rejected = {key: reason for part in made for key, reason in part["rejected"]}
    if failure := too_many_rejected(rejected, len(found.pairs), options.max_rejected_fraction):
        raise JobError(failure)

    suspicious = sorted(pair for part in made for pair in part["suspicious"])
    counts = {split: sum(part["rows"] for part in made if part["split"] == split) for split in SPLITS}
    shards.write_description(
        output,
        {
            "plan": plan_hash,
            "layout": found.layout,
            "source": source_name,
            "options": {**kept, "split_seed": options.split_seed},
            "counts": counts,
            "unpaired": found.unpaired,
            "rejected": sorted(rejected.items()),
            "suspicious": suspicious,
            "transient": sorted(key for part in made for key in part["transient"]),
            "parts": [{field: part[field] for field in ("name", "split", "rows", "sha256")} for part in made],
        },
    )
    remove_other_parts(output, {part["name"] for part in made})
    store.remove_partials(output, began)
    for key, reason in [*found.unpaired, *rejected.items()]:
        print(f"left out: {key}: {reason}")
    if suspicious:
        first = first_few([f"{key}: {reason}" for key, reason in suspicious])
        print(f"Suspicious, and packed: {len(suspicious)} of {sum(counts.values())} pairs. {first}")
        print(f"All of them are in {join_uri(output, shards.DESCRIPTION)}: look at them, and mend or remove them.")
    print(f"Packed {sum(counts.values())} pairs {counts} in {len(made)} parts: {output}")


def plan_parts(output: str, pairs: Sequence[Pair], recipe: dict[str, Any]) -> list[Part]:
    """Cut the pairs into parts of one split each, in the order of their keys."""
    parts: list[Part] = []
    for split in SPLITS:
        rows = [pair for pair in pairs if pair.split == split]
        for start in range(0, len(rows), PART_ROWS):
            part_pairs = tuple(rows[start : start + PART_ROWS])
            content = json.dumps([recipe, split, [pair.key for pair in part_pairs]])
            uri = join_uri(output, shards.part_name(len(parts)))
            parts.append(Part(uri, split, part_pairs, hashlib.sha256(content.encode()).hexdigest()))
    return parts


def is_finished(output: str, plan_hash: str) -> bool:
    """Return whether the output holds a finished packing of this plan, without pairs that storage failed on."""
    if not shards.is_packed(output):
        return False
    description = shards.read_description(output)
    return description["plan"] == plan_hash and not description.get("transient")


def make_all_parts(parts: Sequence[Part], source: str, options: PackConfig) -> list[dict[str, Any]]:
    """Make every part that is not there yet, in Ray tasks.

    Returns:
        A description of each part, in order, as :func:`make_part` encodes it.
    """
    cluster.start(cpus=0, reading=1, gpus=0, what="Packing tasks")
    dataset = ray.data.from_items([{"part": number} for number in range(len(parts))], override_num_blocks=len(parts))
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    make = partial(
        make_part,
        parts=ray.put(list(parts)),
        source=source,
        side=options.side,
        soften=options.soften,
        reading=options.reading,
    )
    made = []
    with Console() as console:
        progress = console.progress("packing", sum(len(part.pairs) for part in parts), "pairs")
        for row in dataset.map(make, num_cpus=1).iter_rows():
            part = json.loads(row["made"])
            progress.update(part["rows"] + len(part["rejected"]))
            made.append(part)
    return made


def make_part(
    row: dict[str, Any],
    parts: "ray.ObjectRef[list[Part]]",
    source: str,
    side: int,
    soften: int,
    reading: MatteReading,
) -> dict[str, str]:
    """Make one part, unless it is there already: one Ray task.

    Args:
        row: Row of the dataset, with the part's number.
        parts: All parts.
        source: Name of the dataset, for the part's column of that name.
        side: Longer side, in pixels, to which larger images are shrunk; 0 for never.
        soften: Distance in pixels within which masks are softened; 0 for none.
        reading: How the stored values of mattes become alphas.

    Returns:
        The part's description as JSON: name, split, number of rows, SHA-256, rejected and suspicious pairs, and the
        keys of those that were rejected for a transient reason.
    """
    part = ray.get(parts)[row["part"]]
    data, transient = existing_part(part), list[str]()
    if data is None:
        data, transient = build_part(part, source, side, soften, reading)
        store.write_bytes(part.uri, data)
    footer = shards.part_footer(data)
    assert footer is not None
    made = {
        "name": part.uri.rpartition("/")[2],
        "split": part.split,
        "rows": len(part.pairs) - len(footer.rejected),
        "sha256": hashlib.sha256(data).hexdigest(),
        "rejected": footer.rejected,
        "suspicious": footer.suspicious,
        "transient": transient,
    }
    return {"made": json.dumps(made)}


def existing_part(part: Part) -> bytes | None:
    """Return the part's bytes if an earlier run made it of the same pairs with the same options.

    A part that lacks a pair is made anew, since the pair may have been repaired since: then this returns None.
    """
    if not store.exists(part.uri):
        return None
    data = store.read_bytes(part.uri)
    footer = shards.part_footer(data)
    return data if footer and footer.fingerprint == part.fingerprint and not footer.rejected else None


def build_part(part: Part, source: str, side: int, soften: int, reading: MatteReading) -> tuple[bytes, list[str]]:
    """Fetch and pack the pairs of a part, and encode it as Parquet. Arguments are those of make_part.

    Returns:
        The part's bytes, and the keys of pairs that were rejected for a transient reason.
    """
    rows, rejected, suspicious, transient = [], [], [], list[str]()
    names = {name: [getattr(pair, name) for pair in part.pairs] for name in ("key", "image_uri", "matte_uri")}
    for key, pair in RawRows(pa.table(names)).fetch():
        if isinstance(pair, ReadFailure):
            rejected.append((key, pair.reason))
            transient += [key] if pair.is_transient else []
            continue
        try:
            columns, warning = pack_pair(pair[0], decode_pair(*pair, reading), side, soften)
        except images.BadImage as reason:
            rejected.append((key, str(reason)))
            continue
        rows.append({"key": key, "split": part.split, "source": source, **columns})
        suspicious += [(key, warning)] if warning else []
    footer = shards.PartFooter(part.fingerprint, tuple(rejected), tuple(suspicious))
    return shards.encode_part(rows, footer), transient


def pack_pair(image_bytes: bytes, pair: DecodedPair, side: int, soften: int) -> tuple[dict[str, Any], str]:
    """Return the columns of one pair, and what is suspicious about it, or "".

    The image's bytes are encoded anew only if it is shrunk; the matte is an 8-bit grey PNG.
    """
    image, alpha = pair.image, pair.alpha
    height, width = image.shape[:2]
    if side and max(width, height) > side:
        scale = side / max(width, height)
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
        image, alpha = images.resize(image, width, height), images.resize(alpha, width, height)
        image_bytes = images.encode_jpeg(image, JPEG_QUALITY)
    warning = "; ".join(filter(None, (pair.damage, suspicion(pair.look((image, alpha))))))
    if soften and is_mask(alpha):
        alpha = soften_mask(image, alpha, soften)
    return {"image": image_bytes, "matte": images.encode_png(alpha), "width": width, "height": height}, warning


def remove_other_parts(output: str, names: set[str]) -> None:
    """Delete parts that an earlier packing with more parts left, all but these names."""
    for file in store.list_files(output):
        if file.key.startswith("part-") and file.key.endswith(".parquet") and file.key not in names:
            store.delete(join_uri(output, file.key))


if __name__ == "__main__":
    run_job(main)
