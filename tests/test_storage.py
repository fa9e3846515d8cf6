"""storage: the same promises on a local folder, on S3 (a real server) and on a filesystem of fsspec's."""

import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import boto3
import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from tenacity import wait_none

from matting import attempts, s3, storage
from matting.storage import NotFoundError, StorageError

NOW = datetime.now(UTC)
NAMES = [".hidden", "a b/c#d%20e?f.txt", "a+b&c=d;e.jpg", "empty", "z/y/x/deep.PNG", "z/ä€😀.png", "z/é.png"]


@pytest.fixture(params=["local", "file", "s3", "s3-folder", "fsspec"])
def root(request, tmp_path: Path) -> str:
    """The URI of a location that holds nothing yet."""
    if request.param.startswith("s3"):
        bucket = request.getfixturevalue("bucket")
        return bucket if request.param == "s3" else f"{bucket}/my photos/2026#1"
    locations = {"local": f"{tmp_path}/my%20photos?#1", "file": f"file://{tmp_path}/my%20photos?#1"}
    return locations.get(request.param, f"memory://{uuid.uuid4().hex}/photos")


def client(bucket: str):
    return boto3.session.Session().client("s3"), bucket.removeprefix("s3://")


def test_what_is_written_is_listed_and_read_back_under_the_same_names(root):
    contents = {name: b"" if name == "empty" else name.encode() for name in NAMES}
    for name, data in contents.items():
        storage.write_bytes(storage.join(root, name), data)

    listing = storage.list_files(root)
    assert [file.key for file in listing] == sorted(NAMES)
    assert {file.key: file.size for file in listing} == {name: len(data) for name, data in contents.items()}
    assert {file.key: storage.read_bytes(storage.join(root, file.key)) for file in listing} == contents


def test_a_listing_below_a_folder_has_keys_relative_to_it(root):
    for name in ("photos/a.jpg", "photos/b/c.jpg", "photos-2/d.jpg"):
        storage.write_bytes(storage.join(root, name), b"x")
    assert [file.key for file in storage.list_files(f"{root}/photos")] == ["a.jpg", "b/c.jpg"]
    assert [file.key for file in storage.list_files(f"{root}/photos/")] == ["a.jpg", "b/c.jpg"]


def test_etag_stays_with_the_file_and_changes_with_its_content(root):
    uri = storage.join(root, "a.jpg")
    storage.write_bytes(uri, b"one")
    (first,) = storage.list_files(root)
    (again,) = storage.list_files(root)
    storage.write_bytes(uri, b"three")
    (changed,) = storage.list_files(root)
    assert first == again
    assert first.etag != changed.etag


def test_stat_says_what_a_listing_says(root):
    for name in NAMES:
        storage.write_bytes(storage.join(root, name), name.encode())
    for name in NAMES:
        folder = storage.join(root, name).rpartition("/")[0]
        listed = [file for file in storage.list_files(folder) if file.key == name.rpartition("/")[2]]
        assert [storage.stat(storage.join(root, name))] == listed


def test_stat_is_about_objects(root):
    storage.write_bytes(storage.join(root, "a/b.jpg"), b"x")
    for name in ("a", "a/c.jpg", "b.jpg"):
        with pytest.raises(NotFoundError, match="it does not exist"):
            storage.stat(storage.join(root, name))


def test_only_local_places_are_local(root):
    assert storage.is_local(root) == (not root.startswith(("s3://", "memory://")))


def test_exists_is_about_objects(root):
    storage.write_bytes(storage.join(root, "a/b.jpg"), b"x")
    assert storage.exists(storage.join(root, "a/b.jpg"))
    assert not storage.exists(storage.join(root, "a"))
    assert not storage.exists(storage.join(root, "a/b"))


def test_delete_removes_one_object_and_is_content_with_none(root):
    for name in ("a/b.jpg", "a/c.jpg"):
        storage.write_bytes(storage.join(root, name), b"x")
    storage.delete(storage.join(root, "a/b.jpg"))
    storage.delete(storage.join(root, "a/b.jpg"))
    assert [file.key for file in storage.list_files(root)] == ["a/c.jpg"]


def test_delete_folder_removes_all_of_it_and_nothing_beside_it(root):
    for name in ("a/b.jpg", "a/c/d.jpg", "ab.jpg", "ab/e.jpg"):
        storage.write_bytes(storage.join(root, name), b"x")
    storage.delete_folder(storage.join(root, "a"))
    storage.delete_folder(storage.join(root, "a"))
    assert [file.key for file in storage.list_files(root)] == ["ab.jpg", "ab/e.jpg"]
    if storage.is_local(root):
        assert not (Path(root.removeprefix("file://")) / "a").exists()


