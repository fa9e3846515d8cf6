"""tar: every file of an archive is listed with its place, without reading its content, and damage is named."""

import random
import tarfile
from collections.abc import Iterable

import pytest

from matting.data.sources import tar
from matting.data.sources.tar import COMPRESSED, TarContents, list_tar
from matting.storage import store
from matting.storage.errors import NotFoundError
from matting.storage.uri import range_uri
from tests.support.archives import Entry, other_entry, tar_bytes

LONG = "/".join(["long" * 20] * 4) + "/photo.jpg"


def write_tar(uri: str, entries: Iterable[Entry], **options: object) -> int:
    data = tar_bytes(entries, **options)
    store.write_bytes(uri, data)
    return len(data)


def contents(uri: str, listed: TarContents) -> dict[str, bytes]:
    return {member.name: store.read_bytes(range_uri(uri, member.span)) for member in listed.members}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_files_are_read_by_their_places(root, form):
    files = {"b.jpg": b"b" * 513, "x/a.jpg": b"", "x/ä é.jpg": b"ae", "100%.jpg": bytes(1024)}
    files |= {LONG: b"long"} if form != tarfile.USTAR_FORMAT else {}
    uri = f"{root}/a b.tar"
    size = write_tar(uri, [other_entry("x", tarfile.DIRTYPE), *files.items()], format=form)
    listed = list_tar(uri, size)
    assert listed.left_out == []
    assert [member.name for member in listed.members] == list(files)
    assert contents(uri, listed) == files


def test_blocks_of_every_size_give_the_same_list(tmp_path, monkeypatch):
    draw = random.Random(0)
    files = {f"{number:03}.jpg": bytes(draw.choice([0, 10, 511, 512, 5_000, 40_000])) for number in range(300)}
    uri = f"{tmp_path}/a.tar"
    size = write_tar(uri, files.items())
    expected = list_tar(uri, size)
    assert [member.name for member in expected.members] == list(files)
    fetched: list[int] = []
    read = store.read_bytes
    monkeypatch.setattr(store, "read_bytes", lambda uri: fetched.append(len(read(uri))) or read(uri))
    for few, many, small in ((512, 512, 0), (1024, 20_000, 6_000), (16_384, 4_000_000, 256_000)):
        monkeypatch.setattr(tar, "_FEW", few)
        monkeypatch.setattr(tar, "_MANY", many)
        monkeypatch.setattr(tar, "_SMALL", small)
        assert list_tar(uri, size) == expected
        assert max(fetched) <= max(many, 65_536)
    assert len(fetched) > 300


def test_large_files_are_not_fetched(tmp_path, monkeypatch):
    uri = f"{tmp_path}/a.tar"
    size = write_tar(uri, [(f"{number}.tif", bytes(6_000_000)) for number in range(5)])
    fetched: list[int] = []
    read = store.read_bytes
    monkeypatch.setattr(store, "read_bytes", lambda uri: fetched.append(len(read(uri))) or read(uri))
    assert len(list_tar(uri, size).members) == 5
    assert sum(fetched) < 6_000_000


def test_names_are_relative_and_unique(tmp_path):
    entries = [
        ("./a.jpg", b"old"),
        ("/b//c.jpg", b"c"),
        ("x/../../d.jpg", b"d"),
        ("caf\udce9.jpg", b"e"),
        ("a.jpg", b"new"),
        (".", b"dot"),
    ]
    uri = f"{tmp_path}/a.tar"
    listed = list_tar(uri, write_tar(uri, entries, format=tarfile.GNU_FORMAT))
    assert contents(uri, listed) == {"a.jpg": b"new", "b/c.jpg": b"c"}
    assert dict(listed.left_out) == {
        "x/../../d.jpg": "has a name that leads out of the archive",
        "caf\\xe9.jpg": "has a name that is not UTF-8",
        "a.jpg": "is in the archive more than once; the last one counts",
        ".": "has a name that leads out of the archive",
    }


