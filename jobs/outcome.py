"""What came of a prediction: counts of bounded size while it runs, and its page.

    what tasks say of their photos, block by block -> Tally: counts, reasons, the least confident, a sample
    ledger, Tally -> report.html: figures of the whole ledger, pictures of this run

Knows no options and runs nothing.
"""

import bisect
import re
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc

from jobs import cluster
from jobs.blocks import Work
from matting import gallery, images, ledger, storage
from matting.images import Pixels
from matting.outputs import Stage
from matting.pairs import MAX_IMAGE_BYTES
from matting.photos import Photos, read_photos
from matting.predictions import read_matte
from matting.refine import cutout

SHOWN = 24  # cards in each group of the page
COVERAGE_BINS = 20


@dataclass
class Tally:
    """What came of the photos so far; of bounded size."""

    done: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # of failures
    failed: list[tuple[str, str]] = field(default_factory=list)  # the first few: key, error
    least_confident: list[tuple[float, str]] = field(default_factory=list)  # confidence, key
    sample: list[tuple[float, str]] = field(default_factory=list)  # a hash of the key, key
    ray: float = 0.0  # seconds that Ray took to start
    began: float = float("inf")  # of the first task, in seconds since the epoch
    ended: float = 0.0
    seconds: Counter[str] = field(default_factory=Counter)  # of all tasks, by stage

    def add(self, rows: list[dict[str, Any]]) -> None:
        """What :func:`jobs.blocks.handle_block` says."""
        for row in rows:
            if block := row["block"]:
                self.began, self.ended = min(self.began, block["began"]), max(self.ended, block["ended"])
                self.seconds.update({stage: block[stage] for stage in get_args(Stage)})
            if row["error"] is not None:
                self.reasons[kind_of(row["error"])] += 1
                if len(self.failed) < SHOWN:
                    self.failed.append((row["key"], row["error"]))
                continue
            self.done += 1
            keep_smallest(self.least_confident, row["confidence"], row["key"])
            keep_smallest(self.sample, zlib.crc32(row["key"].encode()), row["key"])

    @property
    def total(self) -> int:
        """Photos handled."""
        return self.done + self.reasons.total()

    def speed(self) -> str:
        """In words, start-up apart."""
        seconds = max(self.ended - self.began, 1e-3)
        start_up = self.began - psutil.Process().create_time()
        return (
            f"{self.total / seconds:.1f} photos/s for {duration(seconds)}, "
            f"after {start_up:.1f} s of start-up, of which Ray's {self.ray:.1f} s"
        )

    def summary(self) -> str:
        """In words."""
        return f"{self.done:,} done, {self.reasons.total():,} failed, {self.speed()}"

    def shares(self) -> str:
        """Where the tasks' time went, in words: "network 71 %, decode 9 %"."""
        total = self.seconds.total()
        return ", ".join(f"{stage} {100 * seconds / total:.0f} %" for stage, seconds in self.seconds.most_common())


def write_page(work: Work, source: str, merged: pa.Table, tally: Tally, photos: Photos) -> None:
    """report.html: figures of the whole ledger, pictures of this run."""
    run = last_run(merged)
    counts = ledger.plan(photos.table, merged, work.model, str(work.settings), retry_failed=False).counts
    failed = merged.filter(pc.equal(merged["status"], "failed"))
    coverage = merged["coverage"].drop_null().to_numpy()
    page = gallery.page(
        title="Mattes",
        command=cluster.command(),
        facts={
            "Photos": source,
            "Output": work.output,
            "Checkpoint": f"{work.checkpoint}, SHA-256 {work.model[:16]}…",
            "Settings": str(work.settings),
            "Run": run,
            **({"This run": tally.summary()} if tally.total else {}),
        },
        counts={
            "photos": len(photos.table),
            "done": counts["done"],
            "failed": counts["unavailable"] + counts["failed"],
            "left": counts["new"] + counts["changed"] + counts["outdated"],
        },
        failures=Counter(kind_of(error) for error in failed["error"].to_pylist()),
        coverage=np.histogram(coverage, COVERAGE_BINS, (0, 1))[0].tolist(),
        cards=cards(work.output, photos.table, merged, tally),
    )
    storage.write_bytes(storage.join(work.output, "report.html"), page.encode())


