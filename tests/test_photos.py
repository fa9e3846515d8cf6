"""photos: what is a photo and what is none, wherever it lies; and that no failure takes another photo along."""

import hashlib
import io
import threading
import uuid
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from matting import storage
from matting.photos import SCHEMA, PhotosError, find_photos, read_photos
from matting.storage import NotFoundError

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


@pytest.fixture(params=["local", "s3", "fsspec"])
def root(request, tmp_path: Path) -> str:
    """The URI of a location that holds nothing yet."""
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket')}/my photos#1"
    return {"local": f"{tmp_path}/my photos#1"}.get(request.param, f"memory://{uuid.uuid4().hex}/photos")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "data")


def fill(root: str, *keys: str) -> None:
    """Files that hold their own key."""
    for key in keys:
        storage.write_bytes(storage.join(root, key), key.encode())


def put(uri: str, columns: dict | pa.Table, **options) -> str:
    """Writes a table, CSV or Parquet by its name."""
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    sink = pa.BufferOutputStream()
    if uri.lower().endswith(".csv"):
        pyarrow.csv.write_csv(table, sink)
    else:
        pq.write_table(table, sink, **options)
    storage.write_bytes(uri, sink.getvalue().to_pybytes())
    return uri


def keys(photos) -> list[str]:
    return photos.table["key"].to_pylist()


def uris(photos) -> list[str]:
    return photos.table["uri"].to_pylist()


def read(photos, ahead: int = 4) -> dict[str, bytes | str]:
    found = keys(photos)
    return {found[index]: photo for index, photo in read_photos(photos.table, ahead)}


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


# A prefix -------------------------------------------------------------------------------------------------------------


def test_every_file_with_an_images_suffix_is_a_photo_whatever_its_name(root):
    # The URL routes of the S3 server of these tests know no line break.
    names = [name for name in ODD_NAMES if not (root.startswith("s3") and "\n" in name)]
    fill(root, *names, "notes.txt", "jpg", "x.jpg/readme", "photo.heic", ".DS_Store")
    photos = find_photos(root)
    assert photos.table.schema == SCHEMA
    assert keys(photos) == sorted(names)
    assert photos.ignored == (".DS_Store", "jpg", "notes.txt", "photo.heic", "x.jpg/readme")
    assert photos.table["row"].null_count == len(names)
    listed = {file.key: (file.etag, file.size) for file in storage.list_files(root)}
    rows = photos.table.to_pylist()
    assert {row["key"]: (row["etag"], row["size"]) for row in rows} == {name: listed[name] for name in names}
    assert read(photos) == {name: name.encode() for name in names}


def test_macs_shadow_files_are_ignored_only_beside_what_they_shadow(folder):
    fill(folder, "a.jpg", "._a.jpg", "x/._a.jpg", "x/b.jpg", "x/._b.jpg", "x/._._b.jpg", "._.jpg")
    photos = find_photos(folder)
    assert keys(photos) == ["._.jpg", "a.jpg", "x/._a.jpg", "x/b.jpg"]
    assert photos.ignored == ("._a.jpg", "x/._._b.jpg", "x/._b.jpg")


def test_an_output_inside_the_collection_is_no_part_of_it(root):
    fill(root, "a.jpg", "mattes/alpha/a.jpg.png", "mattes/notes.txt", "mattes-2/b.jpg")
    for output in (f"{root}/mattes", f"{root}/mattes/"):
        photos = find_photos(f"{root}/", output)
        assert keys(photos) == ["a.jpg", "mattes-2/b.jpg"]
        assert photos.ignored == ()
    for output in (f"{root}-2", f"{root}/matte", root.rpartition("/")[0]):
        assert "mattes/alpha/a.jpg.png" in keys(find_photos(root, output))


