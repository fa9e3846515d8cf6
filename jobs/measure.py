"""What the benchmark measures inside one process: the network alone, each stage alone, and what a user would write.

    forward, step      checkpoint -> photos/s or samples/s of the network, nothing else running
    product            matrix products -> FLOP/s, the limit of both
    stages             photos, checkpoint -> CPU-ms a photo of each thing that is not the network
    plain_loop, …      photos or pairs -> photos/s, samples/s of what a user would write instead

Functions that several processes call at once begin together. Knows no tables and no charts.
"""

import io
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.synchronize import Barrier
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from matting import checkpoint, images, shards, storage
from matting.augment import vary
from matting.collection import PackedRows, Pairs, RawRows
from matting.devices import Format, pictures_at_once
from matting.images import Pixels
from matting.predictor import Network, Predictor
from matting.refine import cutout, guided, squash, upsample
from matting.training import Plan, Trainer, TrainingConfig
from matting.unet import UNet, alpha_of

LOADER_BATCH = 32  # of the script that predicts with a DataLoader
TRAIN_BATCH = 8

_together: Barrier | None = None


def begin_together(barrier: Barrier) -> None:
    """Of several processes: all of their measurements wait for each other before they begin."""
    global _together
    _together = barrier


def device() -> torch.device:
    """Where the jobs would compute."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def rate(calls: Iterable[Callable[[], object]], seconds: float) -> float:
    """Calls per second, of the first few and then of as many as take so long."""
    endless = itertools.cycle(calls)
    for call in itertools.islice(endless, 2):
        call()
    if _together:
        _together.wait()
    began, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds:
        next(endless)()
        done += 1
    return done / elapsed


# The network ----------------------------------------------------------------------------------------------------------


def forward(uri: str, threads: int, seconds: float, number_format: Format) -> float:
    """Photos/s of the network as predict runs it, on uint8 pictures of its own size."""
    torch.set_num_threads(threads)
    loaded = checkpoint.load(uri)
    together = pictures_at_once(device(), number_format)
    network = Network(loaded, device(), number_format)
    return together * rate([lambda: network.small_alphas(noise(together, loaded.size))], seconds)


def eager(uri: str, threads: int, seconds: float) -> float:
    """Photos/s of the network as it is loaded: float32, nothing folded, in batches."""
    torch.set_num_threads(threads)
    loaded = checkpoint.load(uri)
    model = loaded.model.to(device())
    image_BCHW = torch.rand(LOADER_BATCH, 3, loaded.size, loaded.size, device=device())

    def predict_batch() -> None:
        with torch.inference_mode():
            model(image_BCHW).cpu()

    return LOADER_BATCH * rate([predict_batch], seconds)


def step(uri: str, threads: int, seconds: float) -> float:
    """Samples/s of training steps over one batch that is in memory already."""
    torch.set_num_threads(threads)
    loaded = checkpoint.load(uri)
    trainer = new_trainer(loaded.model)
    batch = {
        "key": np.array(["noise"] * TRAIN_BATCH, object),
        "image": noise(TRAIN_BATCH, loaded.size),
        "alpha": noise(TRAIN_BATCH, loaded.size)[..., 0],
    }
    return TRAIN_BATCH * rate([lambda: trainer.train_epoch([batch])], seconds)


def product(threads: int, seconds: float, number_format: Format) -> float:
    """Operations a second of products of square matrices of these numbers."""
    torch.set_num_threads(threads)
    side = 8192 if device().type == "cuda" else 2048
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[number_format]
    matrix = (100 * torch.rand(side, side, device=device())).to(dtype)
    multiply = torch._int_mm if number_format == "int8" else torch.mm  # which would keep sums in 8 bits
    return 2 * side**3 * rate([lambda: multiply(matrix, matrix)[0, 0].item()], seconds)


def flops(uri: str) -> tuple[float, float]:
    """Of one photo's forward pass, and of one sample's training step, by torch's counter."""
    loaded = checkpoint.load(uri)
    image_BCHW = torch.rand(1, 3, loaded.size, loaded.size)
    counts = []
    for backward in (False, True):
        with FlopCounterMode(display=False) as counter:
            rgba = loaded.model(image_BCHW)
            if backward:
                rgba.sum().backward()
        counts.append(float(counter.get_total_flops()))
    return counts[0], counts[1]


def noise(count: int, size: int) -> Pixels:
    """Pictures (B, S, S, 3)."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def new_trainer(model: UNet) -> Trainer:
    """With the seed's recipe."""
    return Trainer(model, TrainingConfig(), device())


# Stages ---------------------------------------------------------------------------------------------------------------


