"""tables: lists in every dialect name the same photos, and what is no table is refused."""

import codecs
import csv
import io
import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matting.data.photo_tables import PhotosError
from matting.data.photos import find_photos
from matting.data.sources import lists
from matting.data.sources.lists import read_list
from matting.data.sources.tables import TableError, find_table, read_texts
from matting.storage import store
from matting.storage.errors import NotFoundError
from tests.support.photos import keys, read_all, write_keys, write_table

NAMES = ["x/1.jpg", "ä é.jpg", "a,b;c.jpg", "10.png"]


@pytest.fixture
def here(tmp_path) -> str:
    write_keys(str(tmp_path), *NAMES)
    return str(tmp_path)


def as_csv(rows: list[list[str]], delimiter: str = ",", line: str = "\n") -> str:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter, lineterminator=line).writerows(rows)
    return buffer.getvalue()


ENCODINGS = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16": b"",
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32": b"",
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("line", ["\n", "\r\n"])
def test_every_encoding_and_delimiter_names_the_same_photos(here, encoding, delimiter, line):
    text = as_csv([["label", "image"], *([f"l{number}", name] for number, name in enumerate(NAMES))], delimiter, line)
    store.write_bytes(f"{here}/list.csv", ENCODINGS[encoding] + text.encode(encoding))
    photos = find_photos(f"{here}/list.csv")
    assert read_all(photos) == {name: name.encode() for name in NAMES}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_read_without_its_mark(here, encoding):
    store.write_bytes(f"{here}/list.csv", as_csv([["image"], *([name] for name in NAMES)]).encode(encoding))
    assert keys(find_photos(f"{here}/list.csv")) == sorted(NAMES)


@pytest.mark.parametrize("name", ["list.csv", "list.tsv", "list.txt", "LIST.TXT"])
def test_list_without_header_begins_with_a_photo(here, name):
    for text in ("x/1.jpg\n10.png", "x/1.jpg\r\n10.png\r\n", "\n\nx/1.jpg\n\n10.png\n", f"{here}/x/1.jpg\n10.png"):
        store.write_bytes(f"{here}/{name}", text.encode())
        assert keys(find_photos(f"{here}/{name}")) == ["10.png", "x/1.jpg"]


def test_list_of_uris_without_header_begins_with_a_photo(bucket, tmp_path):
    write_keys(bucket, "one", "two")
    store.write_bytes(f"{tmp_path}/list.csv", f"{bucket}/one\n{bucket}/two\n".encode())
    assert set(read_all(find_photos(f"{tmp_path}/list.csv")).values()) == {b"one", b"two"}


