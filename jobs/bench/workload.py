"""Inputs of the benchmark on the local disk: photos, raw and packed pairs, and a checkpoint.

    URIs, or drawn people where none are given -> files under a scratch folder
    link_copies   photos -> a folder of as many photos as a measurement wants

Every measurement reads files of its own, whether photos come from a collection or are drawn.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import torch

from jobs.bench.processes import fresh_pool, monitor
from jobs.common.machine import usable_cores
from matting.data import images
from matting.data.photos import find_photos
from matting.data.synthetic import draw_person
from matting.nn import checkpoint
from matting.nn.unet import UNet, UNetConfig
from matting.storage import store
from matting.storage.uri import absolute_uri

JOBS = Path(__file__).parents[1]
DRAWN_SIZES = {"178x218": (178, 218), "600x800": (600, 800)}  # the photo sizes of CelebA and of AISegment
DRAWN_COUNT = 300  # different photos of each size, and different pairs
FETCHED_COUNT = 600  # photos taken from a collection of the user's
PAIR_COUNT = 500
PACKED_SIDE = 320  # pixels


@dataclass(frozen=True)
class Workload:
    """Local inputs of all measurements."""

    photos: dict[str, list[Path]]  # by name of the collection
    raw: str  # URI of raw pairs
    packed: str  # URI of the same pairs, packed
    checkpoint: str  # URI of a checkpoint folder
    scratch: Path  # folder for whatever a measurement makes


def prepare(data: str | None, collections: str | None, checkpoint_uri: str | None, scratch: Path) -> Workload:
    """Put photos, pairs and a checkpoint on the local disk.

    Args:
        data: URI of raw pairs, or None for drawn ones.
        collections: URIs of photo folders with commas between, or None for drawn ones.
        checkpoint_uri: URI of a checkpoint folder, or None for an untrained network of the baseline's shape.
        scratch: Folder for all files of the benchmark; emptied first.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    originals = scratch / "originals"
    if collections:
        named = {collection_name(uri): uri for uri in collections.split(",")}
        photos = {name: fetch_photos(uri, originals / name) for name, uri in named.items()}
    else:
        photos = {name: draw_photos(size, originals / name) for name, size in DRAWN_SIZES.items()}
    raw = absolute_uri(data) if data else str(draw_raw_pairs(scratch / "raw"))
    uri = absolute_uri(checkpoint_uri) if checkpoint_uri else save_untrained(UNetConfig(), 128, scratch / "checkpoint")
    return Workload(photos, raw, pack(raw, scratch / "packed"), uri, scratch)


def pack(raw: str, folder: Path) -> str:
    """Pack raw pairs into a new folder, and return its URI."""
    monitor([sys.executable, str(JOBS / "pack.py"), f"--pairs={raw}", f"--output={folder}", f"--side={PACKED_SIDE}"])
    return str(folder)


def save_untrained(config: UNetConfig, size: int, folder: Path) -> str:
    """Save an untrained network as a checkpoint in a new folder, and return its URI."""
    model = untrained_unet(config)
    checkpoint.save(str(folder), model, checkpoint.describe(model, size, {}, {}), {})
    return str(folder)


def collection_name(uri: str) -> str:
    """Return the name of a collection in the results table: the last part of its URI."""
    return uri.rstrip("/").rpartition("/")[2]


def fetch_photos(uri: str, folder: Path) -> list[Path]:
    """Copy the first photos of a collection into a new folder."""
    table = find_photos(absolute_uri(uri), "").table.slice(0, FETCHED_COUNT)
    folder.mkdir(parents=True)
    paths = [folder / f"{number}{Path(key).suffix}" for number, key in enumerate(table["key"].to_pylist())]
    for path, photo in zip(paths, table["uri"].to_pylist(), strict=True):
        path.write_bytes(store.read_bytes(photo))
    return paths


def draw_photos(size: tuple[int, int], folder: Path, count: int = DRAWN_COUNT) -> list[Path]:
    """Draw photos of people, of this (width, height), into a new folder."""
    folder.mkdir(parents=True)
    paths = [folder / f"{number}.jpg" for number in range(count)]
    with fresh_pool(usable_cores()) as pool:
        list(pool.map(write_drawn_pair, range(count), [size] * count, paths, [None] * count))
    return paths


def draw_raw_pairs(folder: Path, drawn: int = DRAWN_COUNT, count: int = PAIR_COUNT) -> Path:
    """Draw raw pairs, as large as AISegment's, into a new folder. Pairs after the first `drawn` are links to those."""
    image_folder, matte_folder = folder / "images", folder / "mattes"
    image_folder.mkdir(parents=True)
    matte_folder.mkdir()
    names = [f"{number:04d}" for number in range(drawn)]
    with fresh_pool(usable_cores()) as pool:
        list(
            pool.map(
                write_drawn_pair,
                range(DRAWN_COUNT, DRAWN_COUNT + drawn),
                [DRAWN_SIZES["600x800"]] * drawn,
                [image_folder / f"{name}.jpg" for name in names],
                [matte_folder / f"{name}.png" for name in names],
            )
        )
    for number in range(drawn, count):
        name = names[number % drawn]
        for path in (image_folder / f"{name}.jpg", matte_folder / f"{name}.png"):
            os.link(path, path.with_stem(f"{number:04d}"))
    return folder


def write_drawn_pair(number: int, size: tuple[int, int], image: Path, matte: Path | None) -> None:
    """Draw person `number` of this (width, height) and write the image as JPEG and, if a path is given, the matte."""
    image_HWC, alpha_HW = draw_person(0, number, *size)
    image.write_bytes(images.encode_jpeg(image_HWC, quality=90))
    if matte:
        matte.write_bytes(images.encode_png(alpha_HW))


def untrained_unet(config: UNetConfig, seed: int = 0) -> UNet:
    """Return a network with random weights, whose BatchNorms have seen noise.

    Without noise, the features of an untrained network vanish in 8-bit integers.
    """
    torch.manual_seed(seed)
    model = UNet(config)
    with torch.no_grad():
        for _ in range(30):
            model(torch.rand(4, 3, 32, 32))
    return model.eval()


def link_copies(photos: Sequence[Path], count: int, folder: Path) -> str:
    """Fill a folder with `count` photos, each with a name of its own. They are hard links, so they take no room."""
    shutil.rmtree(folder, ignore_errors=True)
    for number, photo in enumerate(islice(cycle(photos), count)):
        link = folder / f"{number // 1000:04d}" / f"{number % 1000:03d}{photo.suffix}"
        if number % 1000 == 0:
            link.parent.mkdir(parents=True)
        os.link(photo, link)
    return str(folder)
