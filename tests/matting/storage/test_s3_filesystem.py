"""S3 as a filesystem of pyarrow's, for other libraries."""

import os
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from matting.data import photos
from matting.storage import store
from matting.storage.errors import NotFoundError


def test_parquet_is_written_and_read(folder):
    filesystem, path = store.filesystem(folder)
    for name in ("run/1.parquet", "run/deep/2.parquet"):
        filesystem.create_dir(f"{path}/run/deep")
        pq.write_table(pa.table({"a": range(100)}), f"{path}/{name}", filesystem=filesystem)
    assert pq.read_table(f"{path}/run", filesystem=filesystem).num_rows == 200
    assert filesystem.get_file_info(f"{path}/run/1.parquet").is_file
    with pytest.raises(NotFoundError, match=r"run/3\.parquet: it does not exist"):
        filesystem.open_input_file(f"{path}/run/3.parquet")


def test_pickled_filesystem_holds_no_secrets(folder):
    filesystem, path = store.filesystem(f"{folder}/a.bin")
    data = pickle.dumps(filesystem)
    assert b"testing" not in data
    assert pickle.loads(data) == filesystem
    assert pickle.loads(data).open_input_file(path).read() == bytes(range(100))


@pytest.mark.usefixtures("no_waiting")
def test_lost_row_groups_are_named(folder, store_proxy):
    uri, contents = f"{folder}/photos.parquet", [os.urandom(2000) for _ in range(6)]
    filesystem, path = store.filesystem(uri)
    table = pa.table({"key": [str(number) for number in range(6)], "image": contents})
    pq.write_table(table, path, filesystem=filesystem, row_group_size=3)
    photos_ = photos.find_photos(uri).table
    store_proxy.next_faults.extend(["refuse", None, "throttle", None, "cut answer"])
    assert dict(photos.read_photos(photos_, ahead=1)) == dict(enumerate(contents))
    store_proxy.next_faults.extend([None] * 3 + ["refuse"] * 6)  # the bytes of a row group, after the metadata
    found = dict(photos.read_photos(photos_, ahead=1))
    lost = [number for number, data in found.items() if not isinstance(data, bytes)]
    assert lost in ([0, 1, 2], [3, 4, 5], list(range(6)))
    assert all(found[number] == contents[number] for number in found if number not in lost)
    assert all(
        found[number].is_transient and "tried 6 times: the connection broke" in found[number].reason for number in lost
    )
