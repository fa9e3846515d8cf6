"""Score a checkpoint, or the mattes of any other system, against true mattes at their own size.

    1. pairs of a split                                              driver
    2. decode, predict (or read the prediction), six metrics of      tasks, some pairs each
       every image, and the confidence
    3. per_image.parquet, summary.json, report.html                  driver -> <output>/

An image without a prediction is an error, since a mean without it would be too good.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from jobs.common import cluster, config
from jobs.common.cases import PredictAlpha, predict_cases
from jobs.common.cli import JobError, command_line, run_job
from jobs.common.console import Console
from jobs.evaluation.alphas import Alphas, CheckpointAlphas, open_alphas
from matting.data import images
from matting.data.dataset import (
    SPLITS,
    DataError,
    PairDataset,
    PairOptions,
    check_mattes,
    open_dataset,
    too_many_rejected,
)
from matting.data.rows import Example, Rows
from matting.inference.predictor import Refine
from matting.messages import first_few
from matting.nn.metrics import METRICS, MetricSums, confidence, image_metrics, risk_coverage_area
from matting.results import report
from matting.results.metric_labels import label_metrics
from matting.storage import store
from matting.storage.uri import absolute_uri, absolute_uris, join_uri

PAIRS_PER_TASK = 16

CASES = 4  # images in each group of the page, over all datasets together


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(PairOptions):
    """Score predictions against true mattes.

    Args:
        data: URI of raw or packed pairs, or "synthetic"; several with commas between.
        output: URI of the folder for the results.
        checkpoint: URI of the checkpoint folder to score.
        predictions: URI of a folder of mattes to score instead, named <key>.png or <key without suffix>.png; without
            the key's folders too, as far as a name can only be one photo's.
        beside: URI of another checkpoint folder, whose mattes the page shows beside these.
        refine: Method of enlarging a checkpoint's alphas to the photo's size, as in predict.
        split: Split to score, or "all".
    """

    data: str
    output: str
    checkpoint: str | None = None
    predictions: str | None = None
    beside: str | None = None
    refine: Refine = "none"
    split: Literal["train", "val", "test", "all"] = "test"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.checkpoint is None) == (self.predictions is None):
            raise ValueError("give either --checkpoint or --predictions")
        if self.predictions and not self.beside and self.refine != "none":
            raise ValueError("--refine is for the alphas of a checkpoint; --predictions are scored as they are")


ScoredRow = dict[str, Any]  # key, split, metrics, confidence; rejected, unpredicted and suspicious: reasons, or ""


def main(argv: Sequence[str]) -> None:
    """Score every pair of the split, and write the results."""
    options = config.parse(EvaluateConfig, argv)
    pairs = open_dataset(absolute_uris(options.data), options)
    keys = chain.from_iterable(pairs.keys.values())
    alphas = open_alphas(options.checkpoint, options.predictions, options.refine, keys)
    beside = CheckpointAlphas(options.beside, options.refine) if options.beside else None
    splits = SPLITS if options.split == "all" else (options.split,)
    total = sum(pairs.counts()[split] for split in splits)
    if not total:
        raise DataError(f"{options.data} has no pairs in split '{options.split}': {pairs.counts()}.")
    output = absolute_uri(options.output)
    store.check_writable(output)
    for warning in check_mattes(pairs, options.data, options):
        print(f"WARNING: {warning}")

    rows = score_splits(pairs, splits, alphas)
    rejected = {row["key"]: row["rejected"] for row in rows if row["rejected"]}
    if failure := too_many_rejected(rejected, total, options.max_rejected_fraction):
        raise JobError(failure)
    require_predictions(rows)

    scored = sorted((row for row in rows if not row["rejected"]), key=lambda row: row["key"])
    by_dataset = {prefix: [row for row in scored if row["key"].startswith(prefix)] for prefix in pairs.prefixes}
    means = means_of(scored)
    dataset_means = {prefix.rstrip("/"): means_of(rows) for prefix, rows in by_dataset.items() if rows and prefix}
    suspicious = [(row["key"], row["suspicious"]) for row in scored if row["suspicious"]]
    write_scores(output, scored)
    write_evaluation_summary(output, options, means, dataset_means, len(suspicious))
    cases, unreadable = cases_by_dataset(pairs, by_dataset, alphas, beside)
    left_out = [*pairs.unpaired, *rejected.items(), *unreadable.items()]
    write_evaluation_page(
        output,
        options,
        facts={
            "Predictions": alphas.source,
            "Data": f"{options.data}: {pairs.counts()}, SHA-256 {pairs.fingerprint[:16]}…",
            "Confidence": describe_confidence(scored, means),
            **({"Beside them": beside.source} if beside else {}),
        },
        means={"all": means, **dataset_means},
        cases=cases,
        left_out=left_out,
        suspicious=suspicious,
    )
    print_means(output, means, dataset_means, len(left_out), len(suspicious))


# Score ----------------------------------------------------------------------------------------------------------------


def score_splits(pairs: PairDataset, splits: Sequence[str], alphas: Alphas) -> list[ScoredRow]:
    """Score every pair of these splits in Ray tasks.

    Args:
        pairs: The dataset.
        splits: Names of the splits.
        alphas: Predictions to score.

    Returns:
        A row for each pair, in no order.
    """
    cluster.start(cpus=0, reading=1, gpus=0, what="Scoring tasks")
    scored = []
    with Console() as console:
        progress = console.progress("scoring", sum(len(pairs.splits[split]) for split in splits), "images")
        for split in splits:
            for row in score(pairs.splits[split], alphas):
                scored.append({**row, "split": split})
                progress.update(1)
    return scored


def score(rows: Rows, alphas: Alphas) -> Iterator[ScoredRow]:
    """Score the pairs of one split, and yield their rows as they come."""
    dataset = ray.data.range(len(rows), override_num_blocks=max(1, len(rows) // PAIRS_PER_TASK))
    dataset.context.enable_progress_bars = False
    score_task = partial(score_batch, shared=[ray.put(rows), ray.put(alphas)])
    yield from dataset.map_batches(score_task, batch_size=PAIRS_PER_TASK, num_cpus=1).iter_rows()


def score_batch(batch: dict[str, np.ndarray], shared: list[Any]) -> dict[str, list[Any]]:
    """Score some pairs: one Ray task.

    Args:
        batch: Indices of the pairs, as the column "id".
        shared: References to all pairs of the split, and to the predictions.

    Returns:
        Columns of ScoredRow.
    """
    rows, alphas = ray.get(shared)
    scored = [score_one(alphas, example) for example in rows.take(batch["id"]).examples(None)]
    return {name: [row[name] for row in scored] for name in scored[0]}


def score_one(alphas: Alphas, example: Example) -> ScoredRow:
    """Score one pair; a pair that is rejected or has no prediction has NaN for every metric."""
    row: ScoredRow = {"key": example.key, "rejected": example.error, "unpredicted": "", "suspicious": example.warning}
    metrics = dict.fromkeys((*METRICS, "confidence"), float("nan"))
    if example.image is not None and example.alpha is not None:
        try:
            pred_alpha = alphas(example.key, example.image)
            height, width = example.alpha.shape
            metrics = image_metrics(images.resize(pred_alpha, width, height), example.alpha)
            metrics["confidence"] = confidence(pred_alpha)
        except images.BadImage as error:
            row["unpredicted"] = str(error)
    return {**row, **metrics}


def require_predictions(rows: Sequence[ScoredRow]) -> None:
    """Check that every pair has a prediction.

    Raises:
        JobError: Some have none, or one that cannot be used.
    """
    reasons = [f"{row['key']}: {row['unpredicted']}" for row in rows if row["unpredicted"]]
    if reasons:
        raise JobError(
            f"{len(reasons)} of {len(rows)} images have no usable prediction: {first_few(reasons)}. A mean without "
            "them would flatter, so there is none. Predict them, or correct --predictions."
        )


def means_of(rows: Sequence[ScoredRow]) -> dict[str, float]:
    """Return the mean of each metric, and "aurc": the area under the risk-coverage curve of MAD by confidence."""
    sums = MetricSums()
    for row in rows:
        sums.add({name: row[name] for name in METRICS})
    area = risk_coverage_area([row["mad"] for row in rows], [row["confidence"] for row in rows])
    return {**sums.mean(), "aurc": area}


# Report ---------------------------------------------------------------------------------------------------------------


def write_scores(output: str, scored: Sequence[ScoredRow]) -> None:
    """Write per_image.parquet: key, split, metrics and confidence of every scored pair."""
    columns = ("key", "split", *METRICS, "confidence")
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{name: row[name] for name in columns} for row in scored]), sink)
    store.write_bytes(join_uri(output, "per_image.parquet"), sink.getvalue())


def write_evaluation_summary(
    output: str,
    options: EvaluateConfig,
    means: Mapping[str, float],
    dataset_means: Mapping[str, Mapping[str, float]],
    suspicious: int,
) -> None:
    """Write summary.json: what was scored, the number of suspicious pairs, the means, and those of each dataset."""
    content = {
        "command": command_line(),
        "checkpoint": options.checkpoint,
        "predictions": options.predictions,
        "data": options.data,
        "split": options.split,
        "suspicious": suspicious,
        **means,
        **({"sources": dataset_means} if dataset_means else {}),
    }
    store.write_bytes(join_uri(output, "summary.json"), (json.dumps(content, indent=2) + "\n").encode())


def describe_confidence(scored: Sequence[ScoredRow], means: Mapping[str, float]) -> str:
    """Return how well confidence ranks the images by MAD, between chance and the best possible ranking."""
    errors = [row["mad"] for row in scored]
    best = risk_coverage_area(errors, [-error for error in errors])
    return (
        f"area under the risk-coverage curve of MAD {means['aurc']:.2f}e-3 "
        f"(by chance {means['mad']:.2f}e-3, at best {best:.2f}e-3)"
    )


def cases_by_dataset(
    pairs: PairDataset,
    by_dataset: Mapping[str, Sequence[ScoredRow]],
    alphas: Alphas,
    beside: CheckpointAlphas | None,
) -> tuple[dict[str, list[report.Case]], dict[str, str]]:
    """Predict the best, median and worst images of each dataset again, for the page.

    Args:
        pairs: The datasets.
        by_dataset: Scored rows of each dataset, by the prefix of its keys.
        alphas: Predictions that were scored.
        beside: Another checkpoint, whose predictions are shown too.

    Returns:
        Cases by the page's headings; and, by key, the reasons why pairs cannot be read any more.
    """
    predictions: dict[str, PredictAlpha] = {"": alphas}
    if beside:
        predictions[f", by {beside.uri}"] = beside
    cases: dict[str, list[report.Case]] = {}
    unreadable: dict[str, str] = {}
    for prefix, rows in by_dataset.items():
        scores = [(row["split"], row["key"], row["mad"]) for row in rows]
        groups, gone = predict_cases(pairs, scores, predictions, max(1, CASES // len(by_dataset)))
        cases |= {f"{prefix.rstrip('/')}: {group}" if prefix else group: found for group, found in groups.items()}
        unreadable |= gone
    return cases, unreadable


def write_evaluation_page(
    output: str,
    options: EvaluateConfig,
    *,
    facts: Mapping[str, str],
    means: Mapping[str, Mapping[str, float]],
    cases: Mapping[str, Sequence[report.Case]],
    left_out: Sequence[tuple[str, str]],
    suspicious: Sequence[tuple[str, str]],
) -> None:
    """Write report.html.

    Args:
        output: URI of the output folder.
        options: Options of the job.
        facts: Facts at the top of the page, by name.
        means: Means of all pairs and of each dataset, by name.
        cases: Cases by heading.
        left_out: Key and reason of each pair that was left out.
        suspicious: Key of each scored pair whose matte may be wrong, and why.
    """
    page = report.report_page(
        title=f"Evaluation on the {options.split} split",
        command=command_line(),
        facts=facts,
        figures=[
            {"pairs": name, "split": options.split, "images": figures["n"], **label_metrics(figures)}
            for name, figures in means.items()
        ],
        history=[],
        groups=cases,
        skipped=left_out,
        suspicious=suspicious,
    )
    store.write_bytes(join_uri(output, "report.html"), page.encode())


def print_means(
    output: str,
    means: Mapping[str, float],
    dataset_means: Mapping[str, Mapping[str, float]],
    left_out: int,
    suspicious: int,
) -> None:
    """Print the means, the numbers of pairs that were left out or are suspicious, and where the page is."""
    for name, figures in {**dataset_means, "all": means}.items():
        line = "  ".join(f"{metric} {value:.6g}" for metric, value in figures.items())
        print(f"{name}: {line}" if dataset_means else line)
    if left_out:
        print(f"Left out, and named on the page: {left_out:,}.")
    if suspicious:
        print(f"Suspicious, scored all the same, and named on the page: {suspicious:,}.")
    print(f"Page: {output}/report.html")


if __name__ == "__main__":
    run_job(main)