def test_an_output_inside_is_found_however_local_paths_are_spelt(tmp_path, monkeypatch):
    fill(f"{tmp_path}/photos", "a.jpg", "out/a.png")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    for uri in ("photos", f"file://{tmp_path}/photos", str(tmp_path / "link"), "photos/../photos"):
        for output in ("photos/out", f"{tmp_path}/photos/out", "link/out/", f"file://{tmp_path}/photos/out"):
            assert keys(find_photos(uri, output)) == ["a.jpg"], (uri, output)


def test_an_output_over_the_photos_is_refused(root):
    fill(root, "a.jpg")
    for uri, output in ((root, root), (root, f"{root}/"), (f"{root}/", root)):
        with pytest.raises(PhotosError, match=r"mattes would be taken for photos\. Choose another output"):
            find_photos(uri, output)


def test_nothing_there_and_nothing_that_is_a_photo(root):
    with pytest.raises(NotFoundError):
        find_photos(root)
    fill(root, "a.txt", "out/a.png")
    with pytest.raises(PhotosError, match=r"holds no photos beside a\.txt; expected files with the suffix \.jpg"):
        find_photos(root, f"{root}/out")


# A table of URIs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["list.csv", "list.parquet", "sub/List.CSV"])
def test_uris_are_relative_to_the_folder_of_the_table_or_whole(root, name):
    table = f"{root}/{name}"
    here = table.rpartition("/")[0]
    fill(here, "x/1.jpg", "2 #?%.jpg")
    fill(f"{root}-2", "3.jpg")
    put(table, {"image": ["x/1.jpg", "2 #?%.jpg", f"{root}-2/3.jpg"], "label": ["a", "b", "c"]})
    photos = find_photos(table)
    elsewhere = f"{root}-2/3.jpg".rpartition("://")[2].lstrip("/")
    assert dict(zip(keys(photos), uris(photos), strict=True)) == {
        "x/1.jpg": f"{here}/x/1.jpg",
        "2 #?%.jpg": f"{here}/2 #?%.jpg",
        elsewhere: f"{root}-2/3.jpg",
    }
    assert read(photos) == {"x/1.jpg": b"x/1.jpg", "2 #?%.jpg": b"2 #?%.jpg", elsewhere: b"3.jpg"}
    listed = {file.key: (file.etag, file.size) for file in storage.list_files(here)}
    rows = {row["key"]: (row["etag"], row["size"]) for row in photos.table.to_pylist()}
    assert (rows["x/1.jpg"], rows["2 #?%.jpg"]) == (listed["x/1.jpg"], listed["2 #?%.jpg"])


def test_keys_etags_and_sizes_of_the_table_are_taken_as_they_are(folder):
    columns = {
        "key": ["../../etc/x", "007", "b\nc"],
        "photo": ["1.jpg", "2.jpg", "3.jpg"],
        "etag": ["e1", "e2", ""],
        "size": pa.array([1, None, 3]),
    }
    fill(folder, "2.jpg", "3.jpg")
    seen = storage.stat(f"{folder}/3.jpg")
    for name in ("list.csv", "list.parquet"):
        rows = find_photos(put(f"{folder}/{name}", columns)).table.to_pylist()
        assert [(row["key"], row["etag"], row["size"]) for row in rows] == [
            ("../../etc/x", "e1", 1),
            ("007", "e2", 5),
            ("b\nc", seen.etag, 3),
        ]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
@pytest.mark.parametrize("name", ["image", "uri", "url", "path", "anything"])
def test_columns_that_may_hold_the_uris(folder, kind, name):
    fill(folder, "a.jpg")
    table = pa.table({name: pa.array(["a.jpg"]).cast(kind), "width": [178], "key": pa.array(["k"]).cast(kind)})
    photos = find_photos(put(f"{folder}/list.parquet", table))
    assert (keys(photos), read(photos)) == (["k"], {"k": b"a.jpg"})


