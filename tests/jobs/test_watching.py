"""Monitoring of a run: metrics at a cluster's metrics port, the dashboard that shows them, and a real MLflow server."""

import io
import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, get_args

import duckdb
import pytest
import ray
from mlflow import MlflowClient
from prometheus_client.parser import text_string_to_metric_families
from ray.dashboard.modules.metrics.dashboards import default_dashboard_panels

from jobs import predict, train
from jobs.bench.workload import untrained_unet
from jobs.common.config import ConfigError
from jobs.prediction.report import failure_kind
from jobs.training.mlflow import follow_run
from jobs.training.run_folder import RunFolder
from matting.data import images
from matting.data.synthetic import draw_person
from matting.nn import checkpoint
from matting.nn.unet import UNetConfig
from matting.results.pipeline import Stage
from tests.support.faults import Proxy, proxy
from tests.support.jobs import taken_as_own
from tests.support.paths import ROOT

DASHBOARD = ROOT / "infra/grafana/matting.json"

TRAINING = ["--width=4", "--size=32", "--synthetic-pairs=60", "--batch=1", "--epochs=2", "--name=first"]

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Scraped:
    """Last value of each series that was served: {name: {labels: value}}."""

    values: dict[str, dict[Labels, float]]

    def by(self, name: str, label: str, **chosen: str) -> dict[str, float]:
        """Return sums over the series with the chosen labels, by the value of one label."""
        found: Counter[str] = Counter()
        for labels, value in self.values[name].items():
            if chosen.items() <= set(labels):
                found[dict(labels)[label]] += value
        return dict(found)


@contextmanager
def scraping() -> Iterator[Scraped]:
    """Scrape the cluster's metrics port repeatedly while the body runs."""
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    scraped = Scraped(defaultdict(dict))
    ended = threading.Event()

    def scrape() -> None:
        with urllib.request.urlopen(url, timeout=30) as answer:
            for family in text_string_to_metric_families(answer.read().decode()):
                for sample in family.samples:
                    scraped.values[sample.name][frozenset(sample.labels.items())] = sample.value

    def scrape_on() -> None:
        while not ended.wait(0.3):
            with suppress(OSError):  # on a busy machine the port opens, or answers, late
                scrape()

    thread = threading.Thread(target=scrape_on)
    thread.start()
    try:
        yield scraped
    finally:
        ended.set()
        thread.join()


def wait_until(holds: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start an MLflow server on SQLite, and yield its URL. It may not answer yet."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri=sqlite:///mlflow.db"]
    command += ["--artifacts-destination=artifacts", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    with pytest.MonkeyPatch.context() as environment, (folder / "log").open("w") as log:
        environment.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        environment.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=30)


@pytest.fixture(scope="module")
def route(server: str) -> Iterator[Proxy]:
    """Route to the server that can be closed."""
    with proxy(server, fraction=0) as route:
        yield route


