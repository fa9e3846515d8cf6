"""photo_tables: tables of URIs or bytes list every photo, and a failure affects no other photo."""

import hashlib
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from matting.data.photo_tables import PhotosError
from matting.data.photos import find_photos, read_photos
from matting.data.sources.tables import TableError
from matting.storage import store
from tests.support.photos import keys, read_all, write_keys, write_table
from tests.support.stores import s3_client, split_s3


def uris(photos) -> list[str]:
    return photos.table["uri"].to_pylist()


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


# A table of URIs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["list.csv", "list.parquet", "sub/List.CSV"])
def test_uris_are_relative_to_the_table_or_absolute(root, name):
    table = f"{root}/{name}"
    here = table.rpartition("/")[0]
    write_keys(here, "x/1.jpg", "2 #?%.jpg")
    write_keys(f"{root}-2", "3.jpg")
    write_table(table, {"image": ["x/1.jpg", "2 #?%.jpg", f"{root}-2/3.jpg"], "label": ["a", "b", "c"]})
    photos = find_photos(table)
    elsewhere = f"{root}-2/3.jpg".rpartition("://")[2].lstrip("/")
    assert dict(zip(keys(photos), uris(photos), strict=True)) == {
        "x/1.jpg": f"{here}/x/1.jpg",
        "2 #?%.jpg": f"{here}/2 #?%.jpg",
        elsewhere: f"{root}-2/3.jpg",
    }
    assert read_all(photos) == {"x/1.jpg": b"x/1.jpg", "2 #?%.jpg": b"2 #?%.jpg", elsewhere: b"3.jpg"}
    listed = {file.key: (file.etag, file.size) for file in store.list_files(here)}
    rows = {row["key"]: (row["etag"], row["size"]) for row in photos.table.to_pylist()}
    assert (rows["x/1.jpg"], rows["2 #?%.jpg"]) == (listed["x/1.jpg"], listed["2 #?%.jpg"])


def test_keys_etags_and_sizes_are_taken_from_the_table(folder):
    columns = {
        "key": ["..a/x", "007", "b\nc"],
        "photo": ["1.jpg", "2.jpg", "3.jpg"],
        "etag": ["e1", "e2", ""],
        "size": pa.array([1, None, 3]),
    }
    write_keys(folder, "2.jpg", "3.jpg")
    seen = store.stat(f"{folder}/3.jpg")
    for name in ("list.csv", "list.parquet"):
        rows = find_photos(write_table(f"{folder}/{name}", columns)).table.to_pylist()
        assert [(row["key"], row["etag"], row["size"]) for row in rows] == [
            ("..a/x", "e1", 1),
            ("007", "e2", 5),
            ("b\nc", seen.etag, 3),
        ]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
@pytest.mark.parametrize("name", ["image", "uri", "url", "path", "anything"])
def test_columns_that_may_hold_uris(folder, kind, name):
    write_keys(folder, "a.jpg")
    table = pa.table({name: pa.array(["a.jpg"]).cast(kind), "width": [178], "key": pa.array(["k"]).cast(kind)})
    photos = find_photos(write_table(f"{folder}/list.parquet", table))
    assert (keys(photos), read_all(photos)) == (["k"], {"k": b"a.jpg"})


def test_folder_of_parquet_parts_is_a_table(root):
    write_keys(root, "a.jpg", "b.jpg", "c.jpg", "list.parquet/_SUCCESS", "list.parquet/.part-0.parquet.crc")
    store.write_bytes(f"{root}/list.parquet/.part-2.parquet", b"not finished")
    write_table(f"{root}/list.parquet/part-0.snappy.parquet", {"uri": ["a.jpg", "b.jpg"]})
    write_table(f"{root}/list.parquet/day=2/part-1.parquet", {"uri": ["c.jpg", "b.jpg"]})
    for uri in (f"{root}/list.parquet", f"{root}/list.parquet/"):
        assert read_all(find_photos(uri)) == {name: name.encode() for name in ("a.jpg", "b.jpg", "c.jpg")}


def test_folder_named_like_a_table_may_hold_photos(root):
    write_keys(f"{root}/photos.parquet", "a.jpg")
    assert keys(find_photos(f"{root}/photos.parquet")) == ["a.jpg"]


def presigned(bucket: str, name: str, seconds: int) -> str:
    """Return a URL of an object that is valid for so many seconds."""
    place = dict(zip(("Bucket", "Key"), split_s3(f"{bucket}/{name}"), strict=True))
    url: str = s3_client().generate_presigned_url("get_object", place, ExpiresIn=seconds)
    assert "Signature=" in url
    return url