def last_run(merged: pa.Table) -> str:
    """The latest in the ledger, by name."""
    return str(pc.max(merged["run"]).as_py())


def has_page(output: str, run: str) -> bool:
    """Whether the page is that of this run."""
    try:
        return run.encode() in storage.read_bytes(storage.join(output, "report.html"))
    except storage.NotFoundError:
        return False


def remembered(merged: pa.Table, photos: pa.Table) -> Tally:
    """What the page of a run that is over shows, from the ledger; its sample is evenly spread."""
    rows = merged.filter(pc.is_in(merged["key"], photos["key"].combine_chunks())).select(["key", "error", "confidence"])
    is_done = pc.is_null(rows["error"])
    failed, done = rows.filter(pc.invert(is_done)).slice(0, SHOWN), rows.filter(is_done)
    shown = done.take(np.unique(np.linspace(0, len(done) - 1, SHOWN).astype(int))) if len(done) else done
    doubtful = done.sort_by([("confidence", "ascending"), ("key", "ascending")]).slice(0, SHOWN)
    return Tally(
        failed=list(zip(failed["key"].to_pylist(), failed["error"].to_pylist(), strict=True)),
        least_confident=list(zip(doubtful["confidence"].to_pylist(), doubtful["key"].to_pylist(), strict=True)),
        sample=[(0, key) for key in shown["key"].to_pylist()],
    )


def cards(output: str, photos: pa.Table, merged: pa.Table, tally: Tally) -> list[gallery.Card]:
    """The page's pictures: the first few that failed, the least confident, and a sample of the others."""
    confidence = {key: value for value, key in tally.least_confident}
    groups: dict[str, gallery.Group] = dict.fromkeys((key for _, key in tally.sample), "sample")
    groups |= dict.fromkeys(confidence, "least confident") | dict.fromkeys((key for key, _ in tally.failed), "failed")
    keys = pa.array(sorted(groups), pa.string())
    rows = merged.take(pc.index_in(keys, merged["key"].combine_chunks())).to_pylist()
    inputs = photos.take(pc.index_in(keys, photos["key"].combine_chunks()))
    made = []
    for index, data in read_photos(inputs, ahead=4):
        key, row = rows[index]["key"], rows[index]
        try:
            image_HWC = None if isinstance(data, str) else thumbnail(images.decode_image(data))
        except images.BadImage:
            image_HWC = None
        if row["status"] == "failed":
            made.append(gallery.Card(key, groups[key], {"reason": row["error"]}, image_HWC))
            continue
        facts = {"size": f"{row['width']}×{row['height']}", "coverage": row["coverage"]}
        if key in confidence:
            facts["confidence"] = confidence[key]
        try:
            matte = read_matte(key, storage.join(output, row["outputs"][0]), MAX_IMAGE_BYTES)
            alpha_HW = thumbnail(images.decode_alpha(matte))
        except (storage.StorageError, images.BadImage) as error:  # as another run or a person left it meanwhile
            made.append(gallery.Card(key, groups[key], {**facts, "matte": f"made, and gone since: {error}"}, image_HWC))
            continue
        if image_HWC is not None and image_HWC.shape[:2] == alpha_HW.shape:  # else it has changed since
            made.append(gallery.Card(key, groups[key], facts, image_HWC, alpha_HW, cutout(image_HWC, alpha_HW)))
    return sorted(made, key=lambda card: (confidence.get(card.key, 2), card.key))


def thumbnail(array: Pixels) -> Pixels:
    """At the size that the page shows."""
    height, width = array.shape[:2]
    scale = min(1, gallery.THUMBNAIL / max(height, width))
    return images.resize(array, max(1, round(width * scale)), max(1, round(height * scale)))


def kind_of(error: str) -> str:
    """What failures of one kind have in common: the reason without names and numbers."""
    return re.sub(r"\d[\d,.]*", "N", error.partition(":")[0])


def keep_smallest(kept: list[tuple[Any, str]], value: float, key: str) -> None:
    """Insert into a sorted list that never grows beyond SHOWN."""
    bisect.insort(kept, (value, key))
    del kept[SHOWN:]


def duration(seconds: float) -> str:
    """In words: "3 h 20 min"."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
