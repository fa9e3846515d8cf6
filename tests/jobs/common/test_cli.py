"""Exit codes of jobs."""

import sys
from collections.abc import Sequence

import pytest

from jobs.common import cluster
from jobs.common.cli import JobError, command_line, run_job
from jobs.common.cluster import ClusterError
from jobs.common.config import ConfigError
from matting.storage.errors import StorageError


def exit_code(error: BaseException | None) -> int:
    def main(argv: Sequence[str]) -> None:
        assert argv == ["--name=a b"]
        if error:
            raise error

    try:
        run_job(main)
    except SystemExit as ending:
        return int(ending.code or 0)
    return 0


@pytest.mark.parametrize(
    ("error", "has_started", "code"),
    [
        (None, True, 0),
        (ConfigError("wrong option"), False, 2),
        (StorageError("no such bucket"), False, 2),
        (StorageError("no such bucket"), True, 1),
        (ClusterError("too small"), True, 2),
        (JobError("too many failures"), True, 1),
        (KeyboardInterrupt(), True, 1),
    ],
)
def test_errors_become_exit_codes(
    error: BaseException | None,
    has_started: bool,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", "--name=a b"])
    monkeypatch.setattr(cluster, "has_started", lambda: has_started)
    assert exit_code(error) == code
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == bool(code)
    assert printed.startswith({0: "", 1: "failed: ", 2: "error: "}[code])


def test_other_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", "--name=a b"])
    with pytest.raises(ZeroDivisionError):
        exit_code(ZeroDivisionError())


def test_command_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", "--name=a b"])
    assert command_line() == "python jobs/train.py '--name=a b'"
