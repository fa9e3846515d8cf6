"""Matte a collection: a checkpoint and a bucket of photos -> mattes, cutouts, and a ledger that accounts for all.

    1. photos of the collection, less what the ledger has as done   driver -> what is due
    2. blocks of due photos: keys and URIs, no pixels               driver -> object store
    3. fetch, decode, network, encode, put, ledger part             a task a block, one on each core
       (with GPUs, the network in an actor each, and the rest around it)
    4. the ledger in one part, report.html                          driver

Meanwhile the driver publishes what the tasks say of their blocks (jobs/telemetry.py).

A photo is done when its outputs and then its ledger row are in the store. A run that is killed loses at most the blocks
it was at; the next one does what is left.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, get_args

import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from ray.exceptions import RayError, RayTaskError

from jobs import cluster, config, telemetry
from jobs.blocks import GpuNetwork, Work, blocks, handle_block
from jobs.outcome import Tally, duration, has_page, kind_of, last_run, remembered, write_page
from matting import checkpoint, ledger, outputs, storage
from matting.checkpoint import CheckpointError
from matting.outputs import CutoutFormat, Settings, Sink, Stage
from matting.pairs import some
from matting.photos import Photos, find_photos
from matting.predictor import Refine

SHARED_CPUS = 0.5  # of a task that waits for a GPU half of the time


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Matte every photo of a collection.

    Args:
        checkpoint: URI of a checkpoint folder.
        images: URI of a folder of photos, or of a Parquet or CSV table with a column of URIs or of image bytes.
        output: URI of the folder for mattes, ledger and page.
        write: what to make of each photo: alpha, cutout, or both with a comma between.
        format: of cutouts.
        refine: how alphas get to the photo's size: "none" interpolates; "guided" also looks at the photo; "mirrored"
            does so after the network has seen the photo's mirror image, too.
        sink: "files" writes an object for each matte, "table" Parquet parts that hold many.
        limit: handle at most so many photos in this run.
        plan: only say what there is to do.
        retry_failed: handle again what failed before and has not changed since.
        max_failed: fraction of this run's photos that may fail, above which the job fails.
        prune: remove the outputs of photos that are no longer in the collection.
        workers: tasks at a time; by default one for each core of the cluster.
    """

    checkpoint: str
    images: str
    output: str
    write: str = "alpha"
    format: CutoutFormat = "png"
    refine: Refine = "guided"
    sink: Sink = "files"
    limit: int | None = None
    plan: bool = False
    retry_failed: bool = False
    max_failed: float = 0.01
    prune: bool = False
    workers: int | None = None

    def __post_init__(self) -> None:
        if not self.write_kinds or set(self.write_kinds) - {"alpha", "cutout"}:
            raise ValueError(f"--write takes alpha, cutout or alpha,cutout, is {self.write!r}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit must be 1 or more, is {self.limit}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers must be 1 or more, is {self.workers}")
        if not 0 <= self.max_failed <= 1:
            raise ValueError(f"--max-failed is a fraction from 0 to 1, is {self.max_failed}")

    @property
    def write_kinds(self) -> tuple[Any, ...]:
        """Sorted, so that the order of writing them down makes no difference."""
        return tuple(sorted({kind.strip() for kind in self.write.split(",") if kind.strip()}))

    @property
    def settings(self) -> Settings:
        """What the ledger remembers of these options."""
        return Settings(self.write_kinds, self.format, self.refine, self.sink)


def main(argv: Sequence[str], kind_of_work: type[Work] = Work) -> None:
    """Plan, predict what is due, and leave ledger and page."""
    began = datetime.now(UTC)
    options = config.parse(PredictConfig, argv)
    checkpoint_uri, source, output = (
        cluster.absolute(uri).rstrip("/") for uri in (options.checkpoint, options.images, options.output)
    )
    model = checkpoint.load(checkpoint_uri).identity
    photos = find_photos(source, output)
    known = ledger.read(output)
    plan = ledger.plan(photos.table, known, model, str(options.settings), options.retry_failed)
    due = plan.due.slice(0, options.limit)
    print_plan(source, photos, plan, due, ledger.last_rate(known), options.prune)
    if options.plan:
        return
    storage.check_writable(output)
    if options.prune and len(plan.deleted):
        gone = known.filter(pc.is_in(known["key"], plan.deleted.combine_chunks()))
        outputs.remove(output, dict(zip(gone["key"].to_pylist(), gone["outputs"].to_pylist(), strict=True)))
    work = kind_of_work(checkpoint_uri, model, output, options.settings, ledger.new_run(datetime.now(UTC)))
    if not len(due):
        merged = ledger.compact(output, plan.deleted if options.prune else ())
        storage.remove_partials(output, began)
        if len(merged) and not has_page(output, last_run(merged)):  # that run was killed at its end
            write_page(work, source, merged, remembered(merged, photos.table), photos)
        print("Nothing left to do.")
        return
    due = with_earlier_outputs(due, known)
    del known
    pa.default_memory_pool().release_unused()  # what reading took; it may be several times what is left of it
    tally = predict(work, due, options.workers)
    merged = ledger.compact(output, plan.deleted if options.prune else ())
    pa.default_memory_pool().release_unused()
    storage.remove_partials(output, began)
    write_page(work, source, merged, tally, photos)
    print_result(output, tally, len(photos.table) - len(due))
    failed = tally.reasons.total()
    if failed > options.max_failed * tally.total:
        raise cluster.JobError(
            f"{failed:,} of {tally.total:,} photos failed, more than --max-failed {options.max_failed:g} allows. The "
            f"ledger names them all, with their reasons: {some([f'{key}: {why}' for key, why in tally.failed])}"
        )


