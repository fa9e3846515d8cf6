"""Local disk: atomic writes by several processes, partial files, links, awkward names."""

import os
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from matting.storage import store
from matting.storage.errors import NotFoundError, StorageError
from tests.support.paths import ROOT

NOW = datetime.now(UTC)


def test_failed_write_leaves_nothing(tmp_path):
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(StorageError, match="this is a folder"):
        store.write_bytes(str(tmp_path / "taken.png"), b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["taken.png"]


def test_open_readers_keep_the_old_content(tmp_path):
    target = tmp_path / "a.png"
    store.write_bytes(str(target), b"old content")
    with target.open("rb") as reader:
        store.write_bytes(str(target), b"new")
        assert reader.read() == b"old content"
    assert target.read_bytes() == b"new"


# Writes a file in steps: prints the name of each before it happens, and waits for a line of input.
WRITER = """
import sys
from matting.storage import store

def ask(event, arguments):
    if event in ("fcntl.flock", "os.rename"):
        print(event, flush=True)
        sys.stdin.readline()

sys.addaudithook(ask)
store.write_bytes(sys.argv[1], b"content")
print("done", flush=True)
"""

WITHOUT_LOCKS = """
import errno, sys
from datetime import UTC, datetime
from matting.storage import store

def refuse(event, arguments):
    if event == "fcntl.flock":
        raise OSError(errno.ENOLCK, "No locks available")

sys.addaudithook(refuse)
store.write_bytes(f"{sys.argv[1]}/a.png", b"content")
print(store.remove_partials(sys.argv[1], datetime.now(UTC)))
"""


@pytest.fixture
def writer(tmp_path: Path):
    """A function that starts a process that runs WRITER. The processes end with the test."""
    started = []

    def start(name: str) -> subprocess.Popen:
        command = [sys.executable, "-c", WRITER, f"{tmp_path}/{name}"]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def proceed(process: subprocess.Popen) -> None:
    process.stdin.write("go on\n")
    process.stdin.flush()


def next_step(process: subprocess.Popen) -> str:
    return process.stdout.readline().strip()


def test_partials_of_killed_writers_are_removed(tmp_path, writer):
    store.write_bytes(f"{tmp_path}/out/.whole.partial", b"a name of the user's own")
    killed, alive = writer("out/deep/killed.png"), writer("out/alive.png")
    for process in (killed, alive):
        assert next_step(process) == "fcntl.flock"
        proceed(process)
        assert next_step(process) == "os.rename"
    assert store.remove_partials(str(tmp_path), NOW) == 0
    killed.kill()
    killed.wait()
    assert len(list((tmp_path / "out/deep").iterdir())) == 1
    assert store.list_files(str(tmp_path))[0].key == "out/.whole.partial"

    assert store.remove_partials(f"file://{tmp_path}", NOW) == 1
    assert list((tmp_path / "out/deep").iterdir()) == []
    proceed(alive)
    assert next_step(alive) == "done"
    assert [file.key for file in store.list_files(str(tmp_path))] == ["out/.whole.partial", "out/alive.png"]
    assert store.read_bytes(f"{tmp_path}/out/alive.png") == b"content"
    assert store.remove_partials(str(tmp_path), NOW) == 0


def test_writer_recovers_from_a_removed_partial(tmp_path, writer):
    process = writer("a.png")
    assert next_step(process) == "fcntl.flock"
    assert store.remove_partials(str(tmp_path), NOW) == 1
    proceed(process)
    assert next_step(process) == "fcntl.flock"
    proceed(process)
    assert next_step(process) == "os.rename"
    proceed(process)
    assert next_step(process) == "done"
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"content"


def test_partial_files_are_not_listed(tmp_path, writer):
    (tmp_path / "a.png").touch()
    process = writer("b.png")
    assert next_step(process) == "fcntl.flock"
    assert len(list(tmp_path.iterdir())) == 2
    assert [file.key for file in store.list_files(str(tmp_path))] == ["a.png"]


def test_without_locks_no_partial_is_removed(tmp_path):
    partial = tmp_path / f".{uuid.uuid4().hex}.partial"
    partial.touch()
    command = [sys.executable, "-c", WITHOUT_LOCKS, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout == "0\n"
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", partial.name}
    assert (tmp_path / "a.png").read_bytes() == b"content"


def test_listing_tolerates_files_that_vanish(tmp_path):
    store.write_bytes(f"{tmp_path}/stays.png", b"x")
    ended = threading.Event()

    def write_and_remove():
        while not ended.is_set():
            for number in range(20):
                store.write_bytes(f"{tmp_path}/{number}.png", b"x")
            for number in range(20):
                store.delete(f"{tmp_path}/{number}.png")

    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(write_and_remove)
        try:
            listings = [store.list_files(str(tmp_path)) for _ in range(500)]
        finally:
            ended.set()
        busy.result()
    assert all("stays.png" in {file.key for file in listing} for listing in listings)


def test_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    for call in (store.list_files, store.check_writable):
        with pytest.raises(StorageError, match="a part of the path is a file"):
            call(str(tmp_path / "file"))


def test_links_are_followed_and_broken_ones_listed(tmp_path):
    store.write_bytes(f"{tmp_path}/elsewhere/a.jpg", b"x")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "broken.jpg").symlink_to(tmp_path / "nothing")
    assert [file.key for file in store.list_files(f"{tmp_path}/photos")] == ["broken.jpg", "linked/a.jpg"]
    with pytest.raises(NotFoundError):
        store.read_bytes(f"{tmp_path}/photos/broken.jpg")


def test_circular_links_are_listed_once(tmp_path):
    store.write_bytes(f"{tmp_path}/photos/one/a.jpg", b"x")
    store.write_bytes(f"{tmp_path}/photos/two/b.jpg", b"x")
    (tmp_path / "photos" / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "photos" / "here").symlink_to(".")
    (tmp_path / "photos" / "one" / "other").symlink_to("../two")
    (tmp_path / "photos" / "two" / "other").symlink_to("../one")
    sizes = {file.key: file.size for file in store.list_files(f"{tmp_path}/photos")}
    photos = {"one/a.jpg": 1, "one/other/b.jpg": 1, "two/b.jpg": 1, "two/other/a.jpg": 1}
    assert sizes == {**photos, "self.jpg": 0, "here": 0, "one/other/other": 0, "two/other/other": 0}


def test_names_that_are_not_utf8_are_left_out(tmp_path, caplog):
    folder = os.fsencode(tmp_path) + b"/photos"
    Path(os.fsdecode(folder + b"/d\xffr")).mkdir(parents=True)
    for name in (b"caf\xe9.jpg", b"d\xffr/1.jpg", "café.jpg".encode()):
        Path(os.fsdecode(folder + b"/" + name)).touch()
    for uri in (f"{tmp_path}/photos", f"local://{tmp_path}/photos"):
        left_out: list[str] = []
        assert [file.key for file in store.list_files(uri, left_out.append)] == ["café.jpg"]
        assert sorted(left_out) == ["caf\\xe9.jpg", "d\\xffr/1.jpg"]
        caplog.clear()
        assert len(store.list_files(uri)) == 1
        assert "caf\\xe9.jpg: its name is not UTF-8. Rename" in caplog.text


def test_folder_without_a_readable_name_is_listed_as_empty(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).touch()
    left_out: list[str] = []
    assert store.list_files(str(tmp_path), left_out.append) == []
    assert left_out == ["caf\\xe9.jpg"]
