"""Predict the mattes of a photo collection: a checkpoint and a bucket of photos -> mattes, cutouts, and a ledger.

    1. photos of the collection, without those that the ledger has as done   driver -> due photos
    2. blocks of due photos: keys and URIs, no pixels                        driver -> Ray's object store
    3. fetch, decode, network, encode, put, ledger part                      one task per block, one per core
       (with GPUs, an actor on each GPU squashes, predicts and refines, and the tasks do the rest)
    4. the ledger in one part, summary.json, report.html                     driver

Meanwhile the driver publishes the tasks' counts as metrics (jobs/common/telemetry.py).

A photo is done when its outputs, and then its ledger row, are in the store. A run that is killed loses at most the
blocks that it was working on; the next run does what is left. A run without due photos leaves nothing new, so
summary.json and report.html stay those of the last run that had some.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, get_args

import pyarrow as pa
import pyarrow.compute as pc
from ray.exceptions import RayError, RayTaskError

from jobs.common import config, telemetry, visibility
from jobs.common.cli import JobError, command_line, run_job
from jobs.common.cluster import ClusterError, Resources
from jobs.common.console import Console
from jobs.common.output_options import LeaseOptions
from jobs.prediction.blocks import PredictionWork, cut_into_blocks
from jobs.prediction.devices import DeviceOption, start_prediction_cluster
from jobs.prediction.precision import PrecisionOption, UnsupportedFormatError, decide_precision, require_precision
from jobs.prediction.prune import check_prune, remove_outputs
from jobs.prediction.report import (
    PredictionSummary,
    failure_kind,
    has_page,
    last_run,
    summary_of_ledger,
    write_page,
    write_summary,
)
from jobs.prediction.rounds import NoDeviceLeftError, handle_in_rounds, tasks_at_a_time
from jobs.prediction.terminal import print_plan, print_result
from matting.data.images import MAX_PIXELS
from matting.data.photos import Photos, find_photos
from matting.data.sources.tar_index import INDEX_NAME, TarIndex
from matting.inference.predictor import Refine
from matting.messages import first_few
from matting.nn import checkpoint
from matting.nn.checkpoint import CheckpointError
from matting.nn.precision import NumberFormat
from matting.results import ledger
from matting.results.cutouts import BadBackground, CutoutFormat, check_cutout_options, find_background
from matting.results.pipeline import PredictionSettings, Sink, Stage
from matting.storage import lease, store
from matting.storage.errors import StorageError
from matting.storage.uri import absolute_uri

# Errors that a user can act on, in a task that had begun.
EXPECTED = (StorageError, CheckpointError, ClusterError, UnsupportedFormatError, BadBackground)


@dataclass(frozen=True, kw_only=True)
class PredictConfig(LeaseOptions):
    """Predict a matte for every photo of a collection.

    Args:
        checkpoint: URI of a checkpoint folder.
        images: URI of a folder of photos or tar archives, of a tar archive, or of a table of URIs or image bytes.
        output: URI of the folder for mattes, ledger, summary and page.
        write: Outputs for each photo: alpha, cutout, or both with a comma between.
        format: File format of cutouts. JPEG needs a background.
        background: New background of cutouts: a colour (white, "#ffffff"), or the URI of an image, which is scaled to
            cover the cutout and cropped at its centre. Empty to keep cutouts transparent.
        crop: Crop cutouts to the person, with a margin of this fraction of the longer side of the person's box, from 0
            to 1. Alphas are always whole.
        refine: Method of enlarging alphas to the photo's size: "none" interpolates; "guided" follows the photo's edges;
            "mirrored" does so after test-time augmentation with the photo's mirror image, in twice the time.
        precision: Number format of the network. "auto" is the fastest one that all nodes can compute. Formats differ in
            single pixels of a matte, so with another one every photo is due again.
        sink: Form of the outputs: "files" for one object per matte, "table" for Parquet parts of many mattes.
        limit: Number of photos to handle in this run at most.
        plan: Print what there is to do, and do nothing.
        retry_failed: Handle photos again that failed before and have not changed since.
        max_failed: Fraction of this run's photos that may fail, for their own or a transient reason, in [0, 1]. More
            failures fail the job.
        photo_timeout: Time after which a photo that comes no further has failed, in seconds.
        max_megapixels: Size of a photo in millions of pixels above which it fails, undecoded.
        prune: Remove the outputs of photos that are no longer in the collection.
        max_pruned: Fraction of the ledger's photos, in [0, 1], above which --prune removes nothing and the job ends
            with exit code 2, as when --images names the wrong folder.
        workers: Number of tasks at a time; by default one for each core of the cluster.
        device: Devices of the network; "auto" takes GPUs if the cluster has any.
    """

    checkpoint: str
    images: str
    output: str
    write: str = "alpha"
    format: CutoutFormat = "png"
    background: str = ""
    crop: float | None = None
    refine: Refine = "guided"
    precision: PrecisionOption = "auto"
    sink: Sink = "files"
    limit: int | None = None
    plan: bool = False
    retry_failed: bool = False
    max_failed: float = 0.01
    photo_timeout: float = 120.0
    max_megapixels: float = MAX_PIXELS / 1e6
    prune: bool = False
    max_pruned: float = 0.1
    workers: int | None = None
    device: DeviceOption = "auto"

    def __post_init__(self) -> None:
        if not self.write_kinds or set(self.write_kinds) - {"alpha", "cutout"}:
            raise ValueError(f"--write takes alpha, cutout or alpha,cutout, is {self.write!r}")
        check_cutout_options(self.format, bool(self.background), self.crop)
        if "cutout" not in self.write_kinds and (self.background or self.crop is not None):
            raise ValueError("--background and --crop are for cutouts: add --write cutout or --write alpha,cutout")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit must be 1 or more, is {self.limit}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers must be 1 or more, is {self.workers}")
        if self.photo_timeout <= 0:
            raise ValueError(f"--photo-timeout must be more than 0, is {self.photo_timeout:g}")
        if not 0 < self.max_megapixels <= 10_000:
            raise ValueError(f"--max-megapixels must be more than 0 and at most 10000, is {self.max_megapixels:g}")
        if not 0 <= self.max_failed <= 1:
            raise ValueError(f"--max-failed is a fraction from 0 to 1, is {self.max_failed}")
        if not 0 <= self.max_pruned <= 1:
            raise ValueError(f"--max-pruned is a fraction from 0 to 1, is {self.max_pruned}")

    @property
    def write_kinds(self) -> tuple[Any, ...]:
        """Kinds of outputs, sorted, so that the order on the command line makes no difference."""
        return tuple(sorted({kind.strip() for kind in self.write.split(",") if kind.strip()}))

    def settings(self, precision: NumberFormat) -> PredictionSettings:
        """Return the settings that determine the outputs of a photo, for the ledger.

        Raises:
            BadBackground: The background is neither a colour nor an image that can be read.
        """
        return PredictionSettings(
            write=self.write_kinds,
            format=self.format,
            refine=self.refine,
            sink=self.sink,
            precision=precision,
            background=find_background(self.background) if self.background else None,
            crop=self.crop,
        )


def main(
    argv: Sequence[str],
    work_class: type[PredictionWork] = PredictionWork,
    lease_seconds: float = lease.LEASE_SECONDS,
) -> None:
    """Plan, predict the due photos, and leave ledger, summary and page."""
    began = datetime.now(UTC)
    options = config.parse(PredictConfig, argv)
    checkpoint_uri, source, output = (
        absolute_uri(uri).rstrip("/") for uri in (options.checkpoint, options.images, options.output)
    )
    model = checkpoint.load(checkpoint_uri).identity
    settings = options.settings(decide_precision(options.precision, options.device))
    index = TarIndex.read(f"{output}/{INDEX_NAME}")
    photos = find_photos(source, output, index)
    known = ledger.read(output)
    plan = ledger.plan(photos.table, known, model, str(settings), options.retry_failed)
    due = plan.due.slice(0, options.limit)
    print_plan(source, photos, plan, due, ledger.last_rate(known), options.prune)
    if options.plan:
        return

    pruned = plan.deleted if options.prune else pa.chunked_array([], pa.string())
    check_prune(pruned, len(known), options.max_pruned)
    store.check_writable(output)
    group = hashlib.sha256(f"{model} {settings}".encode()).hexdigest()  # runs that write the same may do so together
    with lease.hold(output, command_line(), group, options.take_over, lease_seconds) as fence:
        index.save(f"{output}/{INDEX_NAME}")
        remove_outputs(output, known, pruned)
        due = with_earlier_outputs(due, known)
        del known
        pa.default_memory_pool().release_unused()  # reading leaves several times the size of what is still needed
        run, max_pixels = ledger.new_run_name(datetime.now(UTC)), round(1e6 * options.max_megapixels)
        work = work_class(checkpoint_uri, model, output, settings, run, max_pixels, fence)
        carry_out(options, work, source, photos, due, pruned, began)


def carry_out(
    options: PredictConfig,
    work: PredictionWork,
    source: str,
    photos: Photos,
    due: pa.Table,
    pruned: pa.ChunkedArray,
    began: datetime,
) -> None:
    """Predict the due photos, and leave ledger, summary and page.

    Args:
        options: Options of the job.
        work: The tasks' assignment.
        source: URI of the collection.
        photos: The collection.
        due: Photos to handle, with columns of `photos.PHOTO_SCHEMA` and outputs.
        pruned: Keys of the photos whose outputs were removed.
        began: Time at which the job began.
    """
    output = work.output
    if not len(due):
        write_missing_page(work, source, ledger.compact(output, pruned), photos)
        store.remove_partials(output, began)
        print("Nothing left to do.")
        return
    found = start_prediction_cluster(options.device, options.workers)
    if not found.is_own:
        require_precision(work.settings.precision, options.device)
    background = work.settings.background
    inputs = [work.checkpoint, source, *photos.table["uri"].slice(0, 1).to_pylist()]
    if background and background.source != background.identity:  # not a colour
        inputs.append(background.source)
    with visibility.prove(found.is_own, output, inputs) as token:
        summary = predict(replace(work, token=token), due, options, found)

    if work.fence:
        work.fence.check()
    merged = ledger.compact(output, pruned)
    pa.default_memory_pool().release_unused()
    store.remove_partials(output, began)
    write_summary(work, summary, len(photos.table))
    write_page(work, source, merged, summary, photos)
    print_result(output, summary, len(photos.table) - len(due))
    if summary.unsuccessful > options.max_failed * summary.total:
        raise JobError(
            f"{summary.unsuccessful:,} of {summary.total:,} photos failed, more than --max-failed "
            f"{options.max_failed:g} allows. The ledger names them all, with their reasons: "
            f"{first_few([f'{key}: {why}' for key, why in summary.failed])}"
        )


def write_missing_page(work: PredictionWork, source: str, merged: pa.Table, photos: Photos) -> None:
    """Write the page of the ledger's last run, if that run was killed before it could."""
    if len(merged) and not has_page(work.output, last_run(merged)):
        write_page(work, source, merged, summary_of_ledger(merged, photos.table), photos)


