"""Labels of metrics on pages: name, unit, and a sentence for readers who do not know the metric."""

from collections.abc import Mapping

from matting.nn.metrics import METRICS

_SENTENCES = {
    "mad": "Mean absolute difference of predicted and true alpha, over all pixels of an image.",
    "mse": "Mean squared difference of predicted and true alpha, over all pixels; large errors weigh more than in MAD.",
    "sad": "Sum of absolute differences of predicted and true alpha, over all pixels; it grows with the image's size.",
    "grad": "Difference of the gradients of both alphas, summed; high where edges are blurred or misplaced.",
    "conn": "Difference of connectivity, summed; high where parts float apart from the person, or are missing in it.",
    "iou": "Intersection over union of the predicted and the true person, the pixels with an alpha of 0.5 or more.",
}


def metric_name(metric: str) -> str:
    """Return the name of a metric, such as "MAD"; an unknown metric's own key."""
    return METRICS[metric].name if metric in METRICS else metric


def metric_title(metric: str) -> str:
    """Return the name of a metric of METRICS with its unit, such as "MAD (×1e-3)"."""
    return f"{METRICS[metric].name} ({METRICS[metric].unit})".removesuffix(" (1)")


def metric_explanations() -> dict[str, str]:
    """Return what each metric measures and which values are better, by the metric's name."""
    return {METRICS[key].name: f"{text} {METRICS[key].better.title()} is better." for key, text in _SENTENCES.items()}


def label_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the values of those keys that are in METRICS, under their names with units, for a table."""
    return {metric_title(metric): metrics[metric] for metric in METRICS if metric in metrics}