def test_several_columns_need_a_header(here):
    for text in ("x/1.jpg,m.png\n10.png,n.png\n", "1;x/1.jpg\n2;10.png\n"):
        store.write_bytes(f"{here}/list.csv", text.encode())
        with pytest.raises(
            TableError, match=r"has no header: its first row is .*x/1.jpg.*; add them as the first line"
        ):
            find_photos(f"{here}/list.csv")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("image , label\n x/1.jpg , 1\n10.png\t, 2\n", ["10.png", "x/1.jpg"]),  # spaces around
        ('"label","image"\n"a\nb","x/1.jpg"\n', ["x/1.jpg"]),  # a line break in a value
        ('"la\nbel","image"\n1,x/1.jpg\n', ["x/1.jpg"]),  # and in the header
        ('image\n"a,b;c.jpg"\n', ["a,b;c.jpg"]),
        ("sep=;\r\nlabel;image\r\n1;x/1.jpg\r\n", ["x/1.jpg"]),  # Excel's first line
        ("photo;label\nx/1.jpg;1\n10.png;2\n", ["10.png", "x/1.jpg"]),  # the only column that can hold URIs
        ("path\n./x/1.jpg\nx/./1.jpg\n", None),
        ("\ufeffimage,label\nx/1.jpg,1\n", ["x/1.jpg"]),
        ("key,image\n007,x/1.jpg\n08,10.png\n", ["007", "08"]),
        ("image;;\r\nx/1.jpg;;\r\n10.png;;\r\n", ["10.png", "x/1.jpg"]),  # columns without a name
        ("file_name,text\nx/1.jpg,one\n", ["x/1.jpg"]),
        ("image\tlabel\n10.png\t1\n" + "x/1.jpg\t2\n" * 200_000 + "x/1.jpg\tthree\n", ["10.png", "x/1.jpg"]),
        ("image,etag,size\nx/1.jpg,e,\n", ["x/1.jpg"]),
        ("image,etag,size\nx/1.jpg,e,12.5\n", None),
        ("image\nx/1.jpg\0\n", None),
        ("image,label\nx/1.jpg\n", None),  # too few values
        ("image,image\nx/1.jpg,10.png\n", None),
        ('image,label\n"x/1.jpg,1\n10.png,2\n', None),  # an unclosed quotation mark
        ("", None),
        ("\ufeff", None),
        (" \n\n", None),
        ("image\n", None),
        ("image,label\n", None),
        ("<!doctype html><title>404</title>\n", None),
        ("label,width\na,1\n", None),
    ],
)
def test_lists_are_read_as_meant_or_refused(here, text, names):
    store.write_bytes(f"{here}/list.csv", text.encode())
    if names is None:
        with pytest.raises((TableError, PhotosError)) as caught:
            find_photos(f"{here}/list.csv")
        assert f"{here}/list.csv" in str(caught.value)
        assert "\n" not in str(caught.value)
    else:
        assert keys(find_photos(f"{here}/list.csv")) == names


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("image\nx/1.jpg\ncaf\xe9.jpg\n".encode("latin-1"), "its line 3 is not UTF-8"),
        (codecs.BOM_UTF16_LE + b"i\0m\0a", "its line 1 is not UTF-16-LE"),
        (codecs.BOM_UTF32_LE + b"\xff\xff\xff\xff", "its line 1 is not UTF-32-LE"),
    ],
)
def test_other_encodings_are_refused(here, data, reason):
    store.write_bytes(f"{here}/list.csv", data)
    with pytest.raises(TableError, match=f"cannot be read as text: .*{reason}.* Save the file as UTF-8"):
        find_photos(f"{here}/list.csv")


def test_long_text_is_decoded_in_pieces(here, monkeypatch):
    monkeypatch.setattr(lists, "_DECODED", 7)
    text = as_csv([["image"], *([name] for name in NAMES * 3)])
    for encoding in ENCODINGS:
        store.write_bytes(f"{here}/list.csv", ENCODINGS[encoding] + text.encode(encoding))
        assert keys(find_photos(f"{here}/list.csv")) == sorted(NAMES)
    store.write_bytes(f"{here}/list.csv", text.encode() + b"\xff\n")
    with pytest.raises(TableError, match=f"its line {len(NAMES) * 3 + 2} is not UTF-8"):
        find_photos(f"{here}/list.csv")


def test_json_lines_are_read(here):
    rows = [{"image": name, "box": [1, 2], "note": {"by": "a"}, "key": f"2024-01-0{n}"} for n, name in enumerate(NAMES)]
    text = "\n".join(json.dumps(row) for row in rows)
    for name, data in {
        "a.jsonl": text.encode(),
        "b.ndjson": text.encode("utf-8-sig"),
        "c.JSONL": b"\n" + text.encode(),
    }.items():
        store.write_bytes(f"{here}/{name}", data)
        found = find_photos(f"{here}/{name}")
        assert read_all(found) == {f"2024-01-0{n}": photo.encode() for n, photo in enumerate(NAMES)}
    store.write_bytes(f"{here}/d.jsonl", b'{"photo": "10.png", "width": 3}\n{"photo": "x/1.jpg"}\n')
    assert keys(find_photos(f"{here}/d.jsonl")) == ["10.png", "x/1.jpg"]


@pytest.mark.parametrize(
    "text",
    [
        '{"image": ',
        '{"image": 3.5}',
        '{"image": {"path": "a"}}',
        '{"image": "\\ud800.jpg"}',
        '{"image": "10.png", "size": "large"}',
        "10.png",
        "null",
        '{"image": "10.png"}\n3',
        "[" * 100_000,
    ],
)
def test_malformed_json_lines_are_refused(here, text):
    store.write_bytes(f"{here}/list.jsonl", text.encode())
    with pytest.raises(TableError, match="cannot be read as JSON Lines"):
        find_photos(f"{here}/list.jsonl")