def test_presigned_url_is_the_same_photo_when_it_is_renewed(bucket, folder):
    write_keys(bucket, "a.jpg", "b.jpg")
    collections = []
    for seconds in (600, 700):
        signed = [presigned(bucket, name, seconds) for name in ("a.jpg", "b.jpg", "gone.jpg")]
        repeated = presigned(bucket, "a.jpg", seconds + 1)
        collections.append(find_photos(write_table(f"{folder}/list.csv", {"url": [*signed, repeated]})))
    place = signed[0].partition("://")[2].partition("a.jpg")[0]
    for photos in collections:
        answers = read_all(photos)
        gone = answers.pop(f"{place}gone.jpg")
        assert answers == {f"{place}a.jpg": b"a.jpg", f"{place}b.jpg": b"b.jpg"}
        assert "gone.jpg" in str(gone)
        assert "Signature" not in str(gone)
        assert "Credential" not in str(gone)
    first, renewed = (photos.table.drop_columns(["uri"]) for photos in collections)
    assert first == renewed
    assert 0 not in first["size"].to_pylist()[:2]


def test_unreadable_rows_are_listed_and_fail_alone(root):
    write_keys(root, "a.jpg", "folder/b.jpg")
    columns = {
        "key": ["fine", "gone", "empty", "null", "folder", "nowhere"],
        "image": ["a.jpg", "gone.jpg", "", None, "folder", "nowhere://x/y.jpg"],
    }
    photos = find_photos(write_table(f"{root}/list.parquet", columns))
    rows = {row["key"]: (row["etag"], row["size"]) for row in photos.table.to_pylist()}
    assert rows.pop("fine")[1] == 5
    assert set(rows.values()) == {("", 0)}
    answers = read_all(photos)
    assert answers["fine"] == b"a.jpg"
    assert answers["gone"].startswith(f"Cannot read {root}/gone.jpg: it does not exist")
    assert answers["empty"] == answers["null"] == "the table has no image in this row"
    assert isinstance(answers["folder"], str)
    assert "Protocol not known" in answers["nowhere"]


def test_reason_is_one_line(folder):
    write_keys(folder, "a.jpg")
    photos = find_photos(write_table(f"{folder}/list.parquet", {"image": ["a.jpg", "line\nbreak.jpg"]}))
    _, (_, failure) = read_photos(photos.table, 1)
    assert not failure.is_transient
    assert failure.reason == f"Cannot read {folder}/line break.jpg: it does not exist; correct the URI."


def test_repeated_key_is_one_photo_or_an_error(folder):
    write_keys(folder, "a.jpg", "b.jpg")
    same = {"key": ["k", "l", "k"], "uri": ["a.jpg", "b.jpg", f"{folder}/a.jpg"]}
    assert read_all(find_photos(write_table(f"{folder}/list.csv", same))) == {"k": b"a.jpg", "l": b"b.jpg"}
    other = {"key": ["k", "l", "k"], "uri": ["a.jpg", "b.jpg", "b.jpg"]}
    with pytest.raises(PhotosError, match=r"several photos of one key: k\. Give each photo a key of its own"):
        find_photos(write_table(f"{folder}/list.csv", other))


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"key": ["a", "", None], "uri": ["1", "2", "3"]}, "neither a key nor a URI to take it from in row 2; 3;"),
        ({"uri": ["1", None], "label": [1, 2]}, "neither a key nor a URI to take it from in row 2;"),
        (
            {"key": ["a"], "width": [3]},
            r"has the columns key \(string\), width \((int64|double)\); expected one of",
        ),
        ({"left": ["a"], "right": ["b"]}, r"columns left \(string\), right \(string\).* Name the photos' column"),
        ({"uri": ["a"], "size": ["large"]}, "a column size that does not hold int64"),
        ({"uri": pa.array([], pa.string())}, "a table without rows"),
        ({"uri": ["a", "b"], "key": ["../../etc/x", "fine"]}, r"keys that cannot name outputs: '../../etc/x'\. A key"),
        ({"uri": ["a", "b"], "key": ["/etc/x", "a//b"]}, r"cannot name outputs: '/etc/x'; 'a//b'\."),
        ({"uri": ["x/../a", "b"]}, r"cannot name outputs: 'x/../a'\. .* add one\."),
        ({"uri": ["a", "b"], "key": ["a\0b", "."]}, r"cannot name outputs: '\.'; 'a\\x00b'\."),
        (
            {"uri": ["a.jpg", "b.jpg"]},
            r"names 2 photos, and none of them exists: .*a.jpg; .*b.jpg\. Relative",
        ),
        ({"uri": ["x\\a.jpg"]}, r"none of them exists.* Write paths with '/'\."),
        ({"uri": [""], "key": ["a"]}, "names 1 photos, and none of them exists"),
    ],
)
@pytest.mark.parametrize("name", ["list.parquet", "list.csv"])
def test_malformed_table_is_refused(folder, name, columns, complaint):
    with pytest.raises((PhotosError, TableError), match=complaint):
        find_photos(write_table(f"{folder}/{name}", columns))


