"""Results of a prediction: counts of bounded size while it runs, then its summary and its page.

rows of `blocks.RESULT_SCHEMA`, block by block -> PredictionSummary
PredictionSummary                              -> <output>/summary.json: figures of this run
ledger, PredictionSummary                      -> <output>/report.html: figures of the whole ledger, photos of this run
"""

import bisect
import json
import re
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import psutil  # type: ignore[import-untyped]  # psutil has no types
import pyarrow as pa
import pyarrow.compute as pc

from jobs.common.cli import command_line
from jobs.prediction.blocks import PredictionWork
from matting.data import images
from matting.data.images import MAX_IMAGE_BYTES, Pixels
from matting.data.mattes import read_matte
from matting.data.photo_tables import ReadFailure
from matting.data.photos import Photos, read_photos
from matting.inference.refine import cutout
from matting.messages import first_few
from matting.results import gallery, ledger
from matting.results.cutouts import has_matte
from matting.results.pipeline import Stage
from matting.storage import store
from matting.storage.errors import NotFoundError, StorageError
from matting.storage.uri import join_uri

SHOWN = 24  # cards in each group of the page
COVERAGE_BINS = 20

Place = tuple[str, str, str]  # kind of a failure, names of the node and device


@dataclass
class PredictionSummary:
    """Outcome of the photos that were handled so far, of bounded size.

    Args:
        done: Number of photos with outputs.
        reasons: Number of failures by their reason, without names and numbers.
        transient_reasons: Number of transient failures by their reason, likewise.
        warnings: Number of photos with outputs by the warning about their file, likewise.
        failed: Key and error of the first few failures of either kind.
        places: Number of failures of either kind by their reason, node and device.
        examples: Whole error of the first failure of each of these.
        least_confident: Confidence and key of the least confident mattes, sorted.
        sample: Hash of the key, and key, of a random sample.
        ray_seconds: Time that Ray took to start, in seconds.
        began: When the first task began, in seconds since the epoch.
        ended: When the last task ended, in seconds since the epoch.
        stage_seconds: Time of each stage, in seconds, summed over all tasks.
    """

    done: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    transient_reasons: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    failed: list[tuple[str, str]] = field(default_factory=list)
    places: Counter[Place] = field(default_factory=Counter)
    examples: dict[Place, str] = field(default_factory=dict)
    least_confident: list[tuple[float, str]] = field(default_factory=list)
    sample: list[tuple[float, str]] = field(default_factory=list)
    ray_seconds: float = 0.0
    began: float = float("inf")
    ended: float = 0.0
    stage_seconds: Counter[str] = field(default_factory=Counter)

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Add the rows of a block, as :func:`jobs.prediction.handler.handle_block` returns them."""
        place = ("", "")
        for row in rows:
            if block := row["block"]:
                place = (block["node"], block["device"])
                self.began, self.ended = min(self.began, block["began"]), max(self.ended, block["ended"])
                self.stage_seconds.update({stage: block[stage] or 0.0 for stage in get_args(Stage)})
            if row["status"] != "done":
                reasons = self.reasons if row["status"] == "failed" else self.transient_reasons
                kind = failure_kind(row["error"])
                reasons[kind] += 1
                self.places[kind, *place] += 1
                self.examples.setdefault((kind, *place), row["error"])
                if len(self.failed) < SHOWN:
                    self.failed.append((row["key"], row["error"]))
                continue
            self.done += 1
            if row["warning"]:
                self.warnings[failure_kind(row["warning"])] += 1
            keep_smallest(self.least_confident, row["confidence"], row["key"])
            keep_smallest(self.sample, zlib.crc32(row["key"].encode()), row["key"])

    @property
    def total(self) -> int:
        """Number of photos handled."""
        return self.done + self.unsuccessful

    @property
    def unsuccessful(self) -> int:
        """Number of photos that failed, for their own or a transient reason."""
        return self.reasons.total() + self.transient_reasons.total()

    @property
    def seconds(self) -> float:
        """Time from the first task's begin to the last one's end, in seconds."""
        return max(self.ended - self.began, 1e-3)

    @property
    def start_up_seconds(self) -> float:
        """Time from the start of this process to the first task's begin, in seconds."""
        process_began: float = psutil.Process().create_time()
        return self.began - process_began

    def causes(self) -> list[str]:
        """Return the causes of failures in words, the most frequent first: how many, where, and an example."""
        return [
            f"{count:,} on {place[2]} of node {place[1]}: {self.examples[place]}"
            for place, count in self.places.most_common()
        ]

    def speed(self) -> str:
        """Return throughput and start-up time in words."""
        return (
            f"{self.total / self.seconds:.1f} photos/s for {format_duration(self.seconds)}, "
            f"after {self.start_up_seconds:.1f} s of start-up, of which Ray's {self.ray_seconds:.1f} s"
        )

    def in_words(self) -> str:
        """Return counts, throughput and start-up time in words."""
        transient = f"{self.transient_reasons.total():,} transient, " if self.transient_reasons else ""
        return f"{self.done:,} done, {self.reasons.total():,} failed, {transient}{self.speed()}"

    def shares(self) -> str:
        """Return each stage's share of the tasks' time in words: "network 71 %, decode 9 %"."""
        total = self.stage_seconds.total()
        return ", ".join(
            f"{stage} {100 * seconds / total:.0f} %" for stage, seconds in self.stage_seconds.most_common()
        )

    def figures(self) -> dict[str, Any]:
        """Return counts and times as they stand in summary.json."""
        return {
            "done": self.done,
            "failed": self.reasons.total(),
            "failures": dict(self.reasons.most_common()),
            "warnings": dict(self.warnings.most_common()),
            "transient": self.transient_reasons.total(),
            "transient_failures": dict(self.transient_reasons.most_common()),
            "start_up_seconds": round(self.start_up_seconds, 3),
            "ray_start_seconds": round(self.ray_seconds, 3),
            "seconds": round(self.seconds, 3),
            "photos_per_second": round(self.total / self.seconds, 3),
            "stage_seconds": {stage: round(seconds, 3) for stage, seconds in self.stage_seconds.items()},
        }


