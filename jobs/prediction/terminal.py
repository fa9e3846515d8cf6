"""The lines that the job prints before it predicts and after it: the plan, and the result."""

import pyarrow as pa

from jobs.prediction.report import PredictionSummary, format_duration
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
    if photos.left_out:
        print(f"{len(photos.left_out):>11,} left out: {first_few([f'{key} {why}' for key, why in photos.left_out])}")
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


def print_result(output: str, summary: PredictionSummary, skipped: int) -> None:
    """Print the counts and times of this run, and where its page is."""
    print(f"{summary.done:>11,} done")
    for reason, count in summary.warnings.most_common():
        print(f"{count:>15,} with a warning: {reason}")
    print(f"{skipped:>11,} skipped, handled before")
    print(f"{summary.reasons.total():>11,} failed")
    for reason, count in summary.reasons.most_common():
        print(f"{count:>15,} {reason}")
    if summary.transient_reasons:
        print(f"{summary.transient_reasons.total():>11,} failed for a transient reason; the next run tries them again")
    for reason, count in summary.transient_reasons.most_common():
        print(f"{count:>15,} {reason}")
    print(f"Time went to {summary.shares()}.")
    print(f"{summary.speed()}. Page: {output}/report.html")