def test_named_column_without_photos_is_refused(folder):
    with pytest.raises(PhotosError, match=r"columns image \(int64\), path \(string\); expected"):
        find_photos(write_table(f"{folder}/list.parquet", {"image": [3], "path": ["a"]}))


# A table of bytes -----------------------------------------------------------------------------------------------------


def byte_strings(count: int) -> list[bytes]:
    return [f"photo {number}".encode() * 100 for number in range(count)]


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.dictionary(pa.int32(), pa.binary()),
        pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        pa.struct({"path": pa.dictionary(pa.int16(), pa.string()), "bytes": pa.large_binary()}),
    ],
    ids=str,
)
def test_bytes_are_read_by_row(root, kind):
    photos = byte_strings(100)
    in_struct = pa.types.is_struct(kind)
    values = pa.array([{"bytes": photo, "path": "p.jpg"} for photo in photos] if in_struct else photos)
    table = pa.table(
        {"label": [1] * 100, "image": values.cast(kind), "key": [f"{n * 37 % 100:03}" for n in range(100)]}
    )
    uri = write_table(f"{root}/photos.parquet", table, row_group_size=30)
    found = find_photos(uri)
    expected = {f"{number * 37 % 100:03}": photo for number, photo in enumerate(photos)}
    rows = found.table.to_pylist()
    assert [row["key"] for row in rows] == sorted(expected)
    assert {row["key"]: (row["etag"], row["size"]) for row in rows} == {
        key: (digest(photo), len(photo)) for key, photo in expected.items()
    }
    assert set(uris(found)) == {uri}
    assert read_all(found) == expected

    some_rows = found.table.take([99, 3, 50, 3])
    answers = list(read_photos(some_rows, 2))
    assert sorted(index for index, _ in answers) == [0, 1, 2, 3]
    assert all(photo == expected[rows[[99, 3, 50, 3][index]]["key"]] for index, photo in answers)


def test_parts_of_bytes_and_uris_may_be_mixed(folder):
    write_keys(folder, "a.jpg")
    write_table(f"{folder}/t.parquet/0.parquet", {"key": ["b", "d"], "image": [b"B", b"D"]})
    write_table(f"{folder}/t.parquet/1.parquet", {"key": ["c", "b"], "image": [b"C", b"B"]})
    write_table(f"{folder}/t.parquet/2.parquet", {"key": ["a"], "image": ["a.jpg"]})
    assert read_all(find_photos(f"{folder}/t.parquet")) == {"a": b"a.jpg", "b": b"B", "c": b"C", "d": b"D"}


def test_etags_of_bytes_may_come_from_the_table(folder):
    columns = {"key": ["a", "b"], "image": [b"A", b"BB"], "etag": ["mine", None], "size": [1, 2]}
    rows = find_photos(write_table(f"{folder}/t.parquet", columns)).table.to_pylist()
    assert [(row["etag"], row["size"]) for row in rows] == [("mine", 1), (digest(b"BB"), 2)]


def test_rows_without_bytes_are_listed_and_fail_alone(folder):
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    for values in (
        pa.array([b"A", None, b"", b"D"]),
        pa.array([{"bytes": b"A"}, None, {"bytes": None, "path": ""}, {"bytes": b"D"}], struct),
    ):
        found = find_photos(write_table(f"{folder}/t.parquet", {"key": ["a", "b", "c", "d"], "image": values}))
        assert found.table["etag"].to_pylist() == [digest(b"A"), "", "", digest(b"D")]
        nothing = "the table has no image in this row"
        assert read_all(found) == {"a": b"A", "b": nothing, "c": nothing, "d": b"D"}


HUGGING_FACE = pa.struct({"bytes": pa.binary(), "path": pa.string()})  # the type of `datasets.Image`