def test_nothing_there_is_told_apart_from_other_trouble(root):
    with pytest.raises(NotFoundError, match="correct the URI"):
        storage.list_files(root)
    with pytest.raises(NotFoundError, match=r"Cannot read .*/a\.jpg: it does not exist"):
        storage.read_bytes(storage.join(root, "a.jpg"))


def test_a_writable_location_passes_and_is_left_as_it_was(root):
    storage.write_bytes(storage.join(root, "a.jpg"), b"x")
    storage.check_writable(root)
    assert [file.key for file in storage.list_files(root)] == ["a.jpg"]


def test_other_libraries_can_use_the_filesystem(root):
    storage.write_bytes(storage.join(root, "a b.txt"), b"content")
    filesystem, path = storage.filesystem(storage.join(root, "a b.txt"))
    with filesystem.open_input_file(path) as stream:
        assert stream.read() == b"content"


def test_join_refuses_to_leave_the_root():
    assert storage.join("s3://bucket/photos/", "a/..b.jpg") == "s3://bucket/photos/a/..b.jpg"
    with pytest.raises(StorageError, match="rename the file"):
        storage.join("/output", "a/../../etc/passwd")


@pytest.mark.parametrize(
    ("folder", "written", "uri", "key"),
    [
        ("s3://b/lists/", "x/1.jpg", "s3://b/lists/x/1.jpg", "x/1.jpg"),
        ("s3://b/lists/", "s3://b/lists/x/1.jpg", "s3://b/lists/x/1.jpg", "x/1.jpg"),
        ("s3://b/lists/", "s3://b/2.jpg", "s3://b/2.jpg", "b/2.jpg"),
        ("s3://b/lists/", "/disk/3.jpg", "/disk/3.jpg", "disk/3.jpg"),
        ("", "4.jpg", "4.jpg", "4.jpg"),
        (
            "/disk/",
            "https://host/get?u=http://x/5.jpg",
            "https://host/get?u=http://x/5.jpg",
            "host/get?u=http://x/5.jpg",
        ),
    ],
)
def test_what_a_table_means_and_how_it_is_called(folder, written, uri, key):
    assert storage.resolve(folder, written) == uri
    assert storage.default_key(folder, uri) == key


