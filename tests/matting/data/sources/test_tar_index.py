"""tar_index: archives that did not change are listed without reading them."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from matting.data.sources.listing import Listing, list_collection
from matting.data.sources.tar_index import INDEX_NAME, TarIndex
from matting.storage import store
from tests.support.archives import other_entry, tar_bytes

FILES = [("a.jpg", b"a" * 700), ("x/ä.jpg", b"b"), ("l\xedk.jpg", b"")]


def write_shards(root: str) -> None:
    for number in range(3):
        store.write_bytes(f"{root}/shards/{number}.tar", tar_bytes([*FILES, ("a.jpg", bytes([number]))]))
    store.write_bytes(f"{root}/shards/cut.tar", tar_bytes([("c.jpg", bytes(5000))])[:3000])
    store.write_bytes(f"{root}/shards/empty.tar", tar_bytes([]))
    store.write_bytes(f"{root}/shards/links.tar", tar_bytes([other_entry("l.jpg", b"2", "a.jpg")]))


@pytest.fixture
def read_archives(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """URIs of the archives that are read from now on."""
    read: list[str] = []
    read_bytes = store.read_bytes

    def record(uri: str, *limit: int) -> bytes:
        if uri.startswith("range://"):
            read.append(uri.rpartition("/")[2])
        return read_bytes(uri, *limit)

    monkeypatch.setattr(store, "read_bytes", record)
    return read


def list_again(root: str) -> Listing:
    """List the shards with the index that is stored, and store it."""
    index = TarIndex.read(f"{root}/{INDEX_NAME}")
    listing = list_collection(f"{root}/shards", index=index)
    index.save(f"{root}/{INDEX_NAME}")
    return listing


def test_unchanged_archives_are_not_read_again(root: str, read_archives: list[str]) -> None:
    write_shards(root)
    first = list_again(root)
    assert set(read_archives) == {"0.tar", "1.tar", "2.tar", "cut.tar", "empty.tar", "links.tar"}
    assert first == list_collection(f"{root}/shards")
    assert len(first.files) == 9
    assert len(first.left_out) >= 5
    read_archives.clear()
    assert list_again(root) == first
    assert read_archives == []


def test_changed_archives_are_read_and_removed_ones_forgotten(root: str, read_archives: list[str]) -> None:
    write_shards(root)
    list_again(root)
    store.write_bytes(f"{root}/shards/1.tar", tar_bytes([("new.jpg", b"n" * 9)]))
    store.delete(f"{root}/shards/2.tar")
    read_archives.clear()
    listing = list_again(root)
    assert set(read_archives) == {"1.tar"}
    assert listing == list_collection(f"{root}/shards")
    remembered = pq.read_table(pa.BufferReader(store.read_bytes(f"{root}/{INDEX_NAME}")))["archive"].to_pylist()
    assert {uri.rpartition("/")[2] for uri in remembered} == {"0.tar", "1.tar", "cut.tar", "empty.tar", "links.tar"}
    (place,) = [row["uri"] for row in listing.files.to_pylist() if row["key"] == "1.tar/new.jpg"]
    assert store.read_bytes(place) == b"n" * 9


def test_damaged_index_is_made_again(root: str) -> None:
    write_shards(root)
    expected = list_again(root)
    whole = store.read_bytes(f"{root}/{INDEX_NAME}")
    for damaged in (b"", whole[:-10], whole[:40] + bytes(100) + whole[140:]):
        store.write_bytes(f"{root}/{INDEX_NAME}", damaged)
        assert list_again(root) == expected


def test_collection_without_archives_has_no_index(root: str) -> None:
    store.write_bytes(f"{root}/shards/a.jpg", b"a")
    list_again(root)
    assert not store.exists(f"{root}/{INDEX_NAME}")


def test_one_archive_is_remembered_too(root: str, read_archives: list[str]) -> None:
    write_shards(root)
    index = TarIndex()
    listing = list_collection(f"{root}/shards/0.tar", index=index)
    read_archives.clear()
    assert list_collection(f"{root}/shards/0.tar", index=index) == listing
    assert read_archives == []