def print_plan(source: str, photos: Photos, plan: ledger.Plan, due: pa.Table, rate: float | None, prunes: bool) -> None:
    """How much there is, is done and is left."""
    others = f" ({len(photos.ignored):,} other files: {some(list(photos.ignored))})" if photos.ignored else ""
    print(f"{len(photos.table):>11,} photos in {source}{others}")
    for state, count in plan.counts.items():
        if count:
            print(f"{count:>11,} {STATES[state]}")
    if len(plan.deleted):
        outcome = "are removed" if prunes else "stay; --prune removes them"
        print(f"{len(plan.deleted):>11,} deleted from the collection; their outputs {outcome}")
    limit = f", of which {len(due):,} in this run" if len(due) < len(plan.due) else ""
    estimate = f", about {duration(len(due) / rate)} at the last run's {rate:.1f} photos/s" if rate and len(due) else ""
    print(f"{len(plan.due):>11,} left to do{limit}{estimate}", flush=True)


STATES = {
    "new": "new",
    "changed": "changed since they were matted",
    "outdated": "made with another checkpoint or other settings",
    "unavailable": "the store failed on, before",
    "failed": "failed before, unchanged (--retry-failed tries them again)",
    "done": "done",
}


def with_earlier_outputs(due: pa.Table, known: pa.Table) -> pa.Table:
    """The due photos and what an earlier run left of each, null for a new one."""
    places = pc.index_in(due["key"], known["key"].combine_chunks())
    return due.append_column("outputs", known["outputs"].take(places))


def predict(work: Work, due: pa.Table, workers: int | None) -> Tally:
    """Deal with every due photo."""
    found = cluster.start(cpus=workers or 1, reading=0, gpus=0, what="Predicting tasks")
    tally = Tally(ray=found.seconds)
    share = SHARED_CPUS if found.gpus else 1
    count = workers or max(1, int(found.cores / share))
    networks = tuple(GpuNetwork.remote(work) for _ in range(found.gpus))
    dataset = ray.data.from_arrow(list(blocks(due, count)))
    context = dataset.context
    context.enable_progress_bars = context.print_on_execution_start = False
    context.raise_original_map_exception = True
    dataset = dataset.map_batches(
        partial(handle_block, work=work, networks=networks),
        batch_size=None,
        batch_format="pyarrow",
        # Elsewhere nodes may join, and their cores are welcome.
        compute=ray.data.TaskPoolStrategy(size=count if workers or found.is_own else None),
        num_cpus=share,
    )
    with cluster.Console() as console:
        progress = console.progress("predicting", len(due), "photos")
        try:
            for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                rows = block.to_pylist()
                tally.add(rows)
                publish(work.run, rows)
                progress.update(len(rows))
        except (RayError, storage.StorageError, CheckpointError) as error:
            reason = str(error)
            # What a user can act on is one line, around which Ray puts the task's traceback and advice of its own.
            if isinstance(error, RayTaskError) and isinstance(error, storage.StorageError | CheckpointError):
                reason = str(error.cause).splitlines()[0]
            raise cluster.JobError(
                f"stopped after {tally.total:,} of {len(due):,} photos; what is done stays done, run again. {reason}"
            ) from error
    return tally


def publish(run: str, rows: list[dict[str, Any]]) -> None:
    """For whoever watches: what :func:`handle_block` says, as metrics."""
    outcomes = Counter(("failed", kind_of(row["error"])) if row["error"] else ("done", "") for row in rows)
    for (outcome, reason), photos in outcomes.items():
        telemetry.count(telemetry.PHOTOS, photos, run=run, outcome=outcome, reason=reason)
    for direction in ("read", "written"):
        telemetry.count(telemetry.BYTES, sum(row[direction] for row in rows), run=run, direction=direction)
    for block in filter(None, (row["block"] for row in rows)):
        for stage in get_args(Stage):
            telemetry.count(telemetry.PREDICT_SECONDS, block[stage], run=run, stage=stage)


def print_result(output: str, tally: Tally, skipped: int) -> None:
    """What this run did."""
    print(f"{tally.done:>11,} done")
    print(f"{skipped:>11,} skipped, handled before")
    print(f"{tally.reasons.total():>11,} failed")
    for reason, count in tally.reasons.most_common():
        print(f"{count:>15,} {reason}")
    print(f"Time went to {tally.shares()}.")
    print(f"{tally.speed()}. Page: {output}/report.html")


if __name__ == "__main__":
    cluster.run(main)
