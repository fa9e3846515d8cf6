"""The results of a finished training run: a page and a summary, made from the run folder.

run folder, TrainingData -> summary.json (for programs), report.html (for people), suspects.parquet (training pairs to
check), and lines on the terminal
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.common.cases import predict_cases
from jobs.common.cli import command_line
from jobs.training.data import TrainingData
from jobs.training.run_folder import RunFolder, encode_json
from jobs.training.suspects import encode_suspects, score_training_pairs, suspect_cases, suspicious_pairs
from matting.inference.network import Network
from matting.inference.predictor import Predictor
from matting.nn import checkpoint
from matting.results import report
from matting.results.metric_labels import label_metrics
from matting.storage.uri import join_uri

METRIC_NAMES = ("mad", "mse", "iou")


def write_results(data: TrainingData, folder: RunFolder) -> None:
    """Write summary.json and report.html into the run folder, and print where everything is."""
    progress, rejections = folder.progress(), folder.rejected()
    folder.restore_best()
    best = checkpoint.load(join_uri(folder.uri, "best"))
    history = folder.history(progress["steps"])
    epochs = [row for row in history if "val_mad" in row]
    # Epoch 0, the start of a fine-tuning, has no speed of its own.
    best_epoch = {**epochs[-1], **min(epochs, key=lambda row: row["val_mad"])}
    predictor = Predictor(Network(best, number_format="fp32"))
    scores = [("val", score.key, score.mad) for score in folder.scores()]
    cases, unreadable = predict_cases(data.pairs, scores, {"": lambda key, image: predictor.alphas([image])[0]})  # noqa: ARG005 - the image is enough
    suspects = score_training_pairs(data, best)
    suspicious = [*folder.suspicious().items(), *suspicious_pairs(suspects)]
    folder.write("suspects.parquet", encode_suspects(suspects))
    left_out = [*data.pairs.unpaired, *{**rejections, **unreadable}.items()]
    summary = summarize(folder, best, progress, epochs, best_epoch, len(left_out), len({key for key, _ in suspicious}))
    folder.write("summary.json", encode_json(summary))
    page = report.report_page(
        title=f"Training {folder.name}",
        command=command_line(),
        facts=page_facts(data, folder, best, epochs, best_epoch, progress["seconds"]),
        figures=[
            {
                "split": "validation",
                "images": best_epoch["val_n"],
                **label_metrics({name: best_epoch[f"val_{name}"] for name in METRIC_NAMES}),
                "samples/s": best_epoch["samples_per_second"],
            }
        ],
        history=history,
        groups={**cases, "training pairs to check first": suspect_cases(data.pairs, suspects, predictor)},
        skipped=left_out,
        suspicious=suspicious,
    )
    folder.write("report.html", page.encode())
    if left_out:
        print(f"Left out, and named on the page: {len(left_out):,}.")
    if suspicious:
        print(f"Suspicious pairs, used all the same, and named on the page: {len(suspicious):,}.")
    for name, fact in start_facts(best, epochs, best_epoch).items():
        print(f"{name}: {fact}")
    print(
        f"Best on {best_epoch['val_n']} validation pairs: MAD {best_epoch['val_mad']:.2f}e-3, "
        f"IoU {best_epoch['val_iou']:.4f}.\nCheckpoint: {folder.uri}/best\nPage: {folder.uri}/report.html"
    )


def summarize(
    folder: RunFolder,
    best: checkpoint.Checkpoint,
    progress: Mapping[str, Any],
    epochs: Sequence[Mapping[str, Any]],
    best_epoch: Mapping[str, Any],
    left_out: int,
    suspicious: int,
) -> dict[str, Any]:
    """Return the contents of summary.json.

    Args:
        folder: Run folder.
        best: Best checkpoint.
        progress: Contents of progress.json.
        epochs: Rows of metrics.jsonl that describe an epoch.
        best_epoch: Row of the best epoch, whose validation and speed the summary has.
        left_out: Number of pairs and backgrounds that were not used.
        suspicious: Number of pairs that were used and may be wrong.
    """
    first_batches = [row["first_batch_seconds"] for row in epochs if "first_batch_seconds" in row]
    return {
        "command": command_line(),
        "run": folder.name,
        "checkpoint": f"{folder.uri}/best",
        "model": best.identity,
        **{name: progress[name] for name in ("epochs_done", "steps", "seconds")},
        "best_epoch": best_epoch["epoch"],
        "validation": {name: best_epoch[f"val_{name}"] for name in ("n", *METRIC_NAMES)},
        "samples_per_second": best_epoch["samples_per_second"],
        "first_batch_seconds": first_batches[-1] if first_batches else None,  # of the latest start
        "left_out": left_out,
        "suspicious": suspicious,
    }


def page_facts(
    data: TrainingData,
    folder: RunFolder,
    best: checkpoint.Checkpoint,
    epochs: Sequence[Mapping[str, Any]],
    best_epoch: Mapping[str, Any],
    seconds: float,
) -> dict[str, str]:
    """Return the facts at the top of the page, by their names."""
    options, pairs, photos = data.options, data.pairs, data.background_photos
    facts = {
        "Checkpoint": f"{folder.uri}/best, SHA-256 {best.identity[:16]}…",
        "Network": f"U-Net, width {options.width}, depth {options.depth}, {options.size}×{options.size} pixels",
        "Data": f"{options.data}: {pairs.counts()}, SHA-256 {pairs.fingerprint[:16]}…",
    }
    if photos is not None:
        facts["Backgrounds"] = f"{options.backgrounds}: {len(photos):,} photos"
    return {
        **facts,
        **start_facts(best, epochs, best_epoch),
        "Best epoch": f"{best_epoch['epoch']} of {epochs[-1]['epoch']}, chosen by MAD on the validation split",
        "Trained": f"{epochs[-1]['step']:,} steps, {seconds / 60:.1f} minutes",
    }


def start_facts(
    best: checkpoint.Checkpoint, epochs: Sequence[Mapping[str, Any]], best_epoch: Mapping[str, Any]
) -> dict[str, str]:
    """Return the checkpoint that a fine-tuning began with, and its MAD, by their names; empty for other trainings."""
    start = best.config["recipe"].get("init")
    if not start:
        return {}
    unchanged = "" if best_epoch["epoch"] else "; no epoch was better, so that best/ holds the starting weights"
    return {
        "Fine-tuned from": f"{start['uri']}, SHA-256 {start['identity'][:16]}…",
        "MAD before fine-tuning": f"{epochs[0]['val_mad']:.2f}e-3{unchanged}",
    }