def test_a_failed_local_write_leaves_nothing(tmp_path):
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(StorageError, match="this is a folder"):
        storage.write_bytes(str(tmp_path / "taken.png"), b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["taken.png"]


def test_a_local_file_is_replaced_not_written_over(tmp_path):
    target = tmp_path / "a.png"
    storage.write_bytes(str(target), b"old content")
    with target.open("rb") as reader:
        storage.write_bytes(str(target), b"new")
        assert reader.read() == b"old content"
    assert target.read_bytes() == b"new"


# Writes a file in steps: before each it says which, and waits for an answer.
WRITER = """
import sys
from matting import storage

def ask(event, arguments):
    if event in ("fcntl.flock", "os.rename"):
        print(event, flush=True)
        sys.stdin.readline()

sys.addaudithook(ask)
storage.write_bytes(sys.argv[1], b"content")
print("done", flush=True)
"""

WITHOUT_LOCKS = """
import errno, sys
from datetime import UTC, datetime
from matting import storage

def refuse(event, arguments):
    if event == "fcntl.flock":
        raise OSError(errno.ENOLCK, "No locks available")

sys.addaudithook(refuse)
storage.write_bytes(f"{sys.argv[1]}/a.png", b"content")
print(storage.remove_partials(sys.argv[1], datetime.now(UTC)))
"""


@pytest.fixture
def writer(tmp_path: Path):
    """Starts a process that writes a file, and ends it with the test."""
    started = []

    def start(name: str) -> subprocess.Popen:
        command = [sys.executable, "-c", WRITER, f"{tmp_path}/{name}"]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def answer(process: subprocess.Popen) -> None:
    process.stdin.write("go on\n")
    process.stdin.flush()


def said(process: subprocess.Popen) -> str:
    return process.stdout.readline().strip()


def test_what_a_killed_writer_leaves_is_removed_and_what_a_living_one_writes_is_not(tmp_path, writer):
    storage.write_bytes(f"{tmp_path}/out/.whole.partial", b"a name of the user's own")
    killed, living = writer("out/deep/killed.png"), writer("out/living.png")
    for process in (killed, living):
        assert said(process) == "fcntl.flock"
        answer(process)
        assert said(process) == "os.rename"
    assert storage.remove_partials(str(tmp_path), NOW) == 0
    killed.kill()
    killed.wait()
    assert len(list((tmp_path / "out/deep").iterdir())) == 1
    assert storage.list_files(str(tmp_path))[0].key == "out/.whole.partial"

    assert storage.remove_partials(f"file://{tmp_path}", NOW) == 1
    assert list((tmp_path / "out/deep").iterdir()) == []
    answer(living)
    assert said(living) == "done"
    assert [file.key for file in storage.list_files(str(tmp_path))] == ["out/.whole.partial", "out/living.png"]
    assert storage.read_bytes(f"{tmp_path}/out/living.png") == b"content"
    assert storage.remove_partials(str(tmp_path), NOW) == 0


def test_a_file_swept_between_its_creation_and_its_lock_is_written_anew(tmp_path, writer):
    process = writer("a.png")
    assert said(process) == "fcntl.flock"
    assert storage.remove_partials(str(tmp_path), NOW) == 1
    answer(process)
    assert said(process) == "fcntl.flock"
    answer(process)
    assert said(process) == "os.rename"
    answer(process)
    assert said(process) == "done"
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"content"


def test_a_file_that_is_being_written_is_not_listed(tmp_path, writer):
    (tmp_path / "a.png").touch()
    process = writer("b.png")
    assert said(process) == "fcntl.flock"
    assert len(list(tmp_path.iterdir())) == 2
    assert [file.key for file in storage.list_files(str(tmp_path))] == ["a.png"]


def test_without_locks_files_are_written_and_nothing_is_swept(tmp_path):
    partial = tmp_path / f".{uuid.uuid4().hex}.partial"
    partial.touch()
    command = [sys.executable, "-c", WITHOUT_LOCKS, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "0\n"
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", partial.name}
    assert (tmp_path / "a.png").read_bytes() == b"content"


def test_there_are_no_partials_but_in_local_folders(root):
    assert storage.remove_partials(root, NOW) == 0
    storage.write_bytes(storage.join(root, "a.jpg"), b"x")
    assert storage.remove_partials(root, NOW) == 0


def test_a_listing_bears_files_that_go_while_it_is_made(tmp_path):
    storage.write_bytes(f"{tmp_path}/stays.png", b"x")
    over = threading.Event()

    def write_and_remove():
        while not over.is_set():
            for number in range(20):
                storage.write_bytes(f"{tmp_path}/{number}.png", b"x")
            for number in range(20):
                storage.delete(f"{tmp_path}/{number}.png")

    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(write_and_remove)
        try:
            listings = [storage.list_files(str(tmp_path)) for _ in range(500)]
        finally:
            over.set()
        busy.result()
    assert all("stays.png" in {file.key for file in listing} for listing in listings)


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    for call in (storage.list_files, storage.check_writable):
        with pytest.raises(StorageError, match="a part of the path is a file"):
            call(str(tmp_path / "file"))


def test_links_are_followed_and_a_broken_one_is_listed(tmp_path):
    storage.write_bytes(f"{tmp_path}/elsewhere/a.jpg", b"x")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "broken.jpg").symlink_to(tmp_path / "nothing")
    assert [file.key for file in storage.list_files(f"{tmp_path}/photos")] == ["broken.jpg", "linked/a.jpg"]
    with pytest.raises(NotFoundError):
        storage.read_bytes(f"{tmp_path}/photos/broken.jpg")


def test_links_that_lead_round_and_round_are_listed_as_they_are_and_the_rest_once(tmp_path):
    storage.write_bytes(f"{tmp_path}/photos/one/a.jpg", b"x")
    storage.write_bytes(f"{tmp_path}/photos/two/b.jpg", b"x")
    (tmp_path / "photos" / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "photos" / "here").symlink_to(".")
    (tmp_path / "photos" / "one" / "other").symlink_to("../two")
    (tmp_path / "photos" / "two" / "other").symlink_to("../one")
    sizes = {file.key: file.size for file in storage.list_files(f"{tmp_path}/photos")}
    photos = {"one/a.jpg": 1, "one/other/b.jpg": 1, "two/b.jpg": 1, "two/other/a.jpg": 1}
    assert sizes == {**photos, "self.jpg": 0, "here": 0, "one/other/other": 0, "two/other/other": 0}


def test_a_name_that_is_not_utf8_is_an_error_not_a_lost_file(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).touch()
    with pytest.raises(StorageError, match="not UTF-8; rename"):
        storage.list_files(str(tmp_path))


def test_an_unknown_scheme_and_one_whose_package_is_missing():
    with pytest.raises(StorageError, match="Protocol not known"):
        storage.read_bytes("nowhere://bucket/a.jpg")
    with pytest.raises(StorageError, match="a package that speaks this scheme is not installed"):
        storage.read_bytes("oci://bucket/a.jpg")


def test_s3_listings_of_many_pages_without_folder_markers(bucket):
    store, name = client(bucket)
    store.put_object(Bucket=name, Key="photos/", Body=b"")
    store.put_object(Bucket=name, Key="photos/full/", Body=b"a body, so it is a file")
    keys = [f"{number:03}.jpg" for number in range(45)]
    for key in keys:
        storage.write_bytes(f"{bucket}/photos/{key}", key.encode())
    assert [file.key for file in storage.list_files(f"{bucket}/photos")] == [*keys, "full/"]


def test_s3_sends_a_small_object_in_one_request_and_lists_its_etag(bucket):
    storage.write_bytes(f"{bucket}/a.png", b"content")
    (file,) = storage.list_files(bucket)
    assert file.etag == hashlib.md5(b"content").hexdigest()  # of a multi-part upload it would end in "-1"


@pytest.mark.usefixtures("object_store")
def test_s3_takes_the_region_from_the_bucket():
    name = f"bucket-{uuid.uuid4().hex}"
    place = {"LocationConstraint": "eu-west-3"}
    boto3.session.Session().client("s3", region_name="eu-west-3").create_bucket(
        Bucket=name, CreateBucketConfiguration=place
    )
    assert s3.connect(f"{name}/a/b")[1].region == "eu-west-3"


@pytest.mark.usefixtures("object_store")
@pytest.mark.parametrize(
    "call", [storage.list_files, storage.read_bytes, storage.exists, storage.check_writable, storage.filesystem]
)
def test_s3_bucket_that_does_not_exist(call):
    uri = f"s3://bucket-{uuid.uuid4().hex}/a.jpg"
    with pytest.raises(StorageError, match="the bucket does not exist; create it") as caught:
        call(uri)
    assert uri in str(caught.value)
    assert not isinstance(caught.value, NotFoundError)


@pytest.mark.parametrize(("action", "verb"), [("PutObject", "write"), ("GetObject", "read")])
def test_s3_credentials_that_may_not_do_all_a_job_needs(bucket, action, verb):
    store, name = client(bucket)
    deny = {"Effect": "Deny", "Principal": "*", "Action": f"s3:{action}", "Resource": f"arn:aws:s3:::{name}/*"}
    store.put_bucket_policy(Bucket=name, Policy=json.dumps({"Version": "2012-10-17", "Statement": [deny]}))
    with pytest.raises(StorageError, match=f"Cannot {verb} {bucket}/.*: access denied; allow .* s3:{action}"):
        storage.check_writable(bucket)


def test_s3_credentials_that_are_not_known(bucket, object_store):
    storage.write_bytes(f"{bucket}/a.jpg", b"x")

    def require_known_credentials_after(requests: str) -> None:
        url, kind = f"{object_store}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(url, requests.encode(), kind)).close()

    require_known_credentials_after("0")
    try:
        with pytest.raises(StorageError, match="the store does not know these credentials; check AWS_ACCESS_KEY_ID"):
            storage.list_files(bucket)
        for call in (storage.read_bytes, storage.exists):
            with pytest.raises(StorageError, match="access denied; allow these credentials"):
                call(f"{bucket}/a.jpg")
        with pytest.raises(StorageError, match=r"Cannot write .*the store does not know these credentials"):
            storage.check_writable(bucket)
    finally:
        require_known_credentials_after("inf")


@pytest.mark.usefixtures("object_store")
def test_s3_store_that_nobody_answers_for(monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setattr(attempts, "_WAIT", wait_none())
        with pytest.raises(StorageError, match="cannot connect; check the network, AWS_ENDPOINT_URL"):
            storage.list_files(f"s3://bucket-{uuid.uuid4().hex}")


class GarblingFileSystem(MemoryFileSystem):
    """Keeps the framing of uploads in the object, as an old S3-compatible store does."""

    protocol = "garbling"
    store = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    def _open(self, path, mode="rb", **options):
        if mode == "rb":
            return io.BytesIO(b"framing;" + self.store[path].getvalue())
        return super()._open(path, mode, **options)


def test_a_store_that_garbles_objects_is_found_out():
    fsspec.register_implementation("garbling", GarblingFileSystem, clobber=True)
    with pytest.raises(StorageError, match=r"came back .* set AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
        storage.check_writable("garbling://output")
    assert GarblingFileSystem.store == {}
