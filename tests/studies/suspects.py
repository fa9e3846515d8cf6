"""Study: how many swapped mattes are among the training pairs that a run calls most suspicious?

    python -m tests.studies.suspects --pairs PAIRS --output FOLDER [--fraction 0.05] [options of jobs/train.py]

PAIRS is one or more raw datasets, separated by commas. A fraction of the training pairs gets mattes of each other, all
of one size; then the job trains on them, and ranks its training pairs.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from jobs import train
from matting.data.dataset import PairOptions, open_dataset
from matting.data.images import MAX_IMAGE_BYTES, image_size
from matting.data.rows import RawRows
from matting.storage import store
from matting.storage.uri import absolute_uri, absolute_uris


def write_swapped(pairs: str, manifest: Path, fraction: float, seed: int) -> set[str]:
    """Write a manifest of the pairs, in which some training pairs have mattes of others, and return their keys."""
    dataset = open_dataset(absolute_uris(pairs), PairOptions())
    rows = []
    for split, of_split in dataset.splits.items():
        assert isinstance(of_split, RawRows), "give raw pairs"
        rows += [{"split": split, **row} for row in of_split.table.to_pylist()]
    chosen = [row for row in rows if row["split"] == "train"]
    order = np.random.default_rng(seed).permutation(len(chosen))[: round(fraction * len(chosen))]
    by_size: dict[tuple[int, int], list[int]] = {}
    for index in order:
        size = image_size(store.read_bytes(chosen[index]["image_uri"], MAX_IMAGE_BYTES))
        by_size.setdefault(size, []).append(index)
    swapped = set()
    for indices in by_size.values():
        if len(indices) > 1:
            mattes = [chosen[index]["matte_uri"] for index in indices]
            for index, matte in zip(indices, [*mattes[1:], mattes[0]], strict=True):
                chosen[index]["matte_uri"] = matte
                swapped.add(chosen[index]["key"])
    with manifest.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "matte", "key", "split"])
        writer.writerows([row["image_uri"], row["matte_uri"], row["key"], row["split"]] for row in rows)
    return swapped


def main() -> None:
    """Train on pairs with swapped mattes, and print how many of these come first."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.suspects")
    parser.add_argument("--pairs", required=True, help="URIs of raw pairs, separated by commas")
    parser.add_argument("--output", required=True, help="folder for the manifest and the run")
    parser.add_argument("--fraction", type=float, default=0.05, help="fraction of training pairs to swap")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the choice")
    options, training = parser.parse_known_args()
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    manifest = output / "swapped.csv"
    swapped = write_swapped(options.pairs, manifest, options.fraction, options.seed)
    train.main([f"--data={absolute_uri(str(manifest))}", f"--output={output}", "--name=run", *training])
    table = pq.read_table(output / "run/suspects.parquet").to_pylist()
    print(f"{len(swapped)} of {len(table)} training pairs have the matte of another.")
    for name, part in (("twentieth", len(table) // 20), ("tenth", len(table) // 10)):
        found = sum(row["key"] in swapped for row in table[:part])
        print(f"first {name}: {found} of {len(swapped)} found ({found / len(swapped):.0%})")
    by_mad = sorted(table, key=lambda row: -row["mad"])[: len(table) // 10]
    found = sum(row["key"] in swapped for row in by_mad)
    print(f"first tenth by MAD alone: {found} found ({found / len(swapped):.0%})")
    warned = [row["key"] for row in table if row["warning"]]
    found = sum(key in swapped for key in warned)
    print(f"suspicious by content: {found} found ({found / len(swapped):.0%}), and {len(warned) - found} others")


if __name__ == "__main__":
    main()
