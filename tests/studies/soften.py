"""Study: the error of masks against their true mattes, before and after softening.

    python -m tests.studies.soften --pairs PAIRS

PAIRS, raw or packed, has soft mattes. Each matte is made a binary mask, and softened in bands of several widths.
"""

import argparse
from collections import defaultdict

import numpy as np

from matting.data.dataset import PairOptions, open_dataset
from matting.data.soften import soften
from matting.nn.metrics import image_metrics

BANDS = (1, 2, 3, 4, 6, 10)  # pixels


def main() -> None:
    """Print mean MAD, MSE, Grad and Conn of the masks, and of the softened mattes of each band."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.soften")
    parser.add_argument("--pairs", required=True, help="URI of raw or packed pairs")
    options = parser.parse_args()
    scores = defaultdict[str, list[dict[str, float]]](list)
    for rows in open_dataset(options.pairs, PairOptions()).splits.values():
        for example in rows.examples(None):
            mask = np.where(example.alpha >= 128, 255, 0).astype(np.uint8)
            scores["mask"].append(image_metrics(mask, example.alpha))
            for band in BANDS:
                softened = soften(example.image, mask, band)
                scores[f"band of {band}"].append(image_metrics(softened, example.alpha))
    for name, values in scores.items():
        means = "  ".join(
            f"{metric} {np.mean([value[metric] for value in values]):.2f}" for metric in ("mad", "mse", "grad", "conn")
        )
        print(f"{name:10} {means}  over {len(values)} pairs")


if __name__ == "__main__":
    main()
