"""The promises of `store`, on local disk, on S3 (a real server) and on a filesystem of fsspec's."""

import io
import uuid
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from matting.storage import store
from matting.storage.errors import DamagedError, NotFoundError, StorageError, TooLargeError
from matting.storage.uri import Span, is_local, join_uri, range_uri

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


def keys(uri: str) -> list[str]:
    return [file.key for file in store.list_files(uri)]


def test_files_keep_their_names_and_content(root):
    contents = {name: b"" if name == "empty" else name.encode() for name in NAMES}
    for name, data in contents.items():
        store.write_bytes(join_uri(root, name), data)

    listing = store.list_files(root)
    assert [file.key for file in listing] == sorted(NAMES)
    assert {file.key: file.size for file in listing} == {name: len(data) for name, data in contents.items()}
    assert {file.key: store.read_bytes(join_uri(root, file.key)) for file in listing} == contents


def test_object_is_created_only_where_there_is_none(root):
    uri = join_uri(root, "a/b.json")
    assert store.create_bytes(uri, b"one")
    assert not store.create_bytes(uri, b"two")
    assert store.read_bytes(uri) == b"one"
    assert keys(root) == ["a/b.json"]
    store.delete(uri)
    assert store.create_bytes(uri, b"three")


def test_keys_are_relative_to_the_listed_folder(root):
    for name in ("photos/a.jpg", "photos/b/c.jpg", "photos-2/d.jpg"):
        store.write_bytes(join_uri(root, name), b"x")
    assert keys(f"{root}/photos") == ["a.jpg", "b/c.jpg"]
    assert keys(f"{root}/photos/") == ["a.jpg", "b/c.jpg"]


def test_part_of_a_file_is_read_alone(root):
    uri = join_uri(root, "a b#1.tar")
    content = bytes(range(200)) * 10
    store.write_bytes(uri, content)
    for offset, size in ((0, 2000), (512, 700), (1999, 1), (77, 0)):
        assert store.read_bytes(range_uri(uri, Span(offset, size)), 2000) == content[offset : offset + size]
    with pytest.raises(TooLargeError, match="2,000 bytes, more than the limit of 1,999"):
        store.read_bytes(range_uri(uri, Span(0, 2000)), 1999)
    for offset in (1990, 2000, 3000):
        with pytest.raises(DamagedError, match=rf"Cannot read 11 bytes from offset {offset:,} of .*: it ends before"):
            store.read_bytes(range_uri(uri, Span(offset, 11)))
    with pytest.raises(NotFoundError):
        store.read_bytes(range_uri(f"{uri}x", Span(0, 1)))


def test_etag_changes_only_with_the_content(root):
    uri = join_uri(root, "a.jpg")
    store.write_bytes(uri, b"one")
    (first,) = store.list_files(root)
    (again,) = store.list_files(root)
    store.write_bytes(uri, b"three")
    (changed,) = store.list_files(root)
    assert first == again
    assert first.etag != changed.etag


def test_stat_agrees_with_the_listing(root):
    for name in NAMES:
        store.write_bytes(join_uri(root, name), name.encode())
    for name in NAMES:
        folder = join_uri(root, name).rpartition("/")[0]
        listed = [file for file in store.list_files(folder) if file.key == name.rpartition("/")[2]]
        assert [store.stat(join_uri(root, name))] == listed


def test_stat_finds_objects_only(root):
    store.write_bytes(join_uri(root, "a/b.jpg"), b"x")
    for name in ("a", "a/c.jpg", "b.jpg"):
        with pytest.raises(NotFoundError, match="it does not exist"):
            store.stat(join_uri(root, name))


def test_exists_finds_objects_only(root):
    store.write_bytes(join_uri(root, "a/b.jpg"), b"x")
    assert store.exists(join_uri(root, "a/b.jpg"))
    assert not store.exists(join_uri(root, "a"))
    assert not store.exists(join_uri(root, "a/b"))


