"""listing: the files of folders and archives are listed alike, and what is left out has a reason."""

import os
from pathlib import Path

import pytest

from matting.data.sources.listing import FILE_SCHEMA, list_collection
from matting.data.sources.tar import COMPRESSED
from matting.results import ledger
from matting.storage import store
from matting.storage.errors import NotFoundError, StorageError
from tests.support.archives import tar_bytes
from tests.support.photos import write_keys


def listed(uri: str, without: str = "") -> list[str]:
    """Return the keys of the files, and check that each URI leads to its content, which is the file's own name."""
    files = list_collection(uri, without).files
    assert files.schema == FILE_SCHEMA
    for row in files.to_pylist():
        content = store.read_bytes(row["uri"])
        assert (row["key"].endswith(content.decode()), row["size"]) == (True, len(content))
    keys: list[str] = files["key"].to_pylist()
    assert keys == sorted(keys)
    return keys


def write_archive(uri: str, *names: str) -> None:
    store.write_bytes(uri, tar_bytes((name, name.encode()) for name in names))


def test_archive_counts_as_a_folder(root):
    write_keys(root, "z.jpg", "shards.jpg")
    write_archive(f"{root}/shards/1.tar", "b.jpg", "x/a.jpg")
    write_archive(f"{root}/shards/0.TAR", "c.jpg", "a.jpg")
    inside = ["0.TAR/a.jpg", "0.TAR/c.jpg", "1.tar/b.jpg", "1.tar/x/a.jpg"]
    assert listed(f"{root}/shards") == inside
    assert listed(root) == ["shards.jpg", *(f"shards/{key}" for key in inside), "z.jpg"]
    for uri in (f"{root}/shards/1.tar", f"{root}/shards/1.tar/"):
        assert listed(uri) == ["b.jpg", "x/a.jpg"]
    assert listed(root, without="shards") == ["shards.jpg", "z.jpg"]


def test_etag_of_a_file_changes_with_its_archive(tmp_path):
    def etags() -> dict[str, str]:
        files = list_collection(f"{tmp_path}/a.tar").files
        return dict(zip(files["key"].to_pylist(), files["etag"].to_pylist(), strict=True))

    write_archive(f"{tmp_path}/a.tar", "a.jpg", "b.jpg")
    before = etags()
    assert etags() == before
    assert before["a.jpg"] != before["b.jpg"]
    write_archive(f"{tmp_path}/a.tar", "a.jpg", "c.jpg", "b.jpg")
    assert not set(etags().values()) & set(before.values())


def test_damage_and_compression_leave_out_only_what_they_touch(tmp_path):
    write_keys(str(tmp_path), "a.jpg", "x/old.tar.gz", "new.TGZ")
    whole = tar_bytes([("a.jpg", b"a.jpg"), ("b.jpg", b"b.jpg")])
    store.write_bytes(f"{tmp_path}/x/cut.tar", whole[:1030])
    store.write_bytes(f"{tmp_path}/gzip.tar", tar_bytes([("c.jpg", b"c.jpg")], "w:gz"))
    found = list_collection(str(tmp_path))
    assert found.files["key"].to_pylist() == ["a.jpg", "x/cut.tar/a.jpg"]
    assert found.left_out == (
        ("new.TGZ", COMPRESSED),
        ("x/old.tar.gz", COMPRESSED),
        ("gzip.tar", COMPRESSED),
        ("x/cut.tar", "is damaged, or joined from several, after 1 files"),
    )
    assert list_collection(f"{tmp_path}/gzip.tar").left_out == ((f"{tmp_path}/gzip.tar", COMPRESSED),)


def test_names_that_cannot_be_keys_are_left_out(bucket, tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).touch()
    write_keys(str(tmp_path), "a.jpg")
    found = list_collection(str(tmp_path))
    assert found.files["key"].to_pylist() == ["a.jpg"]
    assert found.left_out == (("caf\\xe9.jpg", "has a name that is not UTF-8; rename it"),)
    write_keys(bucket, "a.jpg", "x//b.jpg", "./c.jpg", "..d.jpg", "x/...jpg")
    found = list_collection(bucket)
    assert found.files["key"].to_pylist() == ["..d.jpg", "a.jpg", "x/...jpg"]
    assert {key for key, reason in found.left_out if "cannot name an output; rename" in reason} == {
        "'./c.jpg'",
        "'x//b.jpg'",
    }


def write_output(uri: str) -> None:
    """Write what a run leaves: its ledger in two parts, and outputs."""
    for number in range(2):
        ledger.write_part(uri, "run", number, [{"key": "a.jpg", "etag": "1", "status": "done"}])
    write_keys(uri, "alpha/a.jpg.png", "cutout/x/a.jpg.png", "report.html")


def test_outputs_of_other_runs_are_left_out(root):
    write_keys(root, "a.jpg", "x/b.jpg", "old-2/c.jpg", "alpha/d.jpg", "y/_ledger/e.jpg")
    for folder in ("old", "x/out"):
        write_output(f"{root}/{folder}")
    found = list_collection(root)
    assert found.files["key"].to_pylist() == ["a.jpg", "alpha/d.jpg", "old-2/c.jpg", "x/b.jpg", "y/_ledger/e.jpg"]
    assert found.left_out == (
        ("old/", "is the output of another run, with 5 files"),
        ("x/out/", "is the output of another run, with 5 files"),
    )


def test_outputs_in_the_folder_itself_are_left_out(root):
    write_keys(root, "a.jpg", "images/b.jpg", "mattes/b.png")
    write_output(root)
    found = list_collection(root)
    assert found.files["key"].to_pylist() == ["a.jpg", "images/b.jpg", "mattes/b.png", "report.html"]
    assert [key for key, _ in found.left_out] == ["_ledger/", "alpha/", "cutout/"]


@pytest.mark.parametrize("name", ["photo.jpg", "shard.tar.gz", "list.csv.gz", "photos.zip"])
def test_file_in_place_of_a_folder_is_named(root, name):
    write_keys(root, name)
    with pytest.raises(
        NotFoundError, match=rf"{name} is a file; expected a folder, a table .* or a tar archive .*Unpack"
    ):
        list_collection(f"{root}/{name}")


def test_missing_folder_is_a_storage_error(root):
    for name in ("folder", "shard.tar"):
        with pytest.raises(StorageError, match=r"does not exist|holds no files"):
            list_collection(f"{root}/{name}")


def test_archives_are_read_by_ranges(bucket, store_proxy):
    names = [f"{number:04}.jpg" for number in range(2_000)]
    write_archive(f"{bucket}/a.tar", *names)
    list_collection(f"{bucket}/a.tar")  # connects
    before = store_proxy.requests
    files = list_collection(f"{bucket}/a.tar").files
    assert store_proxy.requests - before <= 6  # 2 MB of headers
    before = store_proxy.requests
    assert [store.read_bytes(uri).decode() for uri in files["uri"].to_pylist()[::200]] == names[::200]
    assert store_proxy.requests - before == 10