def with_earlier_outputs(due: pa.Table, known: pa.Table) -> pa.Table:
    """Add a column of the outputs that earlier runs left of each due photo; null for a new photo."""
    places = pc.index_in(due["key"], known["key"].combine_chunks())
    return due.append_column("outputs", known["outputs"].take(places))


# Predict --------------------------------------------------------------------------------------------------------------


def predict(work: PredictionWork, due: pa.Table, options: PredictConfig, found: Resources) -> PredictionSummary:
    """Handle every due photo.

    Args:
        work: The tasks' assignment.
        due: Photos, with columns of `photos.PHOTO_SCHEMA` and outputs.
        options: Options of the run.
        found: The cluster.

    Raises:
        ClusterError: A node that has joined meanwhile does not see the job's files.
        JobError: A block could not be handled, or too many photos fail; the message says how far the run came.
    """
    summary = PredictionSummary(ray_seconds=found.seconds)
    blocks = list(cut_into_blocks(due, tasks_at_a_time(found, options.workers)))
    with (
        Console() as console,
        closing(handle_in_rounds(work, blocks, found, options.workers, options.photo_timeout)) as handled,
    ):
        progress = console.progress("predicting", len(due), "photos")
        try:
            for rows in handled:
                summary.add(rows)
                publish(work.run, rows)
                progress.update(len(rows))
                stop_if_sick(summary, len(due), options.max_failed)
        except (RayError, NoDeviceLeftError, *EXPECTED) as error:
            kind = ClusterError if isinstance(error, ClusterError) else JobError
            raise kind(
                f"stopped after {summary.total:,} of {len(due):,} photos; what is done stays done, run again. "
                f"{reason_of(error)}"
            ) from error
    return summary