@dataclass(frozen=True)
class Watched:
    """Prediction and training that were monitored: their folders, and the metrics that were served."""

    photos: Path
    mattes: Path
    run: Path
    scraped: Scraped
    stderr: str  # of the training, whose MLflow server was away at the end


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, route: Proxy, ray_cluster: None) -> Watched:  # noqa: ARG001
    folder = tmp_path_factory.mktemp("watched")
    model = untrained_unet(UNetConfig(width=4))
    checkpoint.save(str(folder / "trained"), model, checkpoint.describe(model, 32, {}, {}), {"val_mad": 1.0})
    (folder / "photos").mkdir()
    for number in range(12):
        (folder / f"photos/{number}.jpg").write_bytes(images.encode_jpeg(draw_person(5, number, 40, 50)[0]))
    (folder / "photos/empty.jpg").write_bytes(b"")
    whole = (folder / "photos/3.jpg").read_bytes()
    (folder / "photos/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "photos/wide.png").write_bytes(images.encode_png(draw_person(5, 1, 20_000, 8)[0]))
    uris = [f"--checkpoint={folder}/trained", f"--images={folder}/photos", f"--output={folder}/mattes"]
    with scraping() as scraped, pytest.MonkeyPatch.context() as environment:
        predict.main([*uris, "--write=alpha,cutout", "--format=webp", "--max-failed=1"])
        wait_until(lambda: answers(route.upstream), "the MLflow server answers", 120)
        environment.setenv("MLFLOW_TRACKING_URI", route.endpoint)
        route.plan = iter(lambda: "refuse" if (folder / "first/epoch-00002").exists() else None, "never")
        with redirect_stderr(io.StringIO()) as stderr, taken_as_own():
            train.main([*TRAINING, f"--output={folder}"])
        route.plan = repeat(None)
        ((run,),) = duckdb.sql(f"select distinct run from '{folder}/mattes/_ledger/*.parquet'").fetchall()
        photos = partial(scraped.by, "ray_matting_predict_photos_total", "outcome", run=run)
        epoch = partial(scraped.by, "ray_matting_train_epoch", "run", run="first")
        wait_until(lambda: sum(photos().values()) == 15 and epoch() == {"first": 2}, "the last figures are there", 120)
    return Watched(folder / "photos", folder / "mattes", folder / "first", scraped, stderr.getvalue())


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# Metrics --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow(seconds=50)
def test_prediction_metrics_agree_with_the_ledger(watched: Watched) -> None:
    rows = duckdb.sql(f"select run, status, error from '{watched.mattes}/_ledger/*.parquet'").fetchall()
    ((run,),) = {(row[0],) for row in rows}
    outcomes = Counter(status for _, status, _ in rows)
    reasons = Counter(failure_kind(error) for _, _, error in rows if error)
    assert reasons.keys() == {
        "empty file",
        "truncated JPEG",
        "N×N pixels, more than the N a side that WebP holds; choose PNG",
    }
    assert watched.scraped.by("ray_matting_predict_photos_total", "outcome", run=run) == outcomes
    found = watched.scraped.by("ray_matting_predict_photos_total", "reason", run=run, outcome="failed")
    assert found == {reason.replace("×", "x"): count for reason, count in reasons.items()}
    assert watched.scraped.by("ray_matting_predict_bytes_total", "direction", run=run) == {
        "read": sum(path.stat().st_size for path in watched.photos.iterdir()),
        "written": sum(path.stat().st_size for path in watched.mattes.glob("*/*.*") if path.suffix != ".parquet"),
    }
    seconds = watched.scraped.by("ray_matting_predict_seconds_total", "stage", run=run)
    assert seconds.keys() == set(get_args(Stage))


@pytest.mark.slow
def test_training_metrics_agree_with_the_folder(watched: Watched) -> None:
    epochs = [row for row in history(watched.run) if "val_mad" in row]
    epoch = epochs[-1]
    *_, point = (row for row in history(watched.run) if "train_loss" in row)
    served = watched.scraped.by
    assert served("ray_matting_train_samples_total", "run", run="first") == {"first": epoch["step"]}
    assert served("ray_matting_train_epoch", "run", run="first") == {"first": 2}
    assert served("ray_matting_train_loss", "run", run="first") == {"first": pytest.approx(point["train_loss"])}
    expected = {metric: pytest.approx(epoch[f"val_{metric}"]) for metric in ("mad", "mse", "iou")}
    assert served("ray_matting_train_validation", "metric", run="first") == expected
    seconds = served("ray_matting_train_seconds_total", "stage", run="first")
    assert seconds.keys() == {"wait", "step", "validate"}
    assert seconds["wait"] == pytest.approx(sum(epoch["waiting"] for epoch in epochs))


# The dashboard --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_dashboard_shows_every_metric(watched: Watched) -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    metrics_of_ray = Path(default_dashboard_panels.__file__).read_text()  # those of GPUs are served only where one is
    shown = set()
    for panel in panels:
        for target in panel.get("targets", ()):
            for name, matchers in re.findall(r"\b(ray_\w+)(?:\{([^}]*)\})?", target["expr"]):
                shown.add(name)
                if name not in watched.scraped.values:
                    assert name in metrics_of_ray
                    continue
                grouped = re.findall(r"(?:by|ignoring) \((\w+)\)", target["expr"])
                labels = {label for series in watched.scraped.values[name] for label, _ in series}
                named = {*re.findall(r"(\w+)=", matchers), *grouped, *re.findall(r"{{(\w+)}}", target["legendFormat"])}
                assert named <= labels, (panel["title"], name)
    assert {name for name in watched.scraped.values if name.startswith("ray_matting_")} <= shown


def test_dashboard_panels_are_complete() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["description"]
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["datasource", "run"]


# MLflow ---------------------------------------------------------------------------------------------------------------


def assert_sent_once(server: str, run: Path, epochs: int) -> None:
    """Assert that the server has one run of this folder, with each number of metrics.jsonl as one point."""
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("matting")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == found.data.tags["mlflow.runName"] == "first"
    assert found.data.tags["folder"] == str(run)
    assert found.data.params.keys() == json.loads((run / "run.json").read_text())["identity"].keys()
    assert found.data.params["width"] == "4"
    points = {
        (name, point.step): point.value
        for name in found.data.metrics
        for point in client.get_metric_history(found.info.run_id, name)
    }
    rows = history(run)
    assert sum("val_mad" in row for row in rows) == epochs
    expected = [
        ((name, row["step"]), value)
        for row in rows
        for name, value in row.items()
        if name not in ("step", "epoch", "time")
    ]
    assert points == dict(expected)
    sent = sum(len(client.get_metric_history(found.info.run_id, name)) for name in found.data.metrics)
    assert sent == len(expected)
    assert {file.path for file in client.list_artifacts(found.info.run_id)} == {"report.html", "best"}


@pytest.mark.slow
def test_mlflow_receives_missing_points_later(
    watched: Watched, route: Proxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "MLflow did not receive everything" in watched.stderr
    monkeypatch.setenv("MLFLOW_TRACKING_URI", route.endpoint)
    train.main([*TRAINING, f"--output={watched.run.parent}"])  # finds the same run there, and sends the rest
    printed = capsys.readouterr()
    assert "is finished: 2 epochs" in printed.out
    assert not printed.err
    assert_sent_once(route.upstream, watched.run, epochs=2)


def test_an_unreachable_mlflow_is_an_early_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(ConfigError, match="does not answer as it should") as caught, follow_run(folder, {}, {}):
        pytest.fail("began")
    assert time.monotonic() - began < 30
    assert "secret" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"pip install 'mlflow-skinny"), follow_run(folder, {}, {}):
        pytest.fail("began")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with follow_run(folder, {}, {}):
        assert not list(tmp_path.iterdir())
