"""Datasets of drawn people, written as files."""

from pathlib import Path

from matting.data import images
from matting.data.synthetic import draw_person


def write_folders(root: Path, count: int, size: int, seed: int = 0) -> None:
    """Write `count` square pairs in the `folders` layout: images/person-000.png, mattes/person-000.png, ..."""
    (root / "images").mkdir(parents=True)
    (root / "mattes").mkdir()
    for number in range(count):
        image, alpha = draw_person(seed, number, size, size)
        (root / f"images/person-{number:03d}.png").write_bytes(images.encode_png(image))
        (root / f"mattes/person-{number:03d}.png").write_bytes(images.encode_png(alpha))