def write_summary(work: PredictionWork, summary: PredictionSummary, photos: int) -> None:
    """Write summary.json: what this run did, for scripts.

    Args:
        work: The run.
        summary: Its outcome.
        photos: Number of photos in the collection; those that the run did not handle are counted as skipped.
    """
    content = {
        "command": command_line(),
        "run": work.run,
        "checkpoint": work.checkpoint,
        "model": work.model,
        "settings": json.loads(str(work.settings)),
        "photos": photos,
        "skipped": photos - summary.total,
        **summary.figures(),
    }
    store.write_bytes(join_uri(work.output, "summary.json"), (json.dumps(content, indent=2) + "\n").encode())


def write_page(work: PredictionWork, source: str, merged: pa.Table, summary: PredictionSummary, photos: Photos) -> None:
    """Write report.html: figures of the whole ledger, photos of this run.

    Args:
        work: The run.
        source: URI of the collection.
        merged: The whole ledger.
        summary: Outcome of the run, or of an earlier one, from :func:`summary_of_ledger`.
        photos: The collection.
    """
    run = last_run(merged)
    counts = ledger.plan(photos.table, merged, work.model, str(work.settings), retry_failed=False).counts
    failed = merged.filter(pc.not_equal(merged["status"], "done"))
    coverage = merged["coverage"].drop_null().to_numpy()
    page = gallery.gallery_page(
        title="Mattes",
        command=command_line(),
        facts={
            "Photos": source,
            **({"Left out": first_few([f"{key} {why}" for key, why in photos.left_out])} if photos.left_out else {}),
            "Output": work.output,
            "Checkpoint": f"{work.checkpoint}, SHA-256 {work.model[:16]}…",
            "Settings": str(work.settings),
            "Run": run,
            **({"This run": summary.in_words()} if summary.total else {}),
        },
        counts={
            "photos": len(photos.table),
            "done": counts["done"],
            "failed": counts["failed"],
            "transient": counts["transient"],
            "left": counts["new"] + counts["changed"] + counts["outdated"],
        },
        failures=Counter(failure_kind(error) for error in failed["error"].to_pylist()),
        coverage=np.histogram(coverage, COVERAGE_BINS, (0, 1))[0].tolist(),
        cards=make_cards(work.output, photos.table, merged, summary),
    )
    store.write_bytes(join_uri(work.output, "report.html"), page.encode())


def last_run(merged: pa.Table) -> str:
    """Return the name of the ledger's latest run."""
    return str(pc.max(merged["run"]).as_py())


def has_page(output: str, run: str) -> bool:
    """Return whether report.html is the page of this run."""
    try:
        return run.encode() in store.read_bytes(join_uri(output, "report.html"))
    except NotFoundError:
        return False


