"""Counts of photos by state, as printed before a prediction begins."""

import pyarrow as pa

from jobs.prediction.report import format_duration
from matting.data.photos import Photos
from matting.messages import first_few
from matting.results import ledger

STATE_LABELS = {
    "new": "new",
    "changed": "changed since they were predicted",
    "outdated": "made with another checkpoint or other settings",
    "transient": "failed when last tried, for a reason outside the photo",
    "failed": "failed before, unchanged (--retry-failed tries them again)",
    "done": "done",
}


def print_plan(source: str, photos: Photos, plan: ledger.Plan, due: pa.Table, rate: float | None, prunes: bool) -> None:
    """Print how many photos there are, are done and are left.

    Args:
        source: URI of the collection.
        photos: The collection.
        plan: State of its photos.
        due: Photos to handle in this run.
        rate: Throughput of the last run, in photos per second; None if unknown.
        prunes: Whether this run removes the outputs of deleted photos.
    """
    others = f" ({len(photos.ignored):,} other files: {first_few(list(photos.ignored))})" if photos.ignored else ""
    print(f"{len(photos.table):>11,} photos in {source}{others}")
    for state, count in plan.counts.items():
        if count:
            print(f"{count:>11,} {STATE_LABELS[state]}")
    if len(plan.deleted):
        outcome = "are removed" if prunes else "stay; --prune removes them"
        print(f"{len(plan.deleted):>11,} deleted from the collection; their outputs {outcome}")
    limit = f", of which {len(due):,} in this run" if len(due) < len(plan.due) else ""
    estimate = (
        f", about {format_duration(len(due) / rate)} at the last run's {rate:.1f} photos/s" if rate and len(due) else ""
    )
    print(f"{len(plan.due):>11,} left to do{limit}{estimate}", flush=True)
