"""A training as an MLflow run, where MLFLOW_TRACKING_URI is set. Where it is not, MLflow is not even imported.

    the run's identity                         -> parameters, once
    metrics.jsonl up to the last checkpoint    -> points, every few seconds
    report.html, what best/ says of itself     -> artifacts, at the end
    mlflow.json, in the run folder             <- which MLflow run it is, for the next command to go on with

Only the driver talks to the server, in a thread of its own, and it tells what is in the run folder: workers need no way
there. What lies behind the last checkpoint may come again and differ; what lies before it is told once, even if it was
another driver that told it. When the server is gone in the middle, training goes on, and what is missing is told later.
Knows no network and no workers.
"""

import json
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jobs.config import ConfigError
from jobs.runs import RunFolder
from matting import storage

POLL_SECONDS = 10.0
POINTS_A_REQUEST = 1000  # MLflow's limit
ARTIFACTS = ("report.html", "best/config.json", "best/metrics.json")
# By its own defaults, MLflow waits for minutes, sends usage statistics away and prints its address.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@contextmanager
def followed(folder: RunFolder, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> Iterator[None]:
    """Inside, what comes into the run folder is told to MLflow.

    Args:
        folder: the run's.
        parameters: what makes two runs different; they never change.
        tags: what may change from one command to the next.

    Raises:
        ConfigError: MLFLOW_TRACKING_URI is set, but the package is missing, or the server does not answer as it should.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        yield
        return
    follower = Follower(folder, parameters, tags)
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        follower.close(status)


class Follower:
    """Tells MLflow what is in a run folder, in a thread. Arguments and errors are those of :func:`followed`."""

    def __init__(self, folder: RunFolder, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        try:
            import mlflow  # costs seconds, and most runs do without
        except ImportError as error:
            raise ConfigError(
                f"MLFLOW_TRACKING_URI is set, and MLflow cannot be imported ({error}). Install it, pip install "
                "'mlflow-skinny>=3.17,<4', or unset the variable."
            ) from error
        self._folder, self._mlflow, self._client = folder, mlflow, mlflow.MlflowClient()
        try:
            self._id = self._known_id() or self._new_id(parameters)
            self._client.update_run(self._id, status="RUNNING")
            self._client.log_batch(self._id, tags=[mlflow.entities.RunTag(*tag) for tag in tags.items()])
        except (mlflow.MlflowException, ImportError) as error:  # as for sqlite:///, which needs more packages
            raise ConfigError(
                f"MLFLOW_TRACKING_URI is set, and its server does not answer as it should: {without_password(error)} "
                "Start it, correct the URI, or unset it."
            ) from error
        self._told: set[tuple[str, int]] | None = None
        self._failures = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self, status: str) -> None:
        """Tell the rest, and how the run ended."""
        self._stop.set()
        self._thread.join()
        try:
            self._tell_points()
            if status == "FINISHED":
                for name in ARTIFACTS:
                    text = storage.read_bytes(storage.join(self._folder.uri, name)).decode()
                    self._client.log_text(self._id, text, name)
            self._client.set_terminated(self._id, status)
        except Exception as error:  # the work is done, whatever becomes of the telling
            say(f"MLflow was not told all: {without_password(error)} The same command tells it what is missing.")

    def _run(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            try:
                self._tell_points()
                self._failures = 0
            except Exception as error:  # training must not end for it
                self._failures += 1
                if self._failures == 2:  # one may be a file that is just being written
                    say(f"MLflow cannot be told, training goes on: {without_password(error)}")

    def _known_id(self) -> str | None:
        """The MLflow run of an earlier command, if this server has it."""
        place = storage.join(self._folder.uri, "mlflow.json")
        if not storage.exists(place):
            return None
        run_id: str = json.loads(storage.read_bytes(place))["run_id"]
        try:
            self._client.get_run(run_id)
        except self._mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run_id

    def _new_id(self, parameters: Mapping[str, Any]) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "matting")
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run_id: str = self._client.create_run(experiment_id, run_name=self._folder.name).info.run_id
        params = [self._mlflow.entities.Param(name, str(value)) for name, value in parameters.items()]
        self._client.log_batch(run_id, params=params)
        content = json.dumps({"run_id": run_id}) + "\n"
        storage.write_bytes(storage.join(self._folder.uri, "mlflow.json"), content.encode())
        return run_id

    def _tell_points(self) -> None:
        """What counts in metrics.jsonl and the server does not have."""
        if self._told is None:
            self._told = self._points_of_server()
        rows = self._folder.history(self._folder.progress().get("steps", 0))
        points = [
            self._mlflow.entities.Metric(name, value, round(1000 * row["time"]), row["step"])
            for row in rows
            for name, value in row.items()
            if name not in ("step", "epoch", "time") and (name, row["step"]) not in self._told
        ]
        told, self._told = self._told, None  # of a request that fails nobody knows whether it was heard
        for start in range(0, len(points), POINTS_A_REQUEST):
            self._client.log_batch(self._id, metrics=points[start : start + POINTS_A_REQUEST])
        self._told = told | {(point.key, point.step) for point in points}

    def _points_of_server(self) -> set[tuple[str, int]]:
        names = self._client.get_run(self._id).data.metrics
        return {(name, point.step) for name in names for point in self._client.get_metric_history(self._id, name)}


def without_password(error: Exception) -> str:
    """Its message on one line; MLflow's name the server with whatever its URI holds."""
    return re.sub(r"//[^/@\s]*@", "//…@", " ".join(str(error).split()))


def say(line: str) -> None:
    """To the user, beside what the job says."""
    print(line, file=sys.stderr, flush=True)
