"""Leases on local disk, on S3 and on a filesystem of fsspec's: one holder at a time, and what ends a lease."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from matting.storage import store
from matting.storage.lease import Fence, Lease, LeaseHeldError, LeaseLostError, hold

HOLD = """
import sys, time
from matting.storage.lease import hold
with hold(sys.argv[1], "python other.py"):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture(params=["local", "s3", "fsspec"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URI of an empty folder."""
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket')}/out"
    return f"memory://{uuid.uuid4().hex}" if request.param == "fsspec" else str(tmp_path / "out")


def objects(folder: str) -> dict[int, dict]:
    """Return the contents of all leases by number."""
    files = store.list_files(f"{folder}/_lease")
    return {int(file.key[:8]): json.loads(store.read_bytes(f"{folder}/_lease/{file.key}")) for file in files}


def write_foreign(folder: str, number: int, seconds: float, group: str | None = None) -> None:
    """Write the lease of a process on another machine, which ends in so many seconds."""
    now = time.time()
    foreign = Lease(
        command="python far.py", group=group, since=now, expires=now + seconds, host="far", pid=1, machine="far/1"
    )
    store.write_bytes(f"{folder}/_lease/{number:08d}.json", foreign.encode())


def test_only_one_holds_and_the_other_says_who(folder: str) -> None:
    with hold(folder, "python first.py") as fence:
        fence.check()
        with pytest.raises(LeaseHeldError, match=rf"in use: by process {os.getpid()} on .+ since .+ until .+first\.py"):
            hold(folder, "python second.py").__enter__()
    assert not store.exists(f"{folder}/_lease/00000001.json")
    with hold(folder, "python second.py"):
        pass


def test_jobs_of_one_group_share_a_folder_and_others_do_not(folder: str) -> None:
    with hold(folder, "a", "settings 1") as first, hold(folder, "b", "settings 1") as second:
        for fence in (first, second):
            fence.check()
        for group in ("settings 2", None):
            with pytest.raises(LeaseHeldError):
                hold(folder, "c", group).__enter__()
    for number in (1, 2):
        write_foreign(folder, number, seconds=-1, group="settings 1")
    with hold(folder, "c", "settings 2"):
        for number in (1, 2):
            with pytest.raises(LeaseLostError):
                Fence(folder, number, "settings 1").check()


def test_lease_is_renewed_until_the_end(folder: str) -> None:
    with hold(folder, "a", seconds=4) as fence:
        expires = objects(folder)[fence.number]["expires"]
        while objects(folder)[fence.number]["expires"] == expires:
            time.sleep(0.05)
        with pytest.raises(LeaseHeldError):
            hold(folder, "b").__enter__()
        fence.check()


def test_expired_lease_goes_to_the_next_and_fences_its_holder(folder: str) -> None:
    write_foreign(folder, 4, seconds=60)
    with pytest.raises(LeaseHeldError, match="process 1 on far"):
        hold(folder, "b").__enter__()
    write_foreign(folder, 4, seconds=0)
    with hold(folder, "python b.py") as fence:
        assert fence.number == 5
        with pytest.raises(LeaseLostError, match=r"taken over by process .+python b\.py.+lease 5 has replaced this"):
            Fence(folder, 4, None).check()
        write_foreign(folder, 4, seconds=60)  # a late renewal changes nothing
        fence.check()
    store.delete(f"{folder}/_lease/00000004.json")
    with pytest.raises(LeaseLostError):  # also after the release, when it comes back
        Fence(folder, 4, None).check()


def test_take_over_ends_a_lease_early(folder: str) -> None:
    with hold(folder, "a", seconds=2) as first, hold(folder, "b", take_over=True) as second:
        second.check()
        with pytest.raises(LeaseLostError):
            first.check()
        time.sleep(1)  # the first does not renew what it has lost
        assert list(objects(folder)) == [second.number]
    with hold(folder, "c") as third:
        assert third.number > second.number


def test_one_of_many_that_begin_together_gets_the_lease(tmp_path: Path, bucket: str) -> None:
    def try_to_hold(folder: str) -> ExitStack | None:
        held = ExitStack()
        try:
            held.enter_context(hold(folder, "a"))
        except LeaseHeldError:
            return None
        return held

    for folder in (str(tmp_path), bucket):
        with ThreadPoolExecutor(8) as threads:
            held = [stack for stack in threads.map(try_to_hold, [folder] * 8) if stack]
        assert len(held) == 1
        held[0].close()


def test_lease_of_a_process_that_died_here_ends_at_once(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(LeaseHeldError, match=f"process {process.pid} on"):
            hold(str(tmp_path), "b").__enter__()
        process.send_signal(signal.SIGKILL)
    with hold(str(tmp_path), "b") as fence:
        assert fence.number == 2


def test_reused_process_number_is_another_process() -> None:
    now = time.time()
    own = Lease(command="a", group=None, since=now, expires=now + 60)
    assert own.is_live()
    assert not replace(own, process_began=own.process_began - 100).is_live()
    assert replace(own, process_began=own.process_began - 100, machine="far").is_live()


def test_damaged_lease_counts_as_ended(folder: str) -> None:
    store.write_bytes(f"{folder}/_lease/00000001.json", b"{")
    with hold(folder, "a") as fence:
        assert fence.number == 2


def test_lost_answer_of_the_store_is_no_other_holder(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    create = store._S3.create

    def create_and_lose_the_answer(path: str, data: bytes) -> None:
        create(path, data)
        monkeypatch.setattr(store._S3, "create", create)
        raise TimeoutError

    monkeypatch.setattr(store._S3, "create", create_and_lose_the_answer)
    with hold(f"{bucket}/out", "a") as fence:
        assert fence.number == 1
