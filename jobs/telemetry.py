"""What a run tells while it works, as Prometheus metrics, through Ray's own.

    matting_predict_photos_total    run, outcome (done, failed), reason   photos handled; reasons without their numbers
    matting_predict_bytes_total     run, direction (read, written)        of photos, of mattes and cutouts
    matting_predict_seconds_total   run, stage (`matting.outputs.Stage`)  of all tasks together
    matting_train_samples_total     run                                   pairs trained on, by all workers
    matting_train_seconds_total     run, stage (wait, step, validate)     of the first worker; wait: for data
    matting_train_epoch             run                                   epochs that are done
    matting_train_loss              run                                   mean of the last few steps
    matting_train_validation        run, metric (mad, mse, iou)           of the last epoch, units of matting.metrics

`run` is the ledger's run, or the name of the run folder. Every node of a cluster serves what its processes count, with
"ray_" before each name, at its metrics port; a process reports every ten seconds and when it ends. Where nothing
collects, nothing happens. It is the driver that publishes, since Ray kills a training's workers when they are done, and
what a killed process counted last may be lost: workers send it a :class:`Tally`. Knows no job and nothing of what the
figures mean.
"""

from ray.util.metrics import Counter, Gauge, Metric

PHOTOS = Counter("matting_predict_photos_total", "Photos handled.", ("run", "outcome", "reason"))
BYTES = Counter("matting_predict_bytes_total", "Bytes of photos read, of outputs written.", ("run", "direction"))
PREDICT_SECONDS = Counter("matting_predict_seconds_total", "Seconds of the tasks, by stage.", ("run", "stage"))
SAMPLES = Counter("matting_train_samples_total", "Pairs trained on.", ("run",))
TRAIN_SECONDS = Counter("matting_train_seconds_total", "Seconds of the first worker, by stage.", ("run", "stage"))
EPOCH = Gauge("matting_train_epoch", "Epochs that are done.", ("run",))
LOSS = Gauge("matting_train_loss", "Training loss, mean of the last few steps.", ("run",))
VALIDATION = Gauge("matting_train_validation", "Validation of the last epoch.", ("run", "metric"))
METRICS = {
    metric.info["name"]: metric
    for metric in (PHOTOS, BYTES, PREDICT_SECONDS, SAMPLES, TRAIN_SECONDS, EPOCH, LOSS, VALIDATION)
}


def count(counter: Counter, amount: float, **labels: str) -> None:
    """Add an amount, which may be 0."""
    if amount:
        counter.inc(amount, _ascii(labels))


def show(gauge: Gauge, value: float, **labels: str) -> None:
    """Set a value."""
    gauge.set(value, _ascii(labels))


class Tally:
    """Figures of another process, to be sent to the one that publishes them: amounts are added up, values replaced."""

    def __init__(self) -> None:
        self._figures: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def count(self, counter: Counter, amount: float, **labels: str) -> None:
        """As :func:`count` does."""
        place = _place(counter, labels)
        self._figures[place] = self._figures.get(place, 0.0) + amount

    def show(self, gauge: Gauge, value: float, **labels: str) -> None:
        """As :func:`show` does."""
        self._figures[_place(gauge, labels)] = value

    def publish(self) -> None:
        """Here and now."""
        for (name, labels), value in self._figures.items():
            metric = METRICS[name]
            if isinstance(metric, Counter):
                count(metric, value, **dict(labels))
            else:
                show(metric, value, **dict(labels))


def _place(metric: Metric, labels: dict[str, str]) -> tuple[str, tuple[tuple[str, str], ...]]:
    return metric.info["name"], tuple(labels.items())


def _ascii(labels: dict[str, str]) -> dict[str, str]:
    """Ray takes no other characters, and "30×30 pixels" is a reason."""
    return {name: value.replace("×", "x").encode("ascii", "replace").decode() for name, value in labels.items()}
