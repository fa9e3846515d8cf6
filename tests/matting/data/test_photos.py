"""photos: which files of a folder are photos, and how they are read."""

import threading
from contextlib import closing

import pytest

from matting.data.photo_tables import PHOTO_SCHEMA, PhotosError
from matting.data.photos import find_photos, read_photos
from matting.storage import store
from matting.storage.errors import NotFoundError
from tests.support.archives import tar_bytes
from tests.support.photos import keys, read_all, write_keys

ODD_NAMES = [
    "..b.jpg",
    ".hidden.jpg",
    ".jpg",
    "100%20.jpg",
    "a b#c?d.JPEG",
    "a.jpg.png",
    "line\nbreak.jpg",
    "x/1.jpg",
    "x/1.png",
    "y/1.jpg",
    "/".join(["long" * 30] * 4) + "/" + "n" * 20 + ".jpg",
    "ä/é😀.webp",
]


# A folder -------------------------------------------------------------------------------------------------------------


def test_every_file_with_an_image_suffix_is_a_photo(root):
    # The URL routes of the S3 server of these tests know no line break.
    names = [name for name in ODD_NAMES if not (root.startswith("s3") and "\n" in name)]
    write_keys(root, *names, "notes.txt", "jpg", "x.jpg/readme", "photo.doc", ".DS_Store")
    photos = find_photos(root)
    assert photos.table.schema == PHOTO_SCHEMA
    assert keys(photos) == sorted(names)
    assert photos.ignored == (".DS_Store", "jpg", "notes.txt", "photo.doc", "x.jpg/readme")
    assert photos.table["row"].null_count == len(names)
    listed = {file.key: (file.etag, file.size) for file in store.list_files(root)}
    rows = photos.table.to_pylist()
    assert {row["key"]: (row["etag"], row["size"]) for row in rows} == {name: listed[name] for name in names}
    assert read_all(photos) == {name: name.encode() for name in names}


def test_listed_photo_takes_one_request(bucket, store_proxy):
    names = [f"{number}.jpg" for number in range(5)]
    write_keys(bucket, *names)
    photos = find_photos(bucket)
    before = store_proxy.requests
    assert read_all(photos) == {name: name.encode() for name in names}
    assert store_proxy.requests - before == len(names)


def test_macos_metadata_files_are_ignored(folder):
    write_keys(folder, "a.jpg", "._a.jpg", "x/._a.jpg", "x/b.jpg", "x/._b.jpg", "x/._._b.jpg", "._.jpg")
    photos = find_photos(folder)
    assert keys(photos) == ["._.jpg", "a.jpg", "x/._a.jpg", "x/b.jpg"]
    assert photos.ignored == ("._a.jpg", "x/._._b.jpg", "x/._b.jpg")


def test_output_inside_the_collection_is_excluded(root):
    write_keys(root, "a.jpg", "mattes/alpha/a.jpg.png", "mattes/notes.txt", "mattes-2/b.jpg")
    for output in (f"{root}/mattes", f"{root}/mattes/"):
        photos = find_photos(f"{root}/", output)
        assert keys(photos) == ["a.jpg", "mattes-2/b.jpg"]
        assert photos.ignored == ()
    for output in (f"{root}-2", f"{root}/matte", root.rpartition("/")[0]):
        assert "mattes/alpha/a.jpg.png" in keys(find_photos(root, output))


def test_output_inside_is_found_by_any_local_path(tmp_path, monkeypatch):
    write_keys(f"{tmp_path}/photos", "a.jpg", "out/a.png")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    for uri in ("photos", f"file://{tmp_path}/photos", str(tmp_path / "link"), "photos/../photos"):
        for output in ("photos/out", f"{tmp_path}/photos/out", "link/out/", f"file://{tmp_path}/photos/out"):
            assert keys(find_photos(uri, output)) == ["a.jpg"], (uri, output)