def test_rows_of_hugging_face_are_read(root):
    write_keys(root, "x/b.jpg", "e.jpg")
    values = [
        {"bytes": b"A", "path": "a.jpg"},
        {"bytes": None, "path": "x/b.jpg"},
        {"bytes": b"C", "path": None},
        {"bytes": b"D", "path": "e.jpg"},
        {"bytes": b"", "path": "e.jpg"},
        None,
    ]
    uri = write_table(f"{root}/t.parquet", {"image": pa.array(values, HUGGING_FACE), "label": list(range(6))})
    nothing = "the table has no image in this row"
    found = find_photos(uri)
    assert read_all(found) == {
        "a.jpg": b"A",
        "x/b.jpg": b"x/b.jpg",
        "t/000002": b"C",
        "t/000003/e.jpg": b"D",
        "t/000004/e.jpg": b"e.jpg",
        "t/000005": nothing,
    }
    rows = {row["key"]: (row["etag"], row["size"]) for row in found.table.to_pylist()}
    stored = store.stat(f"{root}/x/b.jpg")
    assert rows["x/b.jpg"] == (stored.etag, stored.size)
    assert rows["t/000003/e.jpg"] == (digest(b"D"), 1)
    assert rows["t/000005"] == ("", 0)


def test_paths_of_hugging_face_are_read_beside_keys_etags_and_sizes(folder):
    write_keys(folder, "b.jpg")
    values = pa.array([{"bytes": b"A", "path": "x"}, {"bytes": None, "path": "b.jpg"}], HUGGING_FACE)
    columns = {"key": ["1", "2"], "image": values, "etag": ["one", "two"], "size": [1, 5]}
    found = find_photos(write_table(f"{folder}/t.parquet", columns))
    assert found.table["etag"].to_pylist() == ["one", "two"]
    assert read_all(found) == {"1": b"A", "2": b"b.jpg"}


def test_parts_without_keys_are_told_apart(folder):
    for part in ("train-00000-of-00002", "train-00001-of-00002"):
        values = pa.array([{"bytes": part.encode(), "path": "1.jpg"}], HUGGING_FACE)
        write_table(f"{folder}/t.parquet/{part}.parquet", {"image": values})
    assert read_all(find_photos(f"{folder}/t.parquet")) == {
        f"t.parquet/train-0000{n}-of-00002/000000/1.jpg": f"train-0000{n}-of-00002".encode() for n in range(2)
    }


def test_bytes_need_unique_keys(folder):
    with pytest.raises(PhotosError, match="several photos of one key: k"):
        find_photos(write_table(f"{folder}/t.parquet", {"key": ["k", "k"], "image": [b"A", b"B"]}))


def test_damaged_row_group_loses_only_its_photos(folder):
    photos = [f"<{number}>".encode() * 1000 for number in range(40)]
    table = pa.table({"key": [f"{number:02}" for number in range(40)], "image": photos})
    options = {"row_group_size": 10, "compression": "snappy", "use_dictionary": False}
    uri = write_table(f"{folder}/t.parquet", table, **options)
    found = find_photos(uri)
    data = bytearray(store.read_bytes(uri))
    column = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(2).column(1)
    data[column.data_page_offset : column.data_page_offset + column.total_compressed_size] = (
        b"\xff" * column.total_compressed_size
    )
    store.write_bytes(uri, bytes(data))
    answers = read_all(found)
    broken = {key for key, photo in answers.items() if isinstance(photo, str)}
    assert broken == {f"{number}" for number in range(20, 30)}
    assert all(f"Cannot read row group 2 of {uri}: " in answers[key] for key in broken)
    assert all(answers[f"{n:02}"] == photos[n] for n in range(40) if f"{n:02}" not in broken)


@pytest.mark.parametrize("struct", [False, True])
def test_row_group_is_read_in_small_batches(folder, struct):
    photos = [bytes([number]) * 200_000 for number in range(200)]
    image = [{"bytes": photo} for photo in photos] if struct else photos
    options = {"write_batch_size": 8, "use_dictionary": False, "compression": "none"}
    uri = write_table(
        f"{folder}/t.parquet", {"key": [f"{number:03}" for number in range(200)], "image": image}, **options
    )
    del image
    assert pq.ParquetFile(uri).num_row_groups == 1  # of 40 MB
    found = find_photos(uri)
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in read_photos(found.table, 1)]
    assert len(held) == 200
    assert max(held) < 20_000_000


def test_table_may_change_after_listing(folder):
    uri = write_table(f"{folder}/t.parquet", {"key": ["a", "b", "c"], "image": [b"A", b"B", b"C"]})
    found = find_photos(uri)
    write_table(uri, {"key": ["a"], "image": [b"A"]})
    fewer = f"{uri} has fewer rows than it had when it was listed"
    assert read_all(found) == {"a": b"A", "b": fewer, "c": fewer}
    write_table(uri, {"key": ["a"], "width": [1]})
    assert all("has the columns key (string), width (int64)" in reason for reason in read_all(found).values())
    store.delete(uri)
    assert all("cannot be read as Parquet" in reason for reason in read_all(found).values())