def test_texts_that_are_not_utf8_are_refused(here):
    offsets = pa.array([0, 2], pa.int32()).buffers()[1]
    broken = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xff\xfe")])
    struct = pa.StructArray.from_arrays([pa.array([b"x"]), broken], ["bytes", "path"])
    for columns in ({"image": broken}, {"image": ["10.png"], "key": broken}, {"image": struct}):
        with pytest.raises(TableError, match=r"UTF8|utf-8"):
            find_photos(write_table(f"{here}/list.parquet", columns))


def test_columns_of_one_name_are_refused(here):
    table = pa.table([["10.png"], ["x/1.jpg"]], names=["image", "image"])
    with pytest.raises(TableError, match="more than one column named image; rename"):
        find_photos(write_table(f"{here}/list.parquet", table))


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.string()), pa.json_(), pa.uuid(), pa.int64(), pa.binary(16), pa.struct({"path": pa.string()})],
    ids=str,
)
def test_columns_of_other_types_are_refused(here, kind):
    table = pa.table({"image": pa.nulls(2, kind), "label": ["a", "b"]})
    with pytest.raises(PhotosError, match=r"has the columns image .* expected one of image, uri"):
        find_photos(write_table(f"{here}/list.parquet", table))


def test_parts_of_a_table_are_found(root):
    write_keys(root, "a.csv", "b.csv/part-1.csv", "b.csv/_SUCCESS", "b.csv/.part-1.csv.crc", "b.csv/x=1/part-0.csv")
    write_keys(root, "b.csv/_temporary/part-2.csv", "b.csv/.x/part-3.csv", "c.parquet/photo.jpg")
    assert find_table(f"{root}/a.csv") == [f"{root}/a.csv"]
    assert find_table(f"{root}/b.csv") == [f"{root}/b.csv/part-1.csv", f"{root}/b.csv/x=1/part-0.csv"]
    assert find_table(f"{root}/c.parquet") == find_table(root) == []
    with pytest.raises(NotFoundError):
        find_table(f"{root}/d.csv")


def test_texts_of_other_columns_are_not_read(here):
    table = pa.table({"matte": ["m"], "image": ["i"], "thumbnail": [b"\xff"], "size": [3]})
    uri = write_table(f"{here}/list.parquet", table)
    assert read_texts(uri, ("image", "matte"), ("key",)).to_pydict() == {"image": ["i"], "matte": ["m"]}
    with pytest.raises(TableError, match="has bytes in its column thumbnail"):
        read_texts(uri, ("thumbnail",), ())


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).map(str.strip).filter(bool)


@given(
    st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=20),
    st.sampled_from(",;\t|"),
    st.sampled_from(["\n", "\r\n"]),
)
def test_written_texts_are_read_again(rows, delimiter, line):
    text = as_csv([["key", "image"], *map(list, rows)], delimiter, line)
    store.write_bytes("memory://tables/list.csv", text.encode())
    assert read_list("memory://tables/list.csv").to_pydict() == {
        "key": [key for key, _ in rows],
        "image": [image for _, image in rows],
    }


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"PK\3\4" + bytes(range(256)), "an Excel workbook or another archive"),
        (b"\x1f\x8b\x08\x00" + bytes(range(256)), "binary or compressed data"),
        (bytes(100), "binary or compressed data"),
        (b'[{"image": "10.png"}]', "a JSON array"),
    ],
)
def test_files_that_are_no_lists_are_named(here, data, kind):
    for name in ("list.csv", "list.jsonl"):
        store.write_bytes(f"{here}/{name}", data)
        with pytest.raises(TableError, match=f"{kind}, not a list; save it as 'CSV UTF-8', or as JSON Lines"):
            find_photos(f"{here}/{name}")


def test_header_without_a_line_break_is_a_table_without_rows(here):
    store.write_bytes(f"{here}/list.csv", b"image")
    with pytest.raises(PhotosError, match="is a table without rows"):
        find_photos(f"{here}/list.csv")


@pytest.mark.parametrize("count", [400, 10_000])
def test_images_as_text_are_refused_in_a_short_message(here, count):
    write_table(f"{here}/list.parquet", pa.table({"image": ["/9j/4AAQ" * count]}))
    with pytest.raises(PhotosError, match="none of them exists") as caught:
        find_photos(f"{here}/list.parquet")
    assert len(str(caught.value)) < 1000
