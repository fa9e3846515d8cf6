"""Two drivers and one folder: the second is refused, a dead one is replaced, and a stalled one writes nothing more."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from jobs.training.run_folder import RunFolder
from matting.storage import store
from matting.storage.lease import hold
from tests.support import jobs
from tests.support.predictions import read_ledger, write_photos

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cluster")]

# A training that stops itself, as by Ctrl-Z, when its first epoch is recorded, and best/ is not whole.
TRAIN = """
import signal
import threading
from jobs import train
from jobs.common.cli import run_job
from jobs.training.run_folder import RunFolder

write = RunFolder.write

def write_or_stop(self, path, data):
    if path == "best/metrics.json":
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # this thread must not run on while others stop
    write(self, path, data)

RunFolder.write = write_or_stop

run_job(train.main)
"""
OPTIONS = ["--width=4", "--size=32", "--synthetic-pairs=40", "--batch=8", "--epochs=3", "--name=run"]


@contextmanager
def stopped_training(output: object) -> Iterator["subprocess.Popen[str]"]:
    """Start a training in a process of its own, wait until it has stopped itself, and kill it at the end."""
    command = [sys.executable, "-c", TRAIN, *OPTIONS, f"--output={output}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.1)
            yield process
        finally:
            process.kill()


def train_here(output: object, *options: str) -> tuple[int, str]:
    """Run the same training in this process. Returns its exit code and its output."""
    return jobs.run_here("train", *OPTIONS, f"--output={output}", *options)


def assert_whole(run: str) -> None:
    """Check that the run has all epochs, and that the checkpoints that it names are there."""
    progress = RunFolder(run).progress()
    assert progress["epochs_done"] == 3
    names = {file.key.partition("/")[0] for file in store.list_files(run)}
    assert {progress["last"], progress["best"], "best", "report.html"} <= names


def move_lease(run: str, machine: str) -> str:
    """Let a run's lease look as if its process were on this machine. Returns the one that it was on before."""
    (file,) = store.list_files(f"{run}/_lease")
    lease = json.loads(store.read_bytes(f"{run}/_lease/{file.key}"))
    store.write_bytes(f"{run}/_lease/{file.key}", json.dumps({**lease, "machine": machine}).encode())
    return str(lease["machine"])


def test_second_training_is_refused_until_the_first_is_known_to_be_dead(bucket: str) -> None:
    run = f"{bucket}/run"
    with stopped_training(bucket) as first:
        code, said = train_here(bucket)
    assert code == 2
    assert f"in use: by process {first.pid} on" in said
    assert "--take-over" in said
    assert "Traceback" not in said
    here = move_lease(run, "far")  # where nobody can see that the process is dead
    code, said = train_here(bucket)
    assert code == 2
    assert "in use: by process" in said
    move_lease(run, here)
    code, said = train_here(bucket)
    assert code == 0, said
    assert_whole(run)


def test_stalled_training_writes_nothing_once_it_is_replaced(tmp_path: Path) -> None:
    with stopped_training(tmp_path) as stalled:
        code, said = train_here(tmp_path, "--take-over")
        assert code == 0, said
        files = {file.key: file.etag for file in store.list_files(str(tmp_path / "run"))}
        stalled.send_signal(signal.SIGCONT)
        said, _ = stalled.communicate(timeout=200)
    assert stalled.returncode == 1
    assert "was taken over by process" in said
    assert "Traceback" not in said
    after = {file.key: file.etag for file in store.list_files(str(tmp_path / "run"))}
    assert {key for key in after if files.get(key) != after[key]} <= {"_lease/00000001.json"}
    assert_whole(f"{tmp_path}/run")


def test_prediction_with_other_settings_is_refused(trained: str, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    write_photos(tmp_path / "photos", 5)
    options = [f"--checkpoint={trained}", f"--images={tmp_path / 'photos'}", f"--output={output}"]
    with hold(output, "python jobs/predict.py", "other settings"):
        code, said = jobs.run_here("predict", *options)
        assert code == 2
        assert "in use with other settings: by process" in said
        assert not (tmp_path / "out/_ledger").exists()
        code, said = jobs.run_here("predict", *options, "--take-over")
        assert code == 0, said
    assert len(read_ledger(output)) == 5
