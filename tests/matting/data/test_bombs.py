"""Small files that unpack to gigabytes or take minutes to decode: they cost little memory and time."""

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from matting.data import images, photo_tables, photos, shards
from matting.data.photo_tables import ReadFailure
from matting.data.shards import ShardError
from matting.data.sources.tables import TableError
from tests.support.paths import ROOT


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(extra: bytes, width: int = 1, height: int = 1, rows: bytes = zlib.compress(bytes(4))) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), extra, chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@cache
def zeros(megabytes: int) -> bytes:
    """Return so many megabytes of zeros, compressed."""
    deflate = zlib.compressobj(9)
    return b"".join(deflate.compress(bytes(1_000_000)) for _ in range(megabytes)) + deflate.flush()


def tiff(width: int, height: int, strip: bytes) -> bytes:
    tags = [(256, width), (257, height), (258, 8), (259, 8), (262, 1), (273, 8), (277, 1), (278, height)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*tags, (279, len(strip))])
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + struct.pack("<H", 9) + entries + bytes(4)


def webp(width: int, height: int) -> bytes:
    """Return an animation of this size with one frame of 16 x 16."""

    def part(name: bytes, body: bytes) -> bytes:
        return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)

    def size(*sides: int) -> bytes:
        return b"".join(struct.pack("<I", side - 1)[:3] for side in sides)

    still = part(b"VP8L", b"\x2f" + struct.pack("<I", 15 | 15 << 14) + bytes(40))
    frame = part(b"ANMF", bytes(6) + size(16, 16) + bytes(4) + still)
    body = b"WEBP" + part(b"VP8X", b"\2\0\0\0" + size(width, height)) + part(b"ANIM", bytes(6)) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif(width: int, height: int) -> bytes:
    """Return an image of 4 x 4 with one frame of this size."""
    buffer = BytesIO()
    Image.new("P", (4, 4)).save(buffer, "GIF")
    data = bytearray(buffer.getvalue())
    frame = data.index(b"\x2c")
    data[frame + 5 : frame + 9] = struct.pack("<HH", width, height)
    return bytes(data)


def jpeg(scans: int) -> bytes:
    """Return a progressive image of 2000 x 2000 that repeats its last scan: 15 bytes and about 10 ms each time."""
    buffer = BytesIO()
    Image.new("RGB", (2000, 2000)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * scans + data[-2:]


BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG of 60,000 x 60,000": lambda: png(b"", 60_000, 60_000),
    "WebP of 60,000 x 60,000": lambda: webp(60_000, 60_000),
    "TIFF of 60,000 x 60,000": lambda: tiff(60_000, 60_000, b""),
    "GIF with a frame of 60,000 x 60,000": lambda: gif(60_000, 60_000),
    "PNG with 300 MB of text": lambda: png(chunk(b"zTXt", b"a\0\0" + zeros(300))),
    "PNG with 300 MB of international text": lambda: png(chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(300))),
    "PNG with 300 MB of profile": lambda: png(chunk(b"iCCP", b"a\0\0" + zeros(300))),
    "PNG with many texts": lambda: png(chunk(b"zTXt", b"a\0\0" + zeros(1)) * 100),
    "PNG with 300 MB for one pixel": lambda: png(b"", rows=zeros(300)),
    "TIFF with 300 MB for 16 pixels": lambda: tiff(4, 4, zeros(300)),
    "JPEG of 20,000 scans": lambda: jpeg(20_000),
}

DECODE = """
import os, resource, sys, time
from matting.data import images
from tests.support.jobs import peak_memory
before, began = peak_memory(os.getpid()), time.process_time()
for path in sys.argv[1:]:
    try:
        images.decode_image(open(path, "rb").read())
    except images.BadImage as error:
        print(error)
    else:
        print("decoded")
print(peak_memory(os.getpid()) - before, time.process_time() - began)
"""


@pytest.mark.slow
def test_bombs_take_little_memory_and_time(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(len(BOMBS))]
    for path, make in zip(paths, BOMBS.values(), strict=True):
        path.write_bytes(make())
        assert path.stat().st_size < 2_000_000
    output = subprocess.check_output([sys.executable, "-c", DECODE, *map(str, paths)], text=True, cwd=ROOT, timeout=120)
    *outcomes, figures = output.splitlines()
    megabytes, seconds = map(float, figures.split())
    assert megabytes < 100
    assert seconds < 20  # takes about 3, mostly for the many texts
    harmless = {name for name, outcome in zip(BOMBS, outcomes, strict=True) if outcome == "decoded"}
    assert harmless == {name for name in BOMBS if "with 300 MB" in name}


def test_harmless_jpegs_are_read() -> None:
    video = b"\xff\xda\0\2" * 1_000  # phones append one behind the end of the image
    assert images.decode_image(jpeg(50) + video).shape == (2000, 2000, 3)


def test_photo_table_that_unpacks_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photo_tables, "MAX_IMAGE_BYTES", 10_000_000)
    path = tmp_path / "photos.parquet"
    zero = pa.array([bytes(20_000_000)], pa.binary())
    pq.write_table(pa.table({"key": ["a.jpg"], "image": zero}), path, compression="zstd", use_dictionary=False)
    before = pa.total_allocated_bytes()
    with pytest.raises(TableError, match=r"row group 0 unpacks from [\d,]+ bytes to 20,000,\d+, as no photos do"):
        photos.find_photos(str(path))
    assert pa.total_allocated_bytes() - before < 1_000_000


def test_packed_part_that_unpacks_is_refused(tmp_path: Path) -> None:
    row = {"key": "a", "split": "train", "image": bytes(10**7), "matte": b"", "width": 1, "height": 1, "source": "s"}
    pq.write_table(pa.Table.from_pylist([row], shards.PART_SCHEMA), tmp_path / "part-00000.parquet", compression="zstd")
    with pytest.raises(ShardError, match="no part that this version packs"):
        shards.read_index(str(tmp_path), {"parts": [{"name": "part-00000.parquet", "rows": 1}]})


def test_oversized_photo_is_not_fetched(tmp_path: Path) -> None:
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(10**12)  # a sparse file: no disk could hold a full one
    found = photos.find_photos(str(tmp_path))
    ((_, failure),) = photos.read_photos(found.table, ahead=1)
    assert isinstance(failure, ReadFailure)
    assert "1,000,000,000,000 bytes, more than the limit of 640,000,000" in failure.reason
    assert not failure.is_transient