def stop_if_sick(summary: PredictionSummary, due: int, max_failed: float) -> None:
    """Stop a run that fails photos, before it has failed them all.

    The run is judged as soon as it has handled 1,000 photos or a tenth of all, but at least 20.

    Raises:
        JobError: More photos failed than `max_failed` allows. The message says why, and on which nodes and devices.
    """
    is_early = summary.total < max(20, min(1000, due // 10))
    if is_early or summary.total >= due or summary.unsuccessful <= max_failed * summary.total:
        return
    raise JobError(
        f"stopped after {summary.total:,} of {due:,} photos, since {summary.unsuccessful:,} failed, more than "
        f"--max-failed {max_failed:g} allows; what is done stays done. The most frequent causes: "
        f"{first_few(summary.causes())}. "
        "Remove the cause and run again."
    )


def reason_of(error: Exception) -> str:
    """Return an error's message, without the task's traceback if it is an error that a user can act on."""
    if isinstance(error, RayTaskError) and isinstance(error, EXPECTED):
        return str(error.cause).splitlines()[0]
    return str(error)


def publish(run: str, rows: list[dict[str, Any]]) -> None:
    """Publish the rows of a block, as :func:`jobs.prediction.handler.handle_block` returns them, as metrics."""
    outcomes = Counter((row["status"], failure_kind(row["error"]) if row["error"] else "") for row in rows)
    for (outcome, reason), photos in outcomes.items():
        telemetry.add_to_counter(telemetry.PHOTOS, photos, run=run, outcome=outcome, reason=reason)
    for direction in ("read", "written"):
        telemetry.add_to_counter(telemetry.BYTES, sum(row[direction] for row in rows), run=run, direction=direction)
    for block in filter(None, (row["block"] for row in rows)):
        for stage in get_args(Stage):
            telemetry.add_to_counter(telemetry.PREDICT_SECONDS, block[stage] or 0.0, run=run, stage=stage)


if __name__ == "__main__":
    run_job(main)