def test_a_folder_of_parts_as_spark_writes_it(root):
    fill(root, "a.jpg", "b.jpg", "c.jpg", "list.parquet/_SUCCESS", "list.parquet/.part-0.parquet.crc")
    storage.write_bytes(f"{root}/list.parquet/.part-2.parquet", b"not finished")
    put(f"{root}/list.parquet/part-0.snappy.parquet", {"uri": ["a.jpg", "b.jpg"]})
    put(f"{root}/list.parquet/day=2/part-1.parquet", {"uri": ["c.jpg", "b.jpg"]})
    for uri in (f"{root}/list.parquet", f"{root}/list.parquet/"):
        assert read(find_photos(uri)) == {name: name.encode() for name in ("a.jpg", "b.jpg", "c.jpg")}


def test_a_folder_of_photos_may_be_named_like_a_table(root):
    fill(f"{root}/photos.parquet", "a.jpg")
    assert keys(find_photos(f"{root}/photos.parquet")) == ["a.jpg"]


def test_rows_that_cannot_be_read_stay_and_fail_alone(root):
    fill(root, "a.jpg", "folder/b.jpg")
    columns = {
        "key": ["fine", "gone", "empty", "null", "folder", "nowhere"],
        "image": ["a.jpg", "gone.jpg", "", None, "folder", "nowhere://x/y.jpg"],
    }
    photos = find_photos(put(f"{root}/list.parquet", columns))
    rows = {row["key"]: (row["etag"], row["size"]) for row in photos.table.to_pylist()}
    assert rows.pop("fine")[1] == 5
    assert set(rows.values()) == {("", 0)}
    answers = read(photos)
    assert answers["fine"] == b"a.jpg"
    assert answers["gone"].startswith(f"Cannot read {root}/gone.jpg: it does not exist")
    assert answers["empty"] == answers["null"] == "the table has no image in this row"
    assert isinstance(answers["folder"], str)
    assert "Protocol not known" in answers["nowhere"]


def test_the_reason_is_one_line(folder):
    photos = find_photos(put(f"{folder}/list.parquet", {"image": ["line\nbreak.jpg"]}))
    ((_, reason),) = read_photos(photos.table, 1)
    assert reason == f"Cannot read {folder}/line break.jpg: it does not exist; correct the URI."


def test_a_repeated_key_is_one_photo_or_an_error(folder):
    fill(folder, "a.jpg", "b.jpg")
    same = {"key": ["k", "l", "k"], "uri": ["a.jpg", "b.jpg", f"{folder}/a.jpg"]}
    assert read(find_photos(put(f"{folder}/list.csv", same))) == {"k": b"a.jpg", "l": b"b.jpg"}
    other = {"key": ["k", "l", "k"], "uri": ["a.jpg", "b.jpg", "b.jpg"]}
    with pytest.raises(PhotosError, match=r"several photos of one key: k\. Give each photo a key of its own"):
        find_photos(put(f"{folder}/list.csv", other))


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"key": ["a", "", None], "uri": ["1", "2", "3"]}, "neither a key nor a URI to take it from in row 2; 3;"),
        ({"uri": ["1", None], "label": [1, 2]}, "neither a key nor a URI to take it from in row 2;"),
        ({"key": ["a"], "width": [3]}, r"has the columns key \(string\), width \(int64\); expected one of image, uri"),
        ({"left": ["a"], "right": ["b"]}, r"columns left \(string\), right \(string\).* Name the photos' column"),
        ({"uri": ["a"], "size": ["large"]}, "a column size that does not hold int64"),
        ({"uri": pa.array([], pa.string())}, "a table without rows"),
    ],
)
@pytest.mark.parametrize("name", ["list.parquet", "list.csv"])
def test_mistakes_in_a_table(folder, name, columns, complaint):
    with pytest.raises(PhotosError, match=complaint):
        find_photos(put(f"{folder}/{name}", columns))


def test_a_column_that_cannot_hold_photos_is_not_passed_over_for_another(folder):
    with pytest.raises(PhotosError, match=r"columns image \(int64\), path \(string\); expected"):
        find_photos(put(f"{folder}/list.parquet", {"image": [3], "path": ["a"]}))


