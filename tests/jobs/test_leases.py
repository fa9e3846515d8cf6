"""Two drivers and one folder: the second is refused, a dead one is replaced, and a stalled one writes nothing more."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from jobs.training.run_folder import PROGRESS, RunFolder
from matting.storage import store
from matting.storage.lease import hold
from tests.support import jobs
from tests.support.predictions import new_checkpoint, read_ledger, write_photos

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cluster")]

# A training on 40 drawn pairs, which ends each epoch with a pause.
# It stops itself, as by Ctrl-Z, before it writes the file that STOP_BEFORE names.
TRAIN = """
import os
import signal
import threading
import time
from functools import partial
from jobs import train
from jobs.common.cli import run_job
from jobs.training.run_folder import RunFolder
from matting.nn.trainer import Trainer

write = RunFolder.write

def write_or_stop(self, path, data):
    if path == os.environ.get("STOP_BEFORE"):
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # this thread must not run on while others stop
    write(self, path, data)

RunFolder.write = write_or_stop

class SlowTrainer(Trainer):
    def validate(self, batches):
        time.sleep(1)
        return super().validate(batches)

run_job(partial(train.main, trainer_class=SlowTrainer))
"""
OPTIONS = ["--width=4", "--size=32", "--synthetic-pairs=40", "--batch=8", "--epochs=3", "--name=run"]


def start_training(output: object, stop_before: str = "") -> "subprocess.Popen[str]":
    """Start a training in a process of its own."""
    command = [sys.executable, "-c", TRAIN, *OPTIONS, f"--output={output}"]
    environment = {**os.environ, "STOP_BEFORE": stop_before}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def train_here(output: object, *options: str) -> tuple[int, str]:
    """Run the same training in this process. Returns its exit code and its output."""
    return jobs.run_here("train", *OPTIONS, f"--output={output}", *options)


def wait_for_an_epoch(process: "subprocess.Popen[str]", run: str) -> None:
    while not store.exists(f"{run}/{PROGRESS}"):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)


def wait_until_stopped(process: "subprocess.Popen[str]") -> None:
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)


def assert_whole(run: str) -> None:
    """Check that the run has all epochs, and that the checkpoints that it names are there."""
    progress = RunFolder(run).progress()
    assert progress["epochs_done"] == 3
    names = {file.key.partition("/")[0] for file in store.list_files(run)}
    assert {progress["last"], progress["best"], "best", "report.html"} <= names


def change_lease(lease_file: Path, **changes: object) -> None:
    lease_file.write_text(json.dumps({**json.loads(lease_file.read_text()), **changes}))


def test_second_training_is_refused_and_goes_on_after_the_first_died(bucket: str) -> None:
    with start_training(bucket) as first:
        try:
            wait_for_an_epoch(first, f"{bucket}/run")
            code, said = train_here(bucket)
            assert code == 2
            assert f"in use: by process {first.pid} on" in said
            assert "--take-over" in said
            assert "Traceback" not in said
        finally:
            first.kill()
    code, said = train_here(bucket)  # a process that died on this machine holds nothing
    assert code == 0, said
    assert_whole(f"{bucket}/run")


def test_training_on_a_machine_that_died_is_replaced(tmp_path: Path) -> None:
    with start_training(tmp_path) as first:
        wait_for_an_epoch(first, f"{tmp_path}/run")
        first.kill()
    (lease_file,) = (tmp_path / "run/_lease").iterdir()
    change_lease(lease_file, machine="far")  # where nobody can see that the process is dead
    code, said = train_here(tmp_path)
    assert code == 2
    assert "in use: by process" in said
    change_lease(lease_file, expires=time.time())
    code, said = train_here(tmp_path)
    assert code == 0, said
    assert_whole(f"{tmp_path}/run")


def test_stalled_training_writes_nothing_once_it_is_replaced(tmp_path: Path) -> None:
    with start_training(tmp_path, stop_before="best/metrics.json") as stalled:
        try:
            wait_until_stopped(stalled)
            code, said = train_here(tmp_path, "--take-over")
            assert code == 0, said
            files = {file.key: file.etag for file in store.list_files(str(tmp_path / "run"))}
            stalled.send_signal(signal.SIGCONT)
            said, _ = stalled.communicate(timeout=200)
        finally:
            stalled.kill()
    assert stalled.returncode == 1
    assert "was taken over by process" in said
    assert "Traceback" not in said
    after = {file.key: file.etag for file in store.list_files(str(tmp_path / "run"))}
    assert {key for key in after if files.get(key) != after[key]} <= {"_lease/00000001.json"}
    assert_whole(f"{tmp_path}/run")


def test_prediction_with_other_settings_is_refused(tmp_path: Path) -> None:
    trained, output = new_checkpoint(tmp_path / "trained", seed=0), str(tmp_path / "out")
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