def summary_of_ledger(merged: pa.Table, photos: pa.Table) -> PredictionSummary:
    """Choose the photos that the page of a killed run shows, from the ledger alone; its counts and times are lost."""
    rows = merged.filter(pc.is_in(merged["key"], photos["key"].combine_chunks())).select(["key", "error", "confidence"])
    is_done = pc.is_null(rows["error"])
    failed, done = rows.filter(pc.invert(is_done)).slice(0, SHOWN), rows.filter(is_done)
    spread = done.take(np.unique(np.linspace(0, len(done) - 1, SHOWN).astype(int))) if len(done) else done
    doubtful = done.sort_by([("confidence", "ascending"), ("key", "ascending")]).slice(0, SHOWN)
    return PredictionSummary(
        failed=list(zip(failed["key"].to_pylist(), failed["error"].to_pylist(), strict=True)),
        least_confident=list(zip(doubtful["confidence"].to_pylist(), doubtful["key"].to_pylist(), strict=True)),
        sample=[(0, key) for key in spread["key"].to_pylist()],
    )


def make_cards(output: str, photos: pa.Table, merged: pa.Table, summary: PredictionSummary) -> list[gallery.Card]:
    """Return the page's cards: the first few failures, the least confident mattes, and a sample of the others."""
    confidence = {key: value for value, key in summary.least_confident}
    groups: dict[str, gallery.Group] = dict.fromkeys((key for _, key in summary.sample), "sample")
    groups.update(dict.fromkeys(confidence, "least confident"))
    groups.update(dict.fromkeys((key for key, _ in summary.failed), "failed"))
    keys = pa.array(sorted(groups), pa.string())
    rows = merged.take(pc.index_in(keys, merged["key"].combine_chunks())).to_pylist()
    inputs = photos.take(pc.index_in(keys, photos["key"].combine_chunks()))
    cards = []
    for index, data in read_photos(inputs, ahead=4):
        row = rows[index]
        card = make_card(output, row, data, groups[row["key"]], confidence.get(row["key"]))
        if card:
            cards.append(card)
    return sorted(cards, key=lambda card: (confidence.get(card.key, 2), card.key))


def make_card(
    output: str, row: dict[str, Any], data: bytes | ReadFailure, group: gallery.Group, confidence: float | None
) -> gallery.Card | None:
    """Return the card of a photo.

    Args:
        output: URI of the output folder.
        row: The photo's ledger row.
        data: The photo's bytes, or why it cannot be read.
        group: The card's group on the page.
        confidence: Confidence to show, in [0, 1]; None for none.

    Returns:
        The card, or None if the photo has changed since it was predicted.
    """
    key = row["key"]
    if row["status"] != "done":  # not decoded here: it may have killed the processes that did
        return gallery.Card(key, group, {"reason": row["error"]}, None)
    try:
        image_HWC = None if isinstance(data, ReadFailure) else thumbnail(images.decode_image(data))
    except images.BadImage:
        image_HWC = None
    facts = {"size": f"{row['width']}×{row['height']}", "coverage": row["coverage"]}
    if confidence is not None:
        facts["confidence"] = confidence
    if row["warning"]:
        facts["warning"] = row["warning"]
    try:
        made = read_matte(key, join_uri(output, row["outputs"][0]), MAX_IMAGE_BYTES)
        if not has_matte(row):
            is_opaque = "background" in json.loads(row["settings"])
            return gallery.Card(key, group, facts, image_HWC, cutout_HWC=finished_cutout(made, is_opaque))
        alpha_HW = thumbnail(images.decode_alpha(made))
    except (StorageError, images.BadImage) as error:  # another run or a person has removed or damaged it
        return gallery.Card(key, group, {**facts, "matte": f"made, and gone since: {error}"}, image_HWC)
    if image_HWC is None or image_HWC.shape[:2] != alpha_HW.shape:
        return None
    return gallery.Card(key, group, facts, image_HWC, alpha_HW, cutout(image_HWC, alpha_HW))


def finished_cutout(data: bytes, is_opaque: bool) -> Pixels:
    """Decode a cutout that is cropped or on a background, at the size that the page shows: RGB if opaque, else RGBA."""
    image_HWC = images.decode_image(data)
    return thumbnail(image_HWC if is_opaque else np.dstack([image_HWC, images.decode_alpha(data)]))


def thumbnail(array: Pixels) -> Pixels:
    """Shrink an image or alpha to the size that the page shows."""
    height, width = array.shape[:2]
    scale = min(1, gallery.THUMBNAIL / max(height, width))
    return images.resize(array, max(1, round(width * scale)), max(1, round(height * scale)))


def failure_kind(error: str) -> str:
    """Return an error without names and numbers, so that errors of one kind are equal."""
    return re.sub(r"\d[\d,.]*", "N", error.partition(":")[0])


def keep_smallest(kept: list[tuple[Any, str]], value: float, key: str) -> None:
    """Insert into a sorted list that keeps only the SHOWN smallest values."""
    bisect.insort(kept, (value, key))
    del kept[SHOWN:]


def format_duration(seconds: float) -> str:
    """Return a duration in words: "3 h 20 min"."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