def test_what_is_no_table(folder):
    storage.write_bytes(f"{folder}/list.parquet", b"<html>")
    with pytest.raises(PhotosError, match="cannot be read as Parquet"):
        find_photos(f"{folder}/list.parquet")
    for content in (b"", b"uri\n\xff.jpg\n", b"photo\n\xff.jpg\n"):
        storage.write_bytes(f"{folder}/list.csv", content)
        with pytest.raises(PhotosError, match=r"cannot be read as a table|that holds URIs"):
            find_photos(f"{folder}/list.csv")


# A table of bytes -----------------------------------------------------------------------------------------------------


def images(count: int) -> list[bytes]:
    return [f"photo {number}".encode() * 100 for number in range(count)]


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.struct({"bytes": pa.binary(), "path": pa.string()})]
)
def test_bytes_are_read_from_the_table_by_their_row(root, kind):
    photos = images(100)
    values = [{"bytes": photo, "path": "p.jpg"} for photo in photos] if pa.types.is_struct(kind) else photos
    table = pa.table(
        {"label": [1] * 100, "image": pa.array(values, kind), "key": [f"{n * 37 % 100:03}" for n in range(100)]}
    )
    uri = put(f"{root}/photos.parquet", table, row_group_size=30)
    found = find_photos(uri)
    expected = {f"{number * 37 % 100:03}": photo for number, photo in enumerate(photos)}
    rows = found.table.to_pylist()
    assert [row["key"] for row in rows] == sorted(expected)
    assert {row["key"]: (row["etag"], row["size"]) for row in rows} == {
        key: (digest(photo), len(photo)) for key, photo in expected.items()
    }
    assert set(uris(found)) == {uri}
    assert read(found) == expected

    some_rows = found.table.take([99, 3, 50, 3])
    answers = list(read_photos(some_rows, 2))
    assert sorted(index for index, _ in answers) == [0, 1, 2, 3]
    assert all(photo == expected[rows[[99, 3, 50, 3][index]]["key"]] for index, photo in answers)


def test_parts_of_bytes_and_objects_may_be_mixed(folder):
    fill(folder, "a.jpg")
    put(f"{folder}/t.parquet/0.parquet", {"key": ["b", "d"], "image": [b"B", b"D"]})
    put(f"{folder}/t.parquet/1.parquet", {"key": ["c", "b"], "image": [b"C", b"B"]})
    put(f"{folder}/t.parquet/2.parquet", {"key": ["a"], "image": ["a.jpg"]})
    assert read(find_photos(f"{folder}/t.parquet")) == {"a": b"a.jpg", "b": b"B", "c": b"C", "d": b"D"}


def test_etags_and_sizes_of_a_table_of_bytes_are_its_own_where_it_has_them(folder):
    columns = {"key": ["a", "b"], "image": [b"A", b"BB"], "etag": ["mine", None], "size": [1, 2]}
    rows = find_photos(put(f"{folder}/t.parquet", columns)).table.to_pylist()
    assert [(row["etag"], row["size"]) for row in rows] == [("mine", 1), (digest(b"BB"), 2)]


def test_rows_without_bytes_stay_and_fail_alone(folder):
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    for values in (
        pa.array([b"A", None, b"", b"D"]),
        pa.array([{"bytes": b"A"}, None, {"bytes": None, "path": "x.jpg"}, {"bytes": b"D"}], struct),
    ):
        found = find_photos(put(f"{folder}/t.parquet", {"key": ["a", "b", "c", "d"], "image": values}))
        assert found.table["etag"].to_pylist() == [digest(b"A"), "", "", digest(b"D")]
        nothing = "the table has no image in this row"
        assert read(found) == {"a": b"A", "b": nothing, "c": nothing, "d": b"D"}


def test_bytes_need_keys_and_a_key_one_photo(folder):
    with pytest.raises(PhotosError, match="has image bytes, and no column `key` to name them by"):
        find_photos(put(f"{folder}/t.parquet", {"image": [b"A"]}))
    with pytest.raises(PhotosError, match="several photos of one key: k"):
        find_photos(put(f"{folder}/t.parquet", {"key": ["k", "k"], "image": [b"A", b"B"]}))


