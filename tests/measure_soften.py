"""Does softening bring a mask nearer to the true matte? Prints the table of the README.

    python -m tests.measure_soften --pairs PAIRS

PAIRS, raw or packed, has soft mattes. Each is made a mask, and softened in bands of several widths. A slow study, not a
test.
"""

import argparse
from collections import defaultdict

import numpy as np

from matting.collection import PairOptions, open_pairs
from matting.metrics import image_metrics
from matting.soften import soften

BANDS = (1, 2, 3, 4, 6, 10)  # pixels


def main() -> None:
    """Print mean MAD, MSE, Grad and Conn of the masks, and of what each band makes of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", required=True)
    options = parser.parse_args()
    scores = defaultdict[str, list[dict[str, float]]](list)
    for rows in open_pairs(options.pairs, PairOptions()).splits.values():
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
