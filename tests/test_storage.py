"""storage: the same promises on a local folder, on S3 (a real server) and on a filesystem of fsspec's."""

import hashlib
import io
import json
import os
import socket
import urllib.request
import uuid
from pathlib import Path

import boto3
import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from matting import storage
from matting.storage import NotFoundError, StorageError

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
    s3, name = client(bucket)
    s3.put_object(Bucket=name, Key="photos/", Body=b"")
    s3.put_object(Bucket=name, Key="photos/full/", Body=b"a body, so it is a file")
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
    filesystem, path = storage.filesystem(f"s3://{name}/a/b")
    assert (filesystem.region, path) == ("eu-west-3", f"{name}/a/b")


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
    s3, name = client(bucket)
    deny = {"Effect": "Deny", "Principal": "*", "Action": f"s3:{action}", "Resource": f"arn:aws:s3:::{name}/*"}
    s3.put_bucket_policy(Bucket=name, Policy=json.dumps({"Version": "2012-10-17", "Statement": [deny]}))
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
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        with pytest.raises(StorageError, match="cannot connect; check the network, AWS_ENDPOINT_URL"):
            storage.list_files(f"s3://bucket-{uuid.uuid4().hex}")


class GarblingFileSystem(MemoryFileSystem):
    """Keeps the framing of large uploads in the object, as an old S3-compatible store does."""

    protocol = "garbling"
    store = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    def _open(self, path, mode="rb", **options):
        if mode == "rb" and self.store[path].size > 5_000_000:
            return io.BytesIO(b"framing;" + self.store[path].getvalue())
        return super()._open(path, mode, **options)


def test_a_store_that_garbles_large_objects_is_found_out():
    fsspec.register_implementation("garbling", GarblingFileSystem, clobber=True)
    with pytest.raises(StorageError, match=r"came back .* set AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
        storage.check_writable("garbling://output")
    assert GarblingFileSystem.store == {}
