"""shards: the same rows give the same bytes, every row can be read back, and damage is reported."""

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from matting.data import shards
from matting.data.shards import PartFooter, ShardError
from matting.storage import store
from matting.storage.uri import join_uri

FOOTER = PartFooter("f00", (("a/bad.jpg", "image: empty file"),), (("a/odd.jpg", "matte: empty"),))
Row = dict[str, Any]


def rows(start: int, stop: int, split: str = "train") -> list[Row]:
    return [
        {
            "key": f"a/{number:04}.jpg",
            "split": split,
            "image": f"image {number}".encode() * (number % 5 + 1),
            "matte": f"matte {number}".encode(),
            "width": number,
            "height": 2 * number,
            "source": "somewhere",
        }
        for number in range(start, stop)
    ]


def pack(uri: str, *parts: list[Row]) -> dict[str, Any]:
    """Write packed pairs and return their description."""
    described = []
    for index, part in enumerate(parts):
        name = shards.part_name(index)
        store.write_bytes(join_uri(uri, name), shards.encode_part(part, FOOTER))
        described.append({"name": name, "rows": len(part), "sha256": f"of part {index}"})
    shards.write_description(uri, {"parts": described})
    return shards.read_description(uri)


def footer_size(data: bytes) -> int:
    """Return the size in bytes of a Parquet file's footer, with the length and magic number at its end."""
    return int.from_bytes(data[-8:-4], "little") + 8


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "packed")


# One part -------------------------------------------------------------------------------------------------------------


def test_same_rows_give_the_same_bytes() -> None:
    data = shards.encode_part(rows(0, 100), FOOTER)
    assert shards.encode_part(rows(0, 100), FOOTER) == data
    assert shards.encode_part(rows(1, 101), FOOTER) != data
    assert shards.encode_part(rows(0, 100), PartFooter("f01", FOOTER.rejected)) != data


def test_part_has_fixed_columns_and_small_row_groups(root: str) -> None:
    pack(root, rows(0, 2 * shards.ROW_GROUP + 2))
    file = pq.ParquetFile(Path(root) / "part-00000.parquet")
    assert {field.name: str(field.type) for field in file.schema_arrow} == {
        "key": "string",
        "split": "string",
        "image": "binary",
        "matte": "binary",
        "width": "int32",
        "height": "int32",
        "source": "string",
    }
    groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    assert groups == [shards.ROW_GROUP, shards.ROW_GROUP, 2]


@pytest.mark.parametrize("part", [rows(0, 3), []])
def test_footer_is_read_back(part: list[Row]) -> None:
    assert shards.part_footer(shards.encode_part(part, FOOTER)) == FOOTER


def test_foreign_and_damaged_bytes_have_no_footer(tmp_path: Path) -> None:
    pq.write_table(shards.PART_SCHEMA.empty_table(), tmp_path / "foreign.parquet")
    data = shards.encode_part(rows(0, 3), FOOTER)
    footer = footer_size(data)
    damaged = data[:-footer] + bytes(8) + data[8 - footer :]
    for other in (
        b"",
        b"hello",
        data[:-1],
        data[: len(data) // 2],
        (tmp_path / "foreign.parquet").read_bytes(),
        damaged,
    ):
        assert shards.part_footer(other) is None


def test_duckdb_reads_a_part(root: str) -> None:
    pack(root, rows(0, 70))
    part = duckdb.read_parquet(f"{root}/part-00000.parquet")
    assert part.aggregate("count(*), sum(width), max(split)").fetchall() == [(70, sum(range(70)), "train")]
    assert part.filter("key = 'a/0007.jpg'").project("image, height").fetchall() == [(b"image 7" * 3, 14)]


# A dataset ------------------------------------------------------------------------------------------------------------


def check_rows_are_read_back(root: str) -> None:
    parts = [rows(0, 130), rows(130, 140, "val"), rows(140, 141, "test")]
    written = [row for part in parts for row in part]
    assert not shards.is_packed(root)
    index = shards.read_index(root, pack(root, *parts))
    assert shards.is_packed(root)
    assert index.select(["key", "split"]).to_pylist() == [
        {name: row[name] for name in ("key", "split")} for row in written
    ]
    for order in (range(141), range(140, -1, -1), [70, 3, 135, 70, 129], []):
        expected = [(written[place]["key"], written[place]["image"], written[place]["matte"]) for place in order]
        assert list(shards.read_pairs(index.take(np.array(order, int)))) == expected


def test_rows_are_read_back_in_any_order(root: str) -> None:
    check_rows_are_read_back(root)


def test_rows_are_read_back_from_a_bucket(bucket: str) -> None:
    check_rows_are_read_back(f"{bucket}/packed")


def test_empty_part_is_read(root: str) -> None:
    index = shards.read_index(root, pack(root, rows(0, 2), [], rows(2, 3)))
    assert index["key"].to_pylist() == ["a/0000.jpg", "a/0001.jpg", "a/0002.jpg"]


def test_fingerprint_depends_on_the_parts_only(root: str) -> None:
    description = pack(root, rows(0, 2), rows(2, 3))
    other = json.loads(json.dumps(description))
    other["parts"][1]["sha256"] = "of something else"
    assert shards.fingerprint(description) == shards.fingerprint({**description, "unpaired": []})
    assert shards.fingerprint(description) != shards.fingerprint(other)


def test_wrong_number_of_rows_is_an_error(root: str) -> None:
    description = pack(root, rows(0, 3))
    pack(root, rows(0, 2))
    with pytest.raises(
        ShardError, match=r"part-00000.parquet has 2 rows where _pairs.json says 3. Pack the pairs again"
    ):
        shards.read_index(root, description)


def test_missing_part_is_an_error(root: str) -> None:
    description = pack(root, rows(0, 3), rows(3, 6))
    store.delete(join_uri(root, "part-00001.parquet"))
    with pytest.raises(ShardError, match=r"part-00001.parquet cannot be read"):
        shards.read_index(root, description)


def test_truncated_part_is_an_error(root: str) -> None:
    description = pack(root, rows(0, 3))
    index = shards.read_index(root, description)
    place = Path(root) / "part-00000.parquet"
    place.write_bytes(place.read_bytes()[:-10])
    with pytest.raises(ShardError, match=r"part-00000.parquet cannot be read"):
        shards.read_index(root, description)
    with pytest.raises(ShardError, match=r"part-00000.parquet cannot be read"):
        list(shards.read_pairs(index))


def test_damaged_page_is_an_error(root: str) -> None:
    description = pack(root, rows(0, 3))
    index = shards.read_index(root, description)
    place = Path(root) / "part-00000.parquet"
    data, footer = place.read_bytes(), footer_size(place.read_bytes())
    place.write_bytes(data[:4] + bytes(len(data) - footer - 4) + data[-footer:])
    with pytest.raises(ShardError, match=r"part-00000.parquet cannot be read"):
        shards.read_index(root, description)
    with pytest.raises(ShardError, match=r"part-00000.parquet cannot be read"):
        list(shards.read_pairs(index))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": 2, "parts": []}', "has packed format 2; this version reads 1. Pack the pairs again"),
        ('{"parts": []}', "is damaged"),
        ('{"format": 1, "par', "is damaged"),
        ("[]", "is damaged"),
        ("", "is damaged"),
    ],
)
def test_foreign_description_is_an_error(root: str, content: str, message: str) -> None:
    store.write_bytes(join_uri(root, shards.DESCRIPTION), content.encode())
    with pytest.raises(ShardError, match=message):
        shards.read_description(root)
