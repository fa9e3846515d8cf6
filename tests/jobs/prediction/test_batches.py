"""Batches that a task sends to a network on a GPU."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.prediction import blocks
from matting.data import images
from matting.data.images import Pixels
from matting.data.photos import find_photos
from matting.inference.device_predictor import PhotoBatch, unpack
from matting.nn import checkpoint
from matting.results.pipeline import PredictionSettings
from tests.support.predictions import FakeGpuWork, draw_photo, new_checkpoint

PHOTOS = 70  # more than requests in flight, and than a micro-batch


@pytest.mark.parametrize(("batch_bytes", "least"), [(blocks.BATCH_BYTES, PHOTOS), (100_000, 5)])
def test_blocks_reach_a_gpu_whole_unless_they_are_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_bytes: int, least: int
) -> None:
    monkeypatch.setattr(blocks, "BATCH_BYTES", batch_bytes)
    (tmp_path / "photos").mkdir()
    for number in range(PHOTOS):
        (tmp_path / f"photos/{number:02d}.jpg").write_bytes(draw_photo(number % 7, 44 + number % 3, 54))
    photos = find_photos(str(tmp_path / "photos")).table
    settings = PredictionSettings(("alpha",), "png", "guided", "files", "fp32")
    trained = new_checkpoint(tmp_path / "trained", seed=0)
    work = FakeGpuWork(trained, checkpoint.load(trained).identity, str(tmp_path / "out"), settings, "run")
    predictor = work.device_predictor(torch.device("cpu"))
    batches = list[PhotoBatch]()

    def compute(batch: PhotoBatch) -> Pixels:
        batches.append(batch)
        return predictor.alphas(batch)

    block = photos.append_column("outputs", pa.nulls(PHOTOS, pa.list_(pa.string())))
    rows, _ = work.pipeline(compute).handle(block, 0)
    assert [row["status"] for row in rows] == ["done"] * PHOTOS
    lengths = [len(batch.sizes_N2) for batch in batches]
    assert sum(lengths) == PHOTOS
    assert min(lengths[:-1], default=PHOTOS) >= least
    assert all(batch.pixels.nbytes <= batch_bytes for batch in batches)
    for number in (0, 1, 2, PHOTOS - 1):
        pixels = images.decode_image((tmp_path / f"photos/{number:02d}.jpg").read_bytes())
        shape = np.array([pixels.shape[:2]])
        (expected,) = unpack(predictor.alphas(PhotoBatch(pixels.reshape(-1), shape, shape)), shape)
        found = images.decode_alpha((tmp_path / f"out/alpha/{number:02d}.jpg.png").read_bytes())
        np.testing.assert_allclose(found, expected, atol=1)  # rounding depends on the batch
