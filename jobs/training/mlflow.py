"""A training run as an MLflow run, if MLFLOW_TRACKING_URI is set. Otherwise MLflow is not even imported.

    identity of the run                        -> parameters, once
    metrics.jsonl up to the last checkpoint    -> points, every few seconds
    report.html, description of best/          -> artifacts, at the end
    mlflow.json, in the run folder             <- id of the MLflow run, with which the next command goes on

The driver follows the run folder in a thread, for two reasons: workers need no route to the server, and a server that
is away receives the missing points when it is back, since the folder still has them. A point is sent once, whichever
driver sent it. Points after the last checkpoint are not sent: if the run is killed, these steps come again and may
differ.
"""

import json
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jobs.common.config import ConfigError
from jobs.training.run_folder import RunFolder
from matting.storage import store
from matting.storage.uri import join_uri

POLL_SECONDS = 10.0
POINTS_PER_REQUEST = 1000  # MLflow's limit
ARTIFACTS = ("report.html", "best/config.json", "best/metrics.json")
# MLflow's defaults would wait for minutes, send usage statistics and print the server's address.
CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@contextmanager
def follow_run(folder: RunFolder, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> Iterator[None]:
    """Send what appears in the run folder to MLflow while the body of the ``with`` runs.

    Args:
        folder: Run folder.
        parameters: Options that make two runs different; they never change.
        tags: Facts that may change from one command to the next.

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
    """Thread that sends the contents of a run folder to MLflow; :func:`follow_run` has its arguments and errors."""

    def __init__(self, folder: RunFolder, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        for name, value in CLIENT_SETTINGS.items():
            os.environ.setdefault(name, value)
        try:
            import mlflow  # takes seconds, and most runs do without
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
        except (mlflow.MlflowException, ImportError) as error:  # ImportError: sqlite:/// needs more packages
            raise ConfigError(
                f"MLFLOW_TRACKING_URI is set, and its server does not answer as it should: {without_password(error)} "
                "Start it, correct the URI, or unset it."
            ) from error
        self._sent: set[tuple[str, int]] | None = None  # names and steps of points on the server; None: not known
        self._failures = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self, status: str) -> None:
        """Send the remaining points, the artifacts of a finished run, and its status."""
        self._stop.set()
        self._thread.join()
        try:
            self._send_points()
            if status == "FINISHED":
                for name in ARTIFACTS:
                    text = store.read_bytes(join_uri(self._folder.uri, name)).decode()
                    self._client.log_text(self._id, text, name)
            self._client.set_terminated(self._id, status)
        except Exception as error:  # the training itself is done, and must not fail for this
            warn(f"MLflow did not receive everything: {without_password(error)} The same command sends the rest.")

    def _run(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            try:
                self._send_points()
                self._failures = 0
            except Exception as error:  # training must not end for this
                self._failures += 1
                if self._failures == 2:  # a single failure may be a file that is just being written
                    warn(f"MLflow cannot be reached, training goes on: {without_password(error)}")

    def _known_id(self) -> str | None:
        """Return the id of an earlier command's MLflow run, if this server has it."""
        uri = join_uri(self._folder.uri, "mlflow.json")
        if not store.exists(uri):
            return None
        run_id: str = json.loads(store.read_bytes(uri))["run_id"]
        try:
            self._client.get_run(run_id)
        except self._mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run_id

    def _new_id(self, parameters: Mapping[str, Any]) -> str:
        """Create an MLflow run, note its id in the run folder, and return it."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "matting")
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run_id: str = self._client.create_run(experiment_id, run_name=self._folder.name).info.run_id
        params = [self._mlflow.entities.Param(name, str(value)) for name, value in parameters.items()]
        self._client.log_batch(run_id, params=params)
        content = json.dumps({"run_id": run_id}) + "\n"
        self._folder.write("mlflow.json", content.encode())
        return run_id

    def _send_points(self) -> None:
        """Send the rows of metrics.jsonl up to the last checkpoint that the server does not have."""
        if self._sent is None:
            self._sent = self._points_on_server()
        rows = self._folder.history(self._folder.progress().get("steps", 0))
        points = [
            self._mlflow.entities.Metric(name, value, round(1000 * row["time"]), row["step"])
            for row in rows
            for name, value in row.items()
            if name not in ("step", "epoch", "time") and (name, row["step"]) not in self._sent
        ]
        # Not known until all requests succeed: the server may have received one whose answer was lost.
        sent, self._sent = self._sent, None
        for start in range(0, len(points), POINTS_PER_REQUEST):
            self._client.log_batch(self._id, metrics=points[start : start + POINTS_PER_REQUEST])
        self._sent = sent | {(point.key, point.step) for point in points}

    def _points_on_server(self) -> set[tuple[str, int]]:
        names = self._client.get_run(self._id).data.metrics
        return {(name, point.step) for name in names for point in self._client.get_metric_history(self._id, name)}


def without_password(error: Exception) -> str:
    """Return the error's message on one line, without user and password of URIs, which MLflow's messages show."""
    return re.sub(r"//[^/@\s]*@", "//…@", " ".join(str(error).split()))


def warn(line: str) -> None:
    """Print a line to the standard error."""
    print(line, file=sys.stderr, flush=True)
