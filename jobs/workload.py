"""What a benchmark measures on: photos, raw and packed pairs, and a checkpoint, on the local disk.

    URIs, or drawn people where none are given -> copies under a scratch folder
    copies   so many photos, as many as a measurement wants

Whether photos come from a collection or are drawn, a measurement sees files of its own.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import torch

from jobs import cluster
from jobs.processes import pool, watch
from matting import checkpoint, images, storage
from matting.photos import find_photos
from matting.synthetic import draw_person
from matting.unet import UNet, UNetConfig

JOBS = Path(__file__).parent
DRAWN_SIZES = {"178x218": (178, 218), "600x800": (600, 800)}  # CelebA's, and AISegment's
DRAWN = 300  # different photos of a size, and different pairs
PAIRS = 500
PACKED_SIDE = 320


@dataclass(frozen=True)
class Workload:
    """What is measured on."""

    photos: dict[str, list[Path]]  # by size
    raw: str
    packed: str
    checkpoint: str
    scratch: Path


def prepare(data: str | None, collections: str | None, checkpoint_uri: str | None, scratch: Path) -> Workload:
    """Photos, pairs and a checkpoint on the local disk.

    Args:
        data: URI of raw pairs, or None for drawn ones.
        collections: URIs of photos with commas between, or None for drawn ones.
        checkpoint_uri: of a checkpoint folder, or None for an untrained network of the seed's shape.
        scratch: folder, emptied, for whatever is made.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    originals = scratch / "originals"
    if collections:
        named = {collection_name(uri): uri for uri in collections.split(",")}
        photos = {name: fetched(uri, originals / name) for name, uri in named.items()}
    else:
        photos = {name: drawn(size, originals / name) for name, size in DRAWN_SIZES.items()}
    raw = cluster.absolute(data) if data else str(drawn_pairs(scratch / "raw"))
    packed = str(scratch / "packed")
    watch([sys.executable, str(JOBS / "pack.py"), f"--pairs={raw}", f"--output={packed}", f"--side={PACKED_SIDE}"])
    if not checkpoint_uri:
        model = untrained(UNetConfig())
        checkpoint_uri = str(scratch / "checkpoint")
        checkpoint.save(checkpoint_uri, model, checkpoint.describe(model, 128, {}, {}), {})
    return Workload(photos, raw, packed, cluster.absolute(checkpoint_uri), scratch)


def collection_name(uri: str) -> str:
    """By which its figures are told from those of others."""
    return uri.rstrip("/").rpartition("/")[2]


def fetched(uri: str, folder: Path) -> list[Path]:
    """Copies of the first photos of a collection."""
    table = find_photos(cluster.absolute(uri), "").table.slice(0, 2 * DRAWN)
    folder.mkdir(parents=True)
    paths = [folder / f"{number}{Path(key).suffix}" for number, key in enumerate(table["key"].to_pylist())]
    for path, photo in zip(paths, table["uri"].to_pylist(), strict=True):
        path.write_bytes(storage.read_bytes(photo))
    return paths


def drawn(size: tuple[int, int], folder: Path) -> list[Path]:
    """Photos of drawn people."""
    folder.mkdir(parents=True)
    paths = [folder / f"{number}.jpg" for number in range(DRAWN)]
    with pool(os.cpu_count() or 1) as processes:
        list(processes.map(draw, range(DRAWN), [size] * DRAWN, paths, [None] * DRAWN))
    return paths


def drawn_pairs(folder: Path) -> Path:
    """Raw pairs of drawn people, as large as AISegment's."""
    pictures, mattes = folder / "images", folder / "mattes"
    pictures.mkdir(parents=True)
    mattes.mkdir()
    names = [f"{number:04d}" for number in range(DRAWN)]
    with pool(os.cpu_count() or 1) as processes:
        list(
            processes.map(
                draw,
                range(DRAWN, 2 * DRAWN),
                [DRAWN_SIZES["600x800"]] * DRAWN,
                [pictures / f"{name}.jpg" for name in names],
                [mattes / f"{name}.png" for name in names],
            )
        )
    for number in range(DRAWN, PAIRS):
        for path in (pictures / f"{names[number - DRAWN]}.jpg", mattes / f"{names[number - DRAWN]}.png"):
            os.link(path, path.with_stem(f"{number:04d}"))
    return folder


def draw(number: int, size: tuple[int, int], picture: Path, matte: Path | None) -> None:
    """One person, as files."""
    image_HWC, alpha_HW = draw_person(0, number, *size)
    picture.write_bytes(images.encode_jpeg(image_HWC, quality=90))
    if matte:
        matte.write_bytes(images.encode_png(alpha_HW))


def untrained(config: UNetConfig, seed: int = 0) -> UNet:
    """A network that knows nothing. Only its BatchNorms have seen noise: in 8-bit integers, features of networks whose
    BatchNorms have seen nothing vanish."""
    torch.manual_seed(seed)
    model = UNet(config)
    with torch.no_grad():
        for _ in range(30):
            model(torch.rand(4, 3, 32, 32))
    return model.eval()


def copies(photos: Sequence[Path], count: int, folder: Path) -> str:
    """So many photos, under names of their own; their bytes are on the disk once."""
    shutil.rmtree(folder, ignore_errors=True)
    for number, photo in enumerate(islice(cycle(photos), count)):
        place = folder / f"{number // 1000:04d}" / f"{number % 1000:03d}{photo.suffix}"
        if number % 1000 == 0:
            place.parent.mkdir(parents=True)
        os.link(photo, place)
    return str(folder)