def test_a_damaged_row_group_costs_its_own_photos(folder):
    photos = [f"<{number}>".encode() * 1000 for number in range(40)]
    table = pa.table({"key": [f"{number:02}" for number in range(40)], "image": photos})
    options = {"row_group_size": 10, "compression": "snappy", "use_dictionary": False}
    uri = put(f"{folder}/t.parquet", table, **options)
    found = find_photos(uri)
    data = bytearray(storage.read_bytes(uri))
    column = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(2).column(1)
    data[column.data_page_offset : column.data_page_offset + column.total_compressed_size] = (
        b"\xff" * column.total_compressed_size
    )
    storage.write_bytes(uri, bytes(data))
    answers = read(found)
    broken = {key for key, photo in answers.items() if isinstance(photo, str)}
    assert broken == {f"{number}" for number in range(20, 30)}
    assert all(f"Cannot read row group 2 of {uri}: " in answers[key] for key in broken)
    assert all(answers[f"{n:02}"] == photos[n] for n in range(40) if f"{n:02}" not in broken)


@pytest.mark.parametrize("struct", [False, True])
def test_a_row_group_is_never_in_memory_as_a_whole(folder, struct):
    photos = [bytes([number]) * 200_000 for number in range(200)]
    image = [{"bytes": photo} for photo in photos] if struct else photos
    options = {"write_batch_size": 8, "use_dictionary": False, "compression": "none"}
    uri = put(f"{folder}/t.parquet", {"key": [f"{number:03}" for number in range(200)], "image": image}, **options)
    del image
    assert pq.ParquetFile(uri).num_row_groups == 1  # of 40 MB
    found = find_photos(uri)
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in read_photos(found.table, 1)]
    assert len(held) == 200
    assert max(held) < 20_000_000


def test_a_table_that_changed_or_is_gone_since_it_was_listed(folder):
    uri = put(f"{folder}/t.parquet", {"key": ["a", "b", "c"], "image": [b"A", b"B", b"C"]})
    found = find_photos(uri)
    put(uri, {"key": ["a"], "image": [b"A"]})
    fewer = f"{uri} has fewer rows than it had when it was listed"
    assert read(found) == {"a": b"A", "b": fewer, "c": fewer}
    put(uri, {"key": ["a"], "width": [1]})
    assert all("has the columns key (string), width (int64)" in reason for reason in read(found).values())
    storage.delete(uri)
    assert all("cannot be read as Parquet" in reason for reason in read(found).values())


# Reading ahead --------------------------------------------------------------------------------------------------------


def wait_for(gated, begun: int) -> None:
    with gated.counting:
        assert gated.counting.wait_for(lambda: gated.begun >= begun, timeout=10)


def test_so_many_are_read_at_a_time_and_no_more_than_that_ahead_of_the_consumer(gated):
    names = [f"{number:02}.jpg" for number in range(20)]
    fill("gated://photos", *names)
    photos = find_photos("gated://photos")
    gated.begun = 0
    opener = threading.Thread(target=lambda: (wait_for(gated, 4), gated.gate.set()))
    opener.start()  # the gate opens once four are under way: fewer would wait for ever
    with closing(read_photos(photos.table, 4)) as reading:
        for taken, (index, photo) in enumerate(reading, 1):
            assert (index, photo) == (taken - 1, names[index].encode())
            wait_for(gated, min(taken + 4, 20))
            assert gated.begun <= taken + 4
    opener.join()
    assert gated.begun == 20
    assert gated.most <= 4


def test_a_reader_that_is_closed_early_leaves_no_threads_and_reads_no_further(gated):
    fill("gated://photos", *[f"{number:02}.jpg" for number in range(20)])
    photos = find_photos("gated://photos")
    gated.begun = 0
    gated.gate.set()
    before = set(threading.enumerate())
    reading = read_photos(photos.table, 3)
    next(reading)
    reading.close()
    assert set(threading.enumerate()) <= before
    assert gated.begun == 4