def test_archives_hold_photos(root):
    files = {"a.jpg": b"a", "x/b.PNG": b"bb", "a.json": b"{}", "._a.jpg": b"macOS"}
    store.write_bytes(f"{root}/shards/0.tar", tar_bytes(files.items()))
    write_keys(root, "shards/c.jpg")
    photos = find_photos(f"{root}/shards")
    assert photos.ignored == ("0.tar/._a.jpg", "0.tar/a.json")
    assert read_all(photos) == {"0.tar/a.jpg": b"a", "0.tar/x/b.PNG": b"bb", "c.jpg": b"shards/c.jpg"}
    alone = find_photos(f"{root}/shards/0.tar", f"{root}/out")
    assert alone.table.schema == PHOTO_SCHEMA
    assert alone.ignored == ("._a.jpg", "a.json")
    assert read_all(alone) == {"a.jpg": b"a", "x/b.PNG": b"bb"}
    sizes = dict(zip(keys(alone), alone.table["size"].to_pylist(), strict=True))
    assert sizes == {"a.jpg": 1, "x/b.PNG": 2}


def test_archive_that_is_replaced_after_listing_fails_alone(folder):
    write_keys(folder, "c.jpg")
    store.write_bytes(f"{folder}/0.tar", tar_bytes([("a.jpg", b"a" * 20_000), ("b.jpg", b"b" * 20_000)]))
    photos = find_photos(folder)
    store.write_bytes(f"{folder}/0.tar", tar_bytes([("a.jpg", b"a")]))
    answers = read_all(photos)
    assert answers["c.jpg"] == b"c.jpg"
    assert "it ends before. It was replaced since it was listed" in str(answers["0.tar/b.jpg"])
    store.delete(f"{folder}/0.tar")
    assert "0.tar: it does not exist" in str(read_all(photos)["0.tar/a.jpg"])


def test_what_is_left_out_has_reasons(folder):
    store.write_bytes(f"{folder}/packed.tar.gz", b"")
    with pytest.raises(PhotosError, match=r"holds no photos beside packed.tar.gz is a compressed tar archive"):
        find_photos(folder)
    write_keys(folder, "a.jpg", "old/_ledger/part.parquet", "old/alpha/a.jpg.png")
    photos = find_photos(folder)
    assert keys(photos) == ["a.jpg"]
    assert photos.ignored == ()
    assert [key for key, _ in photos.left_out] == ["old/", "packed.tar.gz"]


def test_output_equal_to_the_collection_is_refused(root):
    write_keys(root, "a.jpg")
    for uri, output in ((root, root), (root, f"{root}/"), (f"{root}/", root)):
        with pytest.raises(PhotosError, match=r"mattes would be taken for photos\. Choose another output"):
            find_photos(uri, output)


def test_missing_and_photoless_folders_are_errors(root):
    with pytest.raises(NotFoundError):
        find_photos(root)
    write_keys(root, "a.txt", "out/a.png")
    with pytest.raises(PhotosError, match=r"holds no photos beside a\.txt; expected files with the suffix \.jpg"):
        find_photos(root, f"{root}/out")


# Reading ahead --------------------------------------------------------------------------------------------------------


def wait_for(gated, begun: int) -> None:
    with gated.counting:
        assert gated.counting.wait_for(lambda: gated.begun >= begun, timeout=10)


def test_photos_are_read_a_fixed_number_ahead(gated):
    names = [f"{number:02}.jpg" for number in range(20)]
    write_keys("gated://photos", *names)
    photos = find_photos("gated://photos")
    gated.begun = 0
    opener = threading.Thread(target=lambda: (wait_for(gated, 4), gated.gate.set()))
    opener.start()  # opens the gate when four reads wait; with fewer the test times out
    with closing(read_photos(photos.table, 4)) as reading:
        for taken, (index, photo) in enumerate(reading, 1):
            assert (index, photo) == (taken - 1, names[index].encode())
            wait_for(gated, min(taken + 4, 20))
            assert gated.begun <= taken + 4
    opener.join()
    assert gated.begun == 20
    assert gated.most <= 4


def test_closed_reader_leaves_no_threads(gated):
    write_keys("gated://photos", *[f"{number:02}.jpg" for number in range(20)])
    photos = find_photos("gated://photos")
    gated.begun = 0
    gated.gate.set()
    before = set(threading.enumerate())
    reading = read_photos(photos.table, 3)
    next(reading)
    reading.close()
    assert set(threading.enumerate()) <= before
    assert gated.begun == 4