def test_delete_removes_one_object_or_none(root):
    for name in ("a/b.jpg", "a/c.jpg"):
        store.write_bytes(join_uri(root, name), b"x")
    store.delete(join_uri(root, "a/b.jpg"))
    store.delete(join_uri(root, "a/b.jpg"))
    assert keys(root) == ["a/c.jpg"]


def test_delete_folder_spares_its_neighbors(root):
    for name in ("a/b.jpg", "a/c/d.jpg", "ab.jpg", "ab/e.jpg"):
        store.write_bytes(join_uri(root, name), b"x")
    store.delete_folder(join_uri(root, "a"))
    store.delete_folder(join_uri(root, "a"))
    assert keys(root) == ["ab.jpg", "ab/e.jpg"]
    if is_local(root):
        assert not (Path(root.removeprefix("file://")) / "a").exists()


def test_missing_files_raise_not_found(root):
    with pytest.raises(NotFoundError, match="correct the URI"):
        store.list_files(root)
    with pytest.raises(NotFoundError, match=r"Cannot read .*/a\.jpg: it does not exist"):
        store.read_bytes(join_uri(root, "a.jpg"))


def test_larger_objects_than_the_limit_are_refused(root):
    uri = join_uri(root, "a.jpg")
    store.write_bytes(uri, bytes(1_000))
    assert store.read_bytes(uri, 1_000) == bytes(1_000)
    with pytest.raises(StorageError, match="it has 1,000 bytes, more than the limit of 999"):
        store.read_bytes(uri, 999)


def test_writable_check_leaves_nothing_behind(root):
    store.write_bytes(join_uri(root, "a.jpg"), b"x")
    store.check_writable(root)
    assert keys(root) == ["a.jpg"]


def test_other_libraries_read_through_the_filesystem(root):
    store.write_bytes(join_uri(root, "a b.txt"), b"content")
    filesystem, path = store.filesystem(join_uri(root, "a b.txt"))
    with filesystem.open_input_file(path) as stream:
        assert stream.read() == b"content"


def test_whole_files_are_no_partials(root):
    assert store.remove_partials(root, NOW) == 0
    store.write_bytes(join_uri(root, "a.jpg"), b"x")
    assert store.remove_partials(root, NOW) == 0
    assert keys(root) == ["a.jpg"]


def test_unknown_schemes_are_refused():
    with pytest.raises(StorageError, match="Protocol not known"):
        store.read_bytes("nowhere://bucket/a.jpg")
    with pytest.raises(StorageError, match="a package that speaks this scheme is not installed"):
        store.read_bytes("oci://bucket/a.jpg")


@pytest.mark.parametrize(
    "uri", ["sftp://user:hunter2@host/photos", "https://user:hunter2@host/a.csv", "ftp://:hunter2@h"]
)
def test_passwords_in_uris_are_refused_unrepeated(uri):
    for use in (store.exists, store.list_files, store.read_bytes, store.check_writable, store.delete):
        with pytest.raises(StorageError, match="has a password in it") as caught:
            use(uri)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("uri", ["folder/a:b@c.jpg", "memory://photos/12:30@home.jpg"])
def test_names_with_colon_and_at_are_ordinary(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store.write_bytes(uri, b"x")
    assert store.read_bytes(uri) == b"x"


class GarblingFileSystem(MemoryFileSystem):
    """Store that keeps the framing of uploads in the object, as old S3-compatible stores do."""

    protocol = "garbling"
    store = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    def _open(self, path, mode="rb", **options):
        if mode == "rb":
            return io.BytesIO(b"framing;" + self.store[path].getvalue())
        return super()._open(path, mode, **options)


def test_writable_check_detects_garbled_objects():
    fsspec.register_implementation("garbling", GarblingFileSystem, clobber=True)
    with pytest.raises(StorageError, match=r"came back .* set AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
        store.check_writable("garbling://output")
    assert GarblingFileSystem.store == {}
