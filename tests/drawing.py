"""Collections of drawn people as files, for tests."""

from pathlib import Path

from matting import images
from matting.synthetic import draw_person


def write_folders(root: Path, count: int, size: int, seed: int = 0) -> None:
    """Pairs in the `folders` layout: images/person-000.png, mattes/person-000.png, and so on."""
    (root / "images").mkdir(parents=True)
    (root / "mattes").mkdir()
    for number in range(count):
        image, alpha = draw_person(seed, number, size, size)
        (root / f"images/person-{number:03d}.png").write_bytes(images.encode_png(image))
        (root / f"mattes/person-{number:03d}.png").write_bytes(images.encode_png(alpha))
