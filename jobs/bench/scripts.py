"""Scripts that a user would write without this project, as a yardstick for the jobs.

    plain_loop         photos -> photos/s of a loop over files
    loader_loop        photos -> photos/s with a DataLoader that decodes in other processes
    loader_training    pairs  -> samples/s of the trainer behind a DataLoader

They use Pillow and PyTorch with default settings.
"""

import io
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from jobs.bench.network import TRAIN_BATCH, baseline_trainer, default_device
from jobs.common.machine import usable_cores
from matting.data import shards
from matting.data.dataset import PairDataset
from matting.data.images import Pixels
from matting.data.rows import PackedRows, RawRows
from matting.nn import checkpoint
from matting.nn.schedule import Budget
from matting.nn.unet import alpha_of

LOADER_BATCH = 32
WARM_UP_STEPS = 4


def plain_loop(photos: Sequence[str], uri: str, output: str) -> float:
    """Return photos/s of a loop that opens, predicts and saves one photo after another.

    Args:
        photos: Paths of the photos.
        uri: URI of a checkpoint folder.
        output: Folder for the mattes.
    """
    loaded = checkpoint.load(uri)
    began = 0.0
    for number, photo in enumerate(photos):
        if number == 1:  # the first photo pays for one-time initialization
            began = time.perf_counter()
        image, image_CHW = open_squashed(photo, loaded.size)
        with torch.inference_mode():
            alpha = alpha_of(loaded.model.to(default_device())(image_CHW[None].to(default_device())))[0, 0]
        save_matte(alpha, image.size, f"{output}/{number}.png")
    return (len(photos) - 1) / (time.perf_counter() - began)


def loader_loop(photos: Sequence[str], uri: str, output: str) -> float:
    """Return photos/s of the same in batches, with a DataLoader that decodes in one process per core."""
    loaded = checkpoint.load(uri)
    model = loaded.model.to(default_device())
    loader = DataLoader(PhotoFiles(photos, loaded.size), LOADER_BATCH, num_workers=usable_cores())
    began, done = 0.0, 0
    for image_BCHW, sizes in loader:
        with torch.inference_mode():
            alphas = alpha_of(model(image_BCHW.to(default_device())))[:, 0].cpu()
        for alpha, width, height in zip(alphas, *sizes, strict=True):
            save_matte(alpha, (int(width), int(height)), f"{output}/{done}.png")
            done += 1
        began = began or time.perf_counter()
    return (len(photos) - LOADER_BATCH) / (time.perf_counter() - began)


def loader_training(dataset: PairDataset, uri: str, seconds: float) -> float:
    """Return samples/s of the job's own training step behind a DataLoader, after four steps to warm up."""
    loaded = checkpoint.load(uri)
    trainer = baseline_trainer(loaded.model)
    loader = DataLoader(
        TrainingPairs(dataset, loaded.size),
        TRAIN_BATCH,
        shuffle=True,
        num_workers=usable_cores(),
        persistent_workers=True,
    )
    batches = (dict(zip(("key", "image", "alpha"), map(np.asarray, batch), strict=True)) for batch in repeated(loader))
    trainer.train_epoch(itertools.islice(batches, WARM_UP_STEPS))
    epoch = trainer.train_epoch(batches, Budget(seconds=trainer.seconds + seconds))
    return epoch.samples / epoch.seconds


def repeated(loader: Iterable[Any]) -> Iterator[Any]:
    """Yield the loader's batches, pass after pass, without end."""
    while True:
        yield from loader


def open_squashed(photo: str, size: int) -> tuple[Image.Image, torch.Tensor]:
    """Open a photo. Return it, and its pixels squashed to the network's size: float (3, size, size) in [0, 1]."""
    image = Image.open(photo).convert("RGB")
    squashed = np.array(image.resize((size, size), Image.Resampling.BILINEAR))
    return image, torch.from_numpy(squashed).permute(2, 0, 1) / 255


def save_matte(alpha_HW: torch.Tensor, size: tuple[int, int], path: str) -> None:
    """Save an alpha as a PNG of this (width, height), with Pillow's default compression."""
    matte = Image.fromarray((alpha_HW.cpu() * 255).round().byte().numpy())
    matte.resize(size, Image.Resampling.BILINEAR).save(path)


class PhotoFiles(Dataset[tuple[torch.Tensor, tuple[int, int]]]):
    """Photos as squashed tensors with their (width, height), decoded one by one.

    Args:
        photos: Paths of the photos.
        size: Side of the squashed image in pixels.
    """

    def __init__(self, photos: Sequence[str], size: int) -> None:
        self._photos, self._size = photos, size

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, tuple[int, int]]:
        image, image_CHW = open_squashed(self._photos[index], self._size)
        return image_CHW, image.size


class TrainingPairs(Dataset[tuple[str, Pixels, Pixels]]):
    """Pairs of the training split, decoded one by one, from their files or from packed parts held in memory.

    Args:
        dataset: Raw or packed pairs.
        size: Side of image and alpha in pixels.
    """

    def __init__(self, dataset: PairDataset, size: int) -> None:
        rows = dataset.splits["train"]
        self._encoded: list[tuple[str, Any, Any]]
        if isinstance(rows, PackedRows):
            self._encoded = [
                (key, io.BytesIO(image), io.BytesIO(matte)) for key, image, matte in shards.read_pairs(rows.table)
            ]
        else:
            assert isinstance(rows, RawRows)
            self._encoded = [(row["key"], row["image_uri"], row["matte_uri"]) for row in rows.table.to_pylist()]
        self._size = (size, size)

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, index: int) -> tuple[str, Pixels, Pixels]:
        key, image, matte = self._encoded[index]
        image_HWC, alpha_HW = (
            np.array(Image.open(encoded).convert(mode).resize(self._size, Image.Resampling.BILINEAR))
            for encoded, mode in ((image, "RGB"), (matte, "L"))
        )
        return key, image_HWC, alpha_HW