def test_only_files_are_listed(tmp_path):
    kinds = {"symbolic": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "device": tarfile.CHRTYPE, "fifo": tarfile.FIFOTYPE}
    entries = [("a.jpg", b"a"), *(other_entry(f"{name}.jpg", kind, "a.jpg") for name, kind in kinds.items())]
    uri = f"{tmp_path}/a.tar"
    listed = list_tar(uri, write_tar(uri, entries))
    assert [member.name for member in listed.members] == ["a.jpg"]
    assert listed.left_out == [(f"{name}.jpg", "is a link, a device or a sparse file") for name in kinds]


FILES = [(f"{number}.jpg", bytes([number]) * 700) for number in range(1, 9)]  # three blocks each


def damaged_archives() -> dict[str, tuple[bytes, int, str]]:
    """Return archives with their number of readable files, and what is wrong with them."""
    whole = tar_bytes(FILES)
    header = 512 * 3 * 4
    broken = bytearray(whole)
    broken[header + 10] ^= 0xFF
    pax = tarfile.TarInfo("x.jpg")
    pax.pax_headers = {"comment": "x" * 2_000_000}
    back = bytearray(whole)
    back[header + 124 : header + 136] = b"\xff" * 11 + b"\0"  # a negative size, in base 256
    checksum = sum(back[header : header + 148]) + 8 * 32 + sum(back[header + 156 : header + 512])
    back[header + 148 : header + 156] = b"%06o\0 " % checksum
    return {
        "negative size": (bytes(back), 4, "5.jpg is cut, since the archive ends in it"),
        "cut in a file": (whole[: header + 900], 4, "5.jpg is cut, since the archive ends in it"),
        "cut in a header": (whole[: header + 100], 4, "is damaged, or joined from several, after 4 files"),
        "cut between files": (whole[:header], 4, "has no end mark, so it may be cut after 4 files"),
        "broken header": (bytes(broken), 4, "is damaged, or joined from several, after 4 files"),
        "joined": (whole + tar_bytes([("z.jpg", b"z")]), 8, "is damaged, or joined from several, after 8 files"),
        "empty": (b"", 0, "is damaged after 0 files (empty file)"),
        "no archive": (b"<html>" * 200, 0, "is damaged after 0 files"),
        "huge header": (tar_bytes([*FILES[:2], pax], format=tarfile.PAX_FORMAT), 2, "a header of 2,"),
        "gzip": (tar_bytes(FILES, "w:gz"), 0, COMPRESSED),
        "bzip2": (tar_bytes(FILES, "w:bz2"), 0, COMPRESSED),
        "xz": (tar_bytes(FILES, "w:xz"), 0, COMPRESSED),
    }


@pytest.mark.parametrize("name", damaged_archives())
def test_damage_is_named_and_keeps_what_comes_before(tmp_path, name):
    data, readable, reason = damaged_archives()[name]
    uri = f"{tmp_path}/a.tar"
    store.write_bytes(uri, data)
    listed = list_tar(uri, len(data))
    assert contents(uri, listed) == dict(FILES[:readable])
    assert any(reason in f"{key} {found}".lstrip() for key, found in listed.left_out), listed.left_out


def test_random_damage_is_no_error(tmp_path):
    whole = tar_bytes(FILES, format=tarfile.PAX_FORMAT)
    draw = random.Random(0)
    uri = f"{tmp_path}/a.tar"
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 20)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        store.write_bytes(uri, bytes(data[: draw.randint(0, len(data))]))
        listed = list_tar(uri, store.stat(uri).size)
        assert all(len(content) >= 0 for content in contents(uri, listed).values())
        assert len(listed.members) == len(FILES) or listed.left_out


def test_missing_archive_is_a_storage_error(root):
    with pytest.raises(NotFoundError):
        list_tar(f"{root}/a.tar", 10_000)


@pytest.mark.slow
def test_archive_of_many_files_is_listed(tmp_path):
    uri = f"{tmp_path}/a.tar"
    size = write_tar(uri, ((f"{number:06}.jpg", b"x" * 100) for number in range(100_000)))
    listed = list_tar(uri, size)
    assert listed.left_out == []
    assert [member.name for member in listed.members] == [f"{number:06}.jpg" for number in range(100_000)]
