"""Score a checkpoint, or mattes that any other system made, against true mattes at their own size.

    1. pairs of a split                                     driver
    2. decode, predict (or read the prediction), six        tasks, some pairs each
       metrics of every picture, and the confidence
    3. per_image.parquet, metrics.json, report.html         driver -> <output>/

A picture that has no prediction is an error, never left out of the mean.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from jobs import cluster, config
from matting import checkpoint, images, report, storage
from matting.collection import SPLITS, DataError, Example, PairOptions, Pairs, Rows, open_pairs, too_many_rejected
from matting.metrics import METRICS, MetricSums, confidence, image_metrics, risk_coverage_area
from matting.pairs import some
from matting.predictor import Network, Predictor, Refine

TASK_ROWS = 16
CASES = 4  # in each group of the page, of all collections together


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(PairOptions):
    """Score predictions against true mattes.

    Args:
        data: URI of raw or packed pairs, or "synthetic"; several with commas between.
        output: URI of the folder for the results.
        checkpoint: URI of a checkpoint folder to score.
        predictions: in its place, URI of a folder of mattes <key>.png or <key without suffix>.png.
        beside: URI of another checkpoint folder, whose mattes the page shows beside these.
        refine: how a checkpoint's alphas get to the photo's size, as in predict.
        split: to score, or "all".
    """

    data: str
    output: str
    checkpoint: str | None = None
    predictions: str | None = None
    beside: str | None = None
    refine: Refine = "none"
    split: Literal["train", "val", "test", "all"] = "test"

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.predictions is None):
            raise ValueError("give either --checkpoint or --predictions")
        if self.predictions and not self.beside and self.refine != "none":
            raise ValueError("--refine is for the alphas of a checkpoint; --predictions are scored as they are")


class CheckpointAlphas:
    """Alphas that a checkpoint predicts."""

    def __init__(self, uri: str, refine: Refine) -> None:
        self.uri = uri
        loaded = checkpoint.load(cluster.absolute(uri))
        self.source = f"{uri}, SHA-256 {loaded.identity[:16]}…, refine {refine}"
        # In float32, so that figures do not depend on the hardware.
        self._predictor = Predictor(Network(loaded, number_format="fp32"), refine)

    def __call__(self, key: str, image_HWC: images.Pixels) -> images.Pixels:  # noqa: ARG002 - the picture is enough
        """alpha_HW."""
        return self._predictor.alphas([image_HWC])[0]


class FileAlphas:
    """Alphas that some other system left in files."""

    def __init__(self, uri: str) -> None:
        self._uri = self.source = cluster.absolute(uri)
        storage.list_files(self._uri)  # an empty or missing place is an error at once

    def __call__(self, key: str, image_HWC: images.Pixels) -> images.Pixels:  # noqa: ARG002 - the key is enough
        """alpha_HW, of whatever size the file has. Raises BadImage if there is none, or it is not a matte."""
        names = (f"{key}.png", f"{key.rpartition('.')[0]}.png")
        for name in names:
            try:
                return images.decode_alpha(storage.read_bytes(storage.join(self._uri, name)))
            except storage.NotFoundError:
                continue
        raise images.BadImage(f"no prediction; looked for {' and '.join(names)}")


Alphas = CheckpointAlphas | FileAlphas


def main(argv: Sequence[str]) -> None:
    """Score, and leave the results."""
    options = config.parse(EvaluateConfig, argv)
    alphas: Alphas = (
        CheckpointAlphas(options.checkpoint, options.refine)
        if options.checkpoint
        else FileAlphas(str(options.predictions))
    )
    beside = CheckpointAlphas(options.beside, options.refine) if options.beside else None
    pairs = open_pairs(cluster.absolute_each(options.data), options)
    splits = SPLITS if options.split == "all" else (options.split,)
    total = sum(pairs.counts()[split] for split in splits)
    if not total:
        raise DataError(f"{options.data} has no pairs in split '{options.split}': {pairs.counts()}.")
    output = cluster.absolute(options.output)
    storage.check_writable(output)
    cluster.start(cpus=0, reading=1, gpus=0, what="Scoring tasks")
    with cluster.Console() as console:
        progress = console.progress("scoring", total, "pictures")
        scored = []
        for split in splits:
            for row in score(pairs.splits[split], alphas):
                scored.append({**row, "split": split})
                progress.update(1)
    rejected = {row["key"]: row["rejected"] for row in scored if row["rejected"]}
    unpredicted = {row["key"]: row["unpredicted"] for row in scored if row["unpredicted"]}
    if failure := too_many_rejected(rejected, total, options.max_rejected_fraction):
        raise cluster.JobError(failure)
    if unpredicted:
        reasons = [f"{key}: {reason}" for key, reason in unpredicted.items()]
        raise cluster.JobError(
            f"{len(unpredicted)} of {total} pictures have no usable prediction: {some(reasons)}. A mean without "
            "them would flatter, so there is none. Predict them, or correct --predictions."
        )
    leave_results(options, pairs, output, alphas, beside, [row for row in scored if not row["rejected"]], rejected)


def score(rows: Rows, alphas: Alphas) -> Iterator[dict[str, Any]]:
    """Every row's key and metrics, or why it has none, as they come."""
    dataset = ray.data.range(len(rows), override_num_blocks=max(1, len(rows) // TASK_ROWS))
    dataset.context.enable_progress_bars = False
    what = [ray.put(rows), ray.put(alphas)]
    yield from dataset.map_batches(partial(score_some, what=what), batch_size=TASK_ROWS, num_cpus=1).iter_rows()


def score_some(batch: dict[str, np.ndarray], what: list[ray.ObjectRef]) -> dict[str, list[Any]]:
    """One task: numbers of rows in, their metrics out."""
    rows, alphas = ray.get(what)
    scored = [score_one(alphas, example) for example in rows.take(batch["id"]).examples(None)]
    return {name: [row[name] for row in scored] for name in scored[0]}


def score_one(alphas: Alphas, example: Example) -> dict[str, Any]:
    """One picture: its key and metrics, or why it has none."""
    row: dict[str, Any] = {"key": example.key, "rejected": example.error, "unpredicted": ""}
    metrics = dict.fromkeys((*METRICS, "confidence"), float("nan"))
    if not example.error:
        try:
            pred_alpha = alphas(example.key, example.image)
            height, width = example.alpha.shape
            metrics = image_metrics(images.resize(pred_alpha, width, height), example.alpha)
            metrics["confidence"] = confidence(pred_alpha)
        except images.BadImage as error:
            row["unpredicted"] = str(error)
    return {**row, **metrics}


def leave_results(
    options: EvaluateConfig,
    pairs: Pairs,
    output: str,
    alphas: Alphas,
    beside: CheckpointAlphas | None,
    scored: list[dict[str, Any]],
    rejected: Mapping[str, str],
) -> None:
    """per_image.parquet, metrics.json, report.html; and the figures on the terminal."""
    scored.sort(key=lambda row: row["key"])
    by_source = {prefix: [row for row in scored if row["key"].startswith(prefix)] for prefix in pairs.prefixes}
    means = means_of(scored)
    of_sources = {prefix.rstrip("/"): means_of(rows) for prefix, rows in by_source.items() if rows and prefix}
    errors = [row["mad"] for row in scored]
    best = risk_coverage_area(errors, [-error for error in errors])
    sink = io.BytesIO()
    columns = ("key", "split", *METRICS, "confidence")
    pq.write_table(pa.Table.from_pylist([{name: row[name] for name in columns} for row in scored]), sink)
    storage.write_bytes(storage.join(output, "per_image.parquet"), sink.getvalue())
    facts = {
        "Predictions": alphas.source,
        "Data": f"{options.data}: {pairs.counts()}, SHA-256 {pairs.fingerprint[:16]}…",
        "Confidence": f"area under the risk-coverage curve of MAD {means['aurc']:.2f}e-3 "
        f"(by chance {means['mad']:.2f}e-3, at best {best:.2f}e-3)",
    }
    if beside:
        facts["Beside them"] = beside.source
    groups, gone = page_cases(pairs, by_source, alphas, beside)
    left_out = [*pairs.unpaired, *rejected.items(), *gone.items()]
    page = report.page(
        title=f"Evaluation on the {options.split} split",
        command=cluster.command(),
        facts=facts,
        figures=[
            {"pairs": name, "split": options.split, "pictures": figures["n"], **report.labelled(figures)}
            for name, figures in {"all": means, **of_sources}.items()
        ],
        history=[],
        groups=groups,
        skipped=left_out,
    )
    storage.write_bytes(storage.join(output, "report.html"), page.encode())
    results = {**means, "sources": of_sources} if of_sources else means
    storage.write_bytes(storage.join(output, "metrics.json"), (json.dumps(results, indent=2) + "\n").encode())
    for name, figures in {**of_sources, "all": means}.items():
        line = "  ".join(f"{metric} {value:.6g}" for metric, value in figures.items())
        print(f"{name}: {line}" if of_sources else line)
    if left_out:
        print(f"Left out, and named on the page: {len(left_out):,}.")
    print(f"Page: {output}/report.html")


def means_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each metric; and how well confidence ranks, as the area under the risk-coverage curve of MAD."""
    sums = MetricSums()
    for row in rows:
        sums.add({name: row[name] for name in METRICS})
    area = risk_coverage_area([row["mad"] for row in rows], [row["confidence"] for row in rows])
    return {**sums.mean(), "aurc": area}


def page_cases(
    pairs: Pairs, by_source: Mapping[str, list[dict[str, Any]]], alphas: Alphas, beside: CheckpointAlphas | None
) -> tuple[dict[str, list[report.Case]], dict[str, str]]:
    """The best, median and worst pictures of each collection, predicted once more; each by both, if there are two. And
    which of these cannot be read any more."""
    groups: dict[str, list[report.Case]] = {}
    gone: dict[str, str] = {}
    for prefix, rows in by_source.items():
        split_of = {row["key"]: row["split"] for row in rows}
        each = max(1, CASES // len(by_source))
        for group, keys in report.pick_cases([(row["key"], row["mad"]) for row in rows], each).items():
            shown = groups.setdefault(f"{prefix.rstrip('/')}: {group}" if prefix else group, [])
            for key in keys:
                example = pairs.example(split_of[key], key)
                if example.error:
                    gone[key] = f"scored, and gone since: {example.error}"
                    continue
                shown.append(report.case(key, example.image, example.alpha, alphas(key, example.image)))
                if beside:
                    other = beside(key, example.image)
                    shown.append(
                        report.case(f"{key}, by {beside.source.partition(',')[0]}", example.image, example.alpha, other)
                    )
    return groups, gone


if __name__ == "__main__":
    cluster.run(main)
