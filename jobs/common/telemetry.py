"""Prometheus metrics of a run while it works, published through Ray.

    matting_predict_photos_total    run, outcome (a status), reason       photos handled; reasons without their numbers
    matting_predict_bytes_total     run, direction (read, written)        bytes of photos, of mattes and cutouts
    matting_predict_seconds_total   run, stage (`pipeline.Stage`)         seconds, summed over all tasks
    matting_train_samples_total     run                                   pairs trained on, by all workers
    matting_train_seconds_total     run, stage (wait, step, validate)     seconds of the first worker; wait: for data
    matting_train_epoch             run                                   number of finished epochs
    matting_train_loss              run                                   mean training loss of the last few steps
    matting_train_validation        run, metric (mad, mse, iou)           last epoch's metrics, in units of nn.metrics

`run` is the ledger's run, or the name of the run folder. Every node of a cluster serves the metrics of its processes at
its metrics port, with "ray_" before each name; a process reports every ten seconds and when it ends. Without a
collector, nothing happens.

Only the driver publishes: Ray kills training workers when they are done, and a killed process may lose what it counted
last. Workers send the driver a :class:`MetricBuffer`. This module knows no job and no meaning of the metrics.
"""

from ray.util.metrics import Counter, Gauge, Metric

PHOTOS = Counter("matting_predict_photos_total", "Photos handled.", ("run", "outcome", "reason"))
BYTES = Counter("matting_predict_bytes_total", "Bytes of photos read, of outputs written.", ("run", "direction"))
PREDICT_SECONDS = Counter("matting_predict_seconds_total", "Seconds of the tasks, by stage.", ("run", "stage"))
SAMPLES = Counter("matting_train_samples_total", "Pairs trained on.", ("run",))
TRAIN_SECONDS = Counter("matting_train_seconds_total", "Seconds of the first worker, by stage.", ("run", "stage"))
EPOCH = Gauge("matting_train_epoch", "Finished epochs.", ("run",))
LOSS = Gauge("matting_train_loss", "Training loss, mean of the last few steps.", ("run",))
VALIDATION = Gauge("matting_train_validation", "Validation metrics of the last epoch.", ("run", "metric"))
ALL_METRICS = {
    metric.info["name"]: metric
    for metric in (PHOTOS, BYTES, PREDICT_SECONDS, SAMPLES, TRAIN_SECONDS, EPOCH, LOSS, VALIDATION)
}


def add_to_counter(counter: Counter, amount: float, **labels: str) -> None:
    """Add an amount, which may be 0, to the counter's series with these labels."""
    if amount:
        counter.inc(amount, _ascii(labels))


def set_gauge(gauge: Gauge, value: float, **labels: str) -> None:
    """Set the value of the gauge's series with these labels."""
    gauge.set(value, _ascii(labels))


class MetricBuffer:
    """Values of metrics, collected in one process and published by another: amounts are summed, gauges replaced."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def count(self, counter: Counter, amount: float, **labels: str) -> None:
        """Remember an amount for :func:`add_to_counter`."""
        series = _series(counter, labels)
        self._values[series] = self._values.get(series, 0.0) + amount

    def show(self, gauge: Gauge, value: float, **labels: str) -> None:
        """Remember a value for :func:`set_gauge`."""
        self._values[_series(gauge, labels)] = value

    def publish(self) -> None:
        """Hand all values to Ray's metrics, in the process that calls."""
        for (name, labels), value in self._values.items():
            metric = ALL_METRICS[name]
            if isinstance(metric, Counter):
                add_to_counter(metric, value, **dict(labels))
            else:
                set_gauge(metric, value, **dict(labels))


def _series(metric: Metric, labels: dict[str, str]) -> tuple[str, tuple[tuple[str, str], ...]]:
    return metric.info["name"], tuple(labels.items())


def _ascii(labels: dict[str, str]) -> dict[str, str]:
    """Return the labels in ASCII, since Ray takes nothing else, and "30×30 pixels" is a reason."""
    return {name: value.replace("×", "x").encode("ascii", "replace").decode() for name, value in labels.items()}
