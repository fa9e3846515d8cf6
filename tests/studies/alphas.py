"""Study: the error of alphas at full size, by refinement and by number format.

    python -m tests.studies.alphas --pairs PAIRS --checkpoint CHECKPOINT

PAIRS is a folder of raw pairs with soft mattes.
"""

from collections import defaultdict
from typing import get_args

import numpy as np
from scipy.ndimage import gaussian_filter

from matting.data import images
from matting.data.images import Pixels
from matting.data.pairs import find_pairs
from matting.inference import refine
from matting.inference.network import Network
from matting.nn import checkpoint
from matting.nn.precision import NumberFormat
from tests.support.alphas import bicubic, mad
from tests.support.studies import decoded, parser_of


def at_full_size(small_alpha: Pixels, image: Pixels) -> dict[str, Pixels]:
    """Return the alpha at the image's size, by name of the method."""
    height, width = image.shape[:2]
    return {
        "guided": refine.guided(small_alpha, image, width, height),
        "none": refine.upsample(small_alpha, width, height),
        "bicubic": bicubic(small_alpha, width, height),
    }


def main() -> None:
    """Print MAD by source of the small alphas, then the differences of bf16 and int8 from fp32."""
    options = parser_of("alphas").parse_args()
    loaded = checkpoint.load(options.checkpoint)
    networks = {name: Network(loaded, number_format=name) for name in get_args(NumberFormat)}
    errors = defaultdict[tuple[str, str], list[float]](list)
    differences = defaultdict[NumberFormat, list[Pixels]](list)
    pairs = find_pairs(options.pairs).pairs
    for image, alpha in decoded(pairs[len(pairs) // 2 :]):  # the constants of refine.py were chosen on the first half
        squashed = images.resize(image, loaded.size, loaded.size)[None]
        true = images.resize(alpha, loaded.size, loaded.size)
        small = {name: network.small_alphas(squashed)[0] for name, network in networks.items()}
        predicted = small["fp32"]
        sources = {"true": true, "true, blurred": gaussian_filter(true, 0.8), "predicted": predicted}
        for source, small_alpha in sources.items():
            for method, pred_alpha in at_full_size(small_alpha, image).items():
                errors[source, method].append(mad(pred_alpha, alpha) / 255)
        for name, small_alpha in small.items():
            errors["predicted", name].append(mad(at_full_size(small_alpha, image)["none"], alpha) / 255)
            differences[name].append(np.abs(predicted.astype(int) - small_alpha))
    for (source, method), values in errors.items():
        print(f"{source:14} {method:8} MAD {1000 * np.mean(values):6.2f}e-3 over {len(values)} pairs")
    for name in ("bf16", "int8"):
        difference = np.stack(differences[name])
        print(
            f"{name} against fp32: mean {difference.mean():.3f}/255, more than 2/255 in {np.mean(difference > 2):.4%} "
            f"of the pixels, at most {difference.max()}/255"
        )


if __name__ == "__main__":
    main()
