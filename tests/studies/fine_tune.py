"""Split AISegment pairs for a study of fine-tuning: 20 to train with, 5 to validate, the rest to score, by sitter.

    python tests/studies/fine_tune.py AISEGMENT pairs.csv

The manifest goes to `pack.py --pairs pairs.csv`. Then train with `--init`, and from scratch, on the packed pairs, and
score both and the starting checkpoint with `evaluate.py`, which takes the test split.
"""

import csv
import sys
from collections import Counter
from collections.abc import Mapping
from itertools import chain, combinations
from pathlib import Path

TRAIN_AND_VAL, VAL = 25, 5


def choose(counts: Mapping[str, int], wanted: int) -> set[str]:
    """Return the fewest sitters, the first by name, whose pairs come nearest to a number."""
    names = sorted(counts)
    groups = chain.from_iterable(combinations(names, size) for size in range(1, len(names)))
    return set(min(groups, key=lambda group: abs(sum(counts[name] for name in group) - wanted)))


def main(root: Path, manifest: Path) -> None:
    """Write the manifest, and print the number of pairs in each split."""
    photos = sorted(path for path in root.glob("clip_img/*/*/*.jpg") if not path.name.startswith("._"))
    sitters = {photo: photo.parts[-3] for photo in photos}
    learned = choose(Counter(sitters.values()), TRAIN_AND_VAL)
    validated = choose(Counter(sitter for sitter in sitters.values() if sitter in learned), VAL)
    rows = []
    for photo, sitter in sitters.items():
        clip = photo.parent.name.replace("clip_", "matting_")
        matte = root / "matting" / sitter / clip / f"{photo.stem}.png"
        split = "val" if sitter in validated else "train" if sitter in learned else "test"
        rows.append([photo.name, photo.resolve(), matte.resolve(), split, sitter])
    with manifest.open("w", newline="") as file:
        csv.writer(file).writerows([["key", "image", "matte", "split", "group"], *rows])
    print(dict(Counter(row[3] for row in rows)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
