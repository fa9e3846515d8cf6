"""What a stranger's files may not do: run code, take memory or time without end, leave their folder, learn secrets.

That keys stay below their folder is in test_ledger and test_storage; that pages escape what they show, in test_gallery
and test_report; what else is no image, in test_images. No run writes a secret down: test_soak.
"""

import ast
import json
import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

from jobs.evaluate import FileAlphas
from jobs.runs import PROGRESS, RunFolder
from matting import images, ledger, pairs, photos, shards, storage
from matting.ledger import LedgerError
from matting.pairs import PairsError
from matting.photos import PhotosError
from matting.predictions import read_matte
from matting.shards import ShardError
from matting.storage import StorageError
from tests.jobs import ROOT

# Code in files --------------------------------------------------------------------------------------------------------


class Payload:
    """Whoever unpickles it creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.fixture
def executed(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.fixture
def live(executed: Path) -> pa.Array:
    """A column of the type that `import ray.data` registers for all of Arrow, and that unpickles its values."""
    kind = ArrowPythonObjectType()
    column = kind.wrap_array(pa.array([pickle.dumps(Payload(executed))], kind.storage_type))
    column[0].as_py()
    assert executed.exists(), "Ray's type no longer unpickles: this test shows nothing"
    executed.unlink()
    return column


def write(path: Path, columns: dict[str, Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, compression="none")
    return str(path)


def test_a_table_of_photos_runs_no_code(live: pa.Array, executed: Path, tmp_path: Path) -> None:
    whole = {"key": ["a.jpg"], "image": pa.array([b"x"]), "etag": ["e"], "size": [1]}
    hidden = pa.StructArray.from_arrays([live], ["bytes"])
    for change in ({name: live} for name in whole):
        with pytest.raises(PhotosError):
            photos.find_photos(write(tmp_path / "photos.parquet", whole | change))
    with pytest.raises(PhotosError):
        photos.find_photos(write(tmp_path / "photos.parquet", whole | {"image": hidden}))
    assert not executed.exists()


def test_a_manifest_runs_no_code(live: pa.Array, executed: Path, tmp_path: Path) -> None:
    whole = {"key": ["a"], "image": ["a.jpg"], "matte": ["a.png"], "split": ["train"], "group": ["g"]}
    for name in whole:
        with pytest.raises(PairsError, match="cannot be read as a manifest"):
            pairs.find_pairs(write(tmp_path / "pairs.parquet", whole | {name: live}))
    assert not executed.exists()


def test_packed_pairs_run_no_code(live: pa.Array, executed: Path, tmp_path: Path) -> None:
    whole = shards.SCHEMA.empty_table().to_pydict() | {field.name: pa.nulls(1, field.type) for field in shards.SCHEMA}
    description = {"parts": [{"name": "part-00000.parquet", "rows": 1}]}
    for name in ("key", "split", "image", "matte"):
        write(tmp_path / "part-00000.parquet", whole | {name: live})
        with pytest.raises(ShardError, match="no part that this version packs"):
            shards.read_index(str(tmp_path), description)
    assert not executed.exists()


def test_a_ledger_runs_no_code(live: pa.Array, executed: Path, tmp_path: Path) -> None:
    whole = {field.name: pa.nulls(1, field.type) for field in ledger.SCHEMA}
    for name in ("key", "status", "outputs"):
        write(tmp_path / "_ledger/part.parquet", whole | {name: live})
        with pytest.raises(LedgerError):
            ledger.read(str(tmp_path))
    assert not executed.exists()


def test_a_table_of_mattes_and_a_run_folder_run_no_code(live: pa.Array, executed: Path, tmp_path: Path) -> None:
    write(tmp_path / "mattes/part.parquet", {"key": ["a"], "etag": ["e"], "alpha": live, "cutout": live})
    with pytest.raises(StorageError, match="no table of mattes"):
        read_matte("a", str(tmp_path / "mattes/part.parquet"), 100)
    write(tmp_path / "validation.parquet", {"key": live, "mad": [1.0], "mse": [1.0], "iou": [1.0]})
    with pytest.raises(pa.ArrowInvalid):
        RunFolder(str(tmp_path)).scores()
    assert not executed.exists()


def test_what_a_run_remembers_of_itself_is_no_pickle(executed: Path, tmp_path: Path) -> None:
    (tmp_path / PROGRESS).write_bytes(pickle.dumps(Payload(executed)))
    with pytest.raises(ValueError, match=r"(?i)json|utf"):
        RunFolder(str(tmp_path)).progress()
    assert not executed.exists()


def test_no_source_can_unpickle() -> None:
    for path in [*(ROOT / "matting").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")]:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"} & set(names), path
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load"):
                assert "weights_only=True" in ast.unparse(node), path


# Bombs ----------------------------------------------------------------------------------------------------------------


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(extra: bytes, width: int = 1, height: int = 1, rows: bytes = zlib.compress(bytes(4))) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), extra, chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@cache
def zeros(megabytes: int) -> bytes:
    """So many, compressed."""
    deflate = zlib.compressobj(9)
    return b"".join(deflate.compress(bytes(1_000_000)) for _ in range(megabytes)) + deflate.flush()


def tiff(width: int, height: int, strip: bytes) -> bytes:
    tags = [(256, width), (257, height), (258, 8), (259, 8), (262, 1), (273, 8), (277, 1), (278, height)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*tags, (279, len(strip))])
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + struct.pack("<H", 9) + entries + bytes(4)


def webp(width: int, height: int) -> bytes:
    """An animation of this size, with a frame of 16 by 16."""

    def part(name: bytes, body: bytes) -> bytes:
        return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)

    def size(*sides: int) -> bytes:
        return b"".join(struct.pack("<I", side - 1)[:3] for side in sides)

    still = part(b"VP8L", b"\x2f" + struct.pack("<I", 15 | 15 << 14) + bytes(40))
    frame = part(b"ANMF", bytes(6) + size(16, 16) + bytes(4) + still)
    body = b"WEBP" + part(b"VP8X", b"\2\0\0\0" + size(width, height)) + part(b"ANIM", bytes(6)) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif(width: int, height: int) -> bytes:
    """A screen of 4 by 4, with a frame of this size."""
    buffer = BytesIO()
    Image.new("P", (4, 4)).save(buffer, "GIF")
    data = bytearray(buffer.getvalue())
    frame = data.index(b"\x2c")
    data[frame + 5 : frame + 9] = struct.pack("<HH", width, height)
    return bytes(data)


def jpeg(scans: int) -> bytes:
    """Progressive, of 2000 by 2000 pixels, its last scan again and again: 15 bytes each, and some 10 ms."""
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
from matting import images
from tests.jobs import peak_memory
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


def test_small_files_that_unpack_to_gigabytes_take_little_memory_and_time(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(len(BOMBS))]
    for path, make in zip(paths, BOMBS.values(), strict=True):
        path.write_bytes(make())
        assert path.stat().st_size < 2_000_000
    output = subprocess.check_output([sys.executable, "-c", DECODE, *map(str, paths)], text=True, cwd=ROOT, timeout=120)
    *outcomes, figures = output.splitlines()
    megabytes, seconds = map(float, figures.split())
    assert megabytes < 100
    assert seconds < 20  # 3, most of it for the many texts
    harmless = {name for name, outcome in zip(BOMBS, outcomes, strict=True) if outcome == "decoded"}
    assert harmless == {"PNG with 300 MB for one pixel", "TIFF with 300 MB for 16 pixels"}


def test_a_progressive_jpeg_and_one_with_a_film_behind_it_are_read(tmp_path: Path) -> None:
    del tmp_path
    film = b"\xff\xda\0\2" * 1_000  # as phones append, behind the end of the image
    assert images.decode_image(jpeg(50) + film).shape == (2000, 2000, 3)


def test_a_table_that_unpacks_to_gigabytes_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "MAX_IMAGE_BYTES", 10_000_000)
    path = tmp_path / "photos.parquet"
    zero = pa.array([bytes(20_000_000)], pa.binary())
    pq.write_table(pa.table({"key": ["a.jpg"], "image": zero}), path, compression="zstd", use_dictionary=False)
    before = pa.total_allocated_bytes()
    with pytest.raises(PhotosError, match=r"row group 0 unpacks from [\d,]+ bytes to 20,000,\d+, as no photos do"):
        photos.find_photos(str(path))
    assert pa.total_allocated_bytes() - before < 1_000_000


def test_a_packed_part_that_unpacks_is_refused(tmp_path: Path) -> None:
    row = {"key": "a", "split": "train", "image": bytes(10**7), "matte": b"", "width": 1, "height": 1, "source": "s"}
    pq.write_table(pa.Table.from_pylist([row], shards.SCHEMA), tmp_path / "part-00000.parquet", compression="zstd")
    with pytest.raises(ShardError, match="no part that this version packs"):
        shards.read_index(str(tmp_path), {"parts": [{"name": "part-00000.parquet", "rows": 1}]})


def test_a_photo_larger_than_any_picture_can_be_is_not_fetched(tmp_path: Path) -> None:
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(10**12)  # a hole: no disk could hold it
    found = photos.find_photos(str(tmp_path))
    ((_, reason),) = photos.read_photos(found.table, ahead=1)
    assert isinstance(reason, str)
    assert "1,000,000,000,000 bytes, more than the limit of 640,000,000" in reason


# Names ----------------------------------------------------------------------------------------------------------------


def test_a_hostile_key_reads_no_matte_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "mattes").mkdir()
    (tmp_path / "mattes/own.png").write_bytes(b"own")
    for key in ("../secret.jpg", "a/../../secret"):
        with pytest.raises(StorageError, match="would lead out of"):
            FileAlphas(str(tmp_path / "mattes"))(key, None)


def test_a_hostile_description_names_no_part_elsewhere(tmp_path: Path) -> None:
    description = {"parts": [{"name": "../part-00000.parquet", "rows": 1}]}
    with pytest.raises(StorageError, match="would lead out of"):
        shards.read_index(str(tmp_path / "packed"), description)


# Secrets --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri", ["sftp://user:hunter2@host/photos", "https://user:hunter2@host/a.csv", "ftp://:hunter2@h"]
)
def test_a_password_in_a_uri_is_refused_and_not_repeated(uri: str) -> None:
    for use in (storage.exists, storage.list_files, storage.read_bytes, storage.check_writable, storage.delete):
        with pytest.raises(StorageError, match="has a password in it") as caught:
            use(uri)
        assert "hunter2" not in str(caught.value)


def test_a_password_in_the_endpoint_is_refused_and_not_repeated(
    object_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", object_store.replace("http://", "http://user:hunter2@"))
    with pytest.raises(StorageError, match="has a password in it") as caught:
        storage.exists("s3://bucket-of-an-endpoint-with-a-password/a")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("uri", ["folder/a:b@c.jpg", "s3://bucket/a:b@c.jpg", "memory://photos/12:30@home.jpg"])
def test_a_colon_and_an_at_in_a_name_are_no_password(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if not uri.startswith("s3"):
        storage.write_bytes(uri, b"x")
        assert storage.read_bytes(uri) == b"x"
    assert storage.default_key("", uri).endswith(".jpg")


# Dependencies ---------------------------------------------------------------------------------------------------------


def audited(*arguments: str) -> list[dict[str, Any]]:
    """What pip-audit knows of some packages."""
    command = [sys.executable, "-m", "pip_audit", "--format=json", "--progress-spinner=off", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    return json.loads(done.stdout)["dependencies"] if done.stdout.startswith("{") else []


def test_no_dependency_has_a_known_flaw_that_a_newer_version_mends(tmp_path: Path) -> None:
    known = tmp_path / "requirements.txt"
    known.write_text("jinja2==2.10\n")
    if not any(package.get("vulns") for package in audited("--disable-pip", "--no-deps", f"--requirement={known}")):
        pytest.skip("no data on vulnerabilities here: not even the old flaws of jinja2 2.10 are known")
    flaws = {
        package["name"]: package["vulns"]
        for package in audited("--skip-editable")
        if any(flaw["fix_versions"] for flaw in package.get("vulns", ()))
    }
    assert not flaws
