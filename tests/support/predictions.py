"""Collections of drawn photos, small checkpoints to predict them with, and checks of what a prediction leaves."""

from pathlib import Path
from typing import Any

import duckdb
import torch
from PIL import Image

from jobs.bench.workload import untrained_unet
from jobs.prediction.blocks import PredictionWork
from matting.data import images
from matting.data.sources.tar_index import INDEX_NAME
from matting.data.synthetic import draw_person
from matting.nn import checkpoint
from matting.nn.unet import UNetConfig

DRAWN = 40  # different photos


class FakeGpuWork(PredictionWork):
    """Work whose networks compute on the CPU, where Ray counts GPUs that do not exist."""

    def gpu(self) -> torch.device:
        return torch.device("cpu")


def new_checkpoint(folder: Path, seed: int) -> str:
    """Save a small untrained network. Returns the URI of its checkpoint."""
    model = untrained_unet(UNetConfig(width=4), seed)
    checkpoint.save(str(folder), model, checkpoint.describe(model, 32, {}, {}), {"val_mad": 1.0})
    return str(folder)


def draw_photo(number: int, width: int = 44, height: int = 54) -> bytes:
    """Draw a person, as the bytes of a JPEG."""
    return images.encode_jpeg(images.resize(draw_person(5, number, 64, 64)[0], width, height))


def write_photos(folder: Path, count: int, start: int = 0) -> None:
    """Write photos in CelebA's layout: img_align_celeba/000001.jpg and so on."""
    (folder / "img_align_celeba").mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        (folder / f"img_align_celeba/{number + 1:06d}.jpg").write_bytes(draw_photo(number % DRAWN))


def photo_keys(count: int) -> set[str]:
    """Keys of the photos that :func:`write_photos` writes."""
    return {f"img_align_celeba/{number + 1:06d}.jpg" for number in range(count)}


def read_ledger(output: object) -> dict[str, dict[str, Any]]:
    """Read the ledger with another library, by key; each key must have one row."""
    found = duckdb.sql(f"select * from '{output}/_ledger/*.parquet'")
    listed = [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]
    by_key = {row["key"]: row for row in listed}
    assert len(by_key) == len(listed)
    return by_key


def assert_accounted_for(output: Path, keys: set[str]) -> None:
    """Check that each key has one row, each listed output is whole and of the right size, and nothing else is there."""
    ledger = read_ledger(output)
    assert ledger.keys() == keys
    listed = set()
    for row in ledger.values():
        assert (row["status"] == "done") == (row["error"] is None) == bool(row["outputs"])
        for path in row["outputs"]:
            image = Image.open(output / path)
            image.load()
            assert image.size == (row["width"], row["height"])
        listed |= set(row["outputs"])
    found = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    found = {path for path in found if not path.startswith("_lease/")}  # a job that was killed leaves its lease
    parts = {path for path in found if path.startswith("_ledger/")}
    assert found - parts - {"report.html", "summary.json", INDEX_NAME} == listed
    assert len(parts) == 1