def stages(photos: Sequence[str], uri: str, seconds: float) -> dict[str, float]:
    """CPU-ms a photo, on one core, of every stage but the network.

    Args:
        photos: URIs of some.
        uri: checkpoint, whose alphas of these photos are refined and encoded.
        seconds: for all stages together.
    """
    torch.set_num_threads(1)
    loaded = checkpoint.load(uri)
    network = Network(loaded)
    predictor = Predictor(network, "guided")
    data = [storage.read_bytes(photo) for photo in photos]
    image = [images.decode_image(encoded) for encoded in data]
    sizes = [(picture.shape[1], picture.shape[0]) for picture in image]
    seen = [squash(picture, *predictor.shape(*size)) for picture, size in zip(image, sizes, strict=True)]
    small = [network.small_alphas(squashed[None])[0] for squashed in seen]
    alpha = [guided(*both, *size) for both, size in zip(zip(small, image, strict=True), sizes, strict=True)]
    cutouts = [cutout(*both) for both in zip(image, alpha, strict=True)]
    matte = [images.encode_png(each) for each in alpha]
    planes = [torch.rand(TRAIN_BATCH, channels, loaded.size, loaded.size) for channels in (3, 1)]
    generator = torch.Generator().manual_seed(0)
    with TemporaryDirectory() as folder:
        calls: dict[str, Callable[[int], object]] = {
            "read": lambda i: storage.read_bytes(photos[i]),
            "decode": lambda i: images.decode_reduced(data[i], predictor.side),
            "squash": lambda i: squash(image[i], *predictor.shape(*sizes[i])),
            "interpolate (--refine none)": lambda i: upsample(small[i], *sizes[i]),
            "refine (--refine guided)": lambda i: guided(small[i], image[i], *sizes[i]),
            "colours of a cutout": lambda i: cutout(image[i], alpha[i]),
            "encode a matte, PNG": lambda i: images.encode_png(alpha[i]),
            "encode a cutout, PNG": lambda i: images.encode_png(cutouts[i]),
            "encode a cutout, WebP": lambda i: images.encode_webp(cutouts[i]),
            "write": lambda i: storage.write_bytes(f"{folder}/{i}.png", matte[i]),
            f"augment (a batch of {TRAIN_BATCH})": lambda _: vary(planes[0], planes[1], loaded.size, generator),
        }
        return {name: cpu_ms(call, len(photos), seconds / len(calls)) for name, call in calls.items()}


def cpu_ms(call: Callable[[int], object], count: int, seconds: float) -> float:
    """Of a call, over items 0 … count - 1 again and again."""
    call(0)
    began, done = time.process_time(), 0
    while (elapsed := time.process_time() - began) < seconds:
        call(done % count)
        done += 1
    return 1000 * elapsed / done


# What a user would write instead --------------------------------------------------------------------------------------


def plain_loop(photos: Sequence[str], uri: str, output: str) -> float:
    """Photos/s of a loop over files with Pillow and torch as they come."""
    model = checkpoint.load(uri)
    began = 0.0
    for number, photo in enumerate(photos):
        if number == 1:  # the first pays for what later ones find ready
            began = time.perf_counter()
        picture, image_CHW = squashed_by_pillow(photo, model.size)
        with torch.inference_mode():
            alpha = alpha_of(model.model.to(device())(image_CHW[None].to(device())))[0, 0]
        save_matte(alpha, picture.size, f"{output}/{number}.png")
    return (len(photos) - 1) / (time.perf_counter() - began)


def loader_loop(photos: Sequence[str], uri: str, output: str) -> float:
    """Photos/s of the same with a DataLoader that decodes in other processes, and batches."""
    loaded = checkpoint.load(uri)
    model = loaded.model.to(device())
    loader = DataLoader(Photos(photos, loaded.size), LOADER_BATCH, num_workers=os.cpu_count() or 1)
    began, done = 0.0, 0
    for images_BCHW, sizes in loader:
        with torch.inference_mode():
            alphas = alpha_of(model(images_BCHW.to(device())))[:, 0].cpu()
        for alpha, width, height in zip(alphas, *sizes, strict=True):
            save_matte(alpha, (int(width), int(height)), f"{output}/{done}.png")
            done += 1
        began = began or time.perf_counter()
    return (len(photos) - LOADER_BATCH) / (time.perf_counter() - began)


def loader_training(data: Pairs, uri: str, seconds: float) -> float:
    """Samples/s of the job's own training step over a DataLoader, after its first batches."""
    loaded = checkpoint.load(uri)
    trainer = new_trainer(loaded.model)
    loader = DataLoader(
        TrainingPairs(data, loaded.size),
        TRAIN_BATCH,
        shuffle=True,
        num_workers=os.cpu_count() or 1,
        persistent_workers=True,
    )
    batches = (dict(zip(("key", "image", "alpha"), map(np.asarray, batch), strict=True)) for batch in endless(loader))
    trainer.train_epoch(itertools.islice(batches, 4))
    epoch = trainer.train_epoch(batches, Plan(seconds=trainer.seconds + seconds))
    return epoch.samples / epoch.seconds


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    """Pass after pass."""
    while True:
        yield from loader


def squashed_by_pillow(photo: str, size: int) -> tuple[Image.Image, torch.Tensor]:
    """The picture, and what a network of this size sees of it."""
    picture = Image.open(photo).convert("RGB")
    squashed = np.array(picture.resize((size, size), Image.Resampling.BILINEAR))
    return picture, torch.from_numpy(squashed).permute(2, 0, 1) / 255


def save_matte(alpha_HW: torch.Tensor, size: tuple[int, int], path: str) -> None:
    """As a PNG of this (width, height), by Pillow's defaults."""
    matte = Image.fromarray((alpha_HW.cpu() * 255).round().byte().numpy())
    matte.resize(size, Image.Resampling.BILINEAR).save(path)


class Photos(Dataset[tuple[torch.Tensor, tuple[int, int]]]):
    """Files, decoded one by one."""

    def __init__(self, photos: Sequence[str], size: int) -> None:
        self._photos, self._size = photos, size

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, tuple[int, int]]:
        picture, image_CHW = squashed_by_pillow(self._photos[index], self._size)
        return image_CHW, picture.size


class TrainingPairs(Dataset[tuple[str, Pixels, Pixels]]):
    """Pairs of the training split, decoded one by one: from their files, or from packed parts that are in memory."""

    def __init__(self, data: Pairs, size: int) -> None:
        rows = data.splits["train"]
        self._encoded: list[tuple[str, Any, Any]]
        if isinstance(rows, PackedRows):
            self._encoded = [(key, *map(io.BytesIO, pair)) for key, *pair in shards.read_pairs(rows.table)]
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
