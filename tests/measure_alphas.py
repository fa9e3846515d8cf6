"""How good are alphas at full size, and how far are those of other number formats from float32? As in the README.

    python -m tests.measure_alphas --pairs PAIRS --checkpoint CHECKPOINT

PAIRS holds photos with soft mattes. A slow study, not a test.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import get_args

import numpy as np
from scipy.ndimage import gaussian_filter

from matting import checkpoint, images, refine
from matting.devices import Format
from matting.images import Pixels
from matting.pairs import find_pairs
from matting.predictor import Network
from tests.test_refine import bicubic, mad


def at_full_size(small_alpha: Pixels, image: Pixels) -> dict[str, Pixels]:
    """By every way of bringing it there."""
    height, width = image.shape[:2]
    return {
        "guided": refine.guided(small_alpha, image, width, height),
        "none": refine.upsample(small_alpha, width, height),
        "bicubic": bicubic(small_alpha, width, height),
    }


def main() -> None:
    """Print MAD by source of the small alphas, then how far bfloat16 and 8-bit integers are from float32."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--checkpoint", required=True)
    options = parser.parse_args()
    loaded = checkpoint.load(options.checkpoint)
    networks = {each: Network(loaded, number_format=each) for each in get_args(Format)}
    errors = defaultdict[tuple[str, str], list[float]](list)
    apart = defaultdict[Format, list[Pixels]](list)
    pairs = find_pairs(options.pairs).pairs
    for pair in pairs[len(pairs) // 2 :]:  # refine's constants were chosen on the first half
        image = images.decode_image(Path(pair.image_uri).read_bytes())
        alpha = images.decode_alpha(Path(pair.matte_uri).read_bytes())
        squashed = images.resize(image, loaded.size, loaded.size)[None]
        true = images.resize(alpha, loaded.size, loaded.size)
        small = {each: network.small_alphas(squashed)[0] for each, network in networks.items()}
        predicted = small["fp32"]
        sources = {"true": true, "true, blurred": gaussian_filter(true, 0.8), "predicted": predicted}
        for source, small_alpha in sources.items():
            for name, found in at_full_size(small_alpha, image).items():
                errors[source, name].append(mad(found, alpha) / 255)
        for each, alpha_HW in small.items():
            errors["predicted", each].append(mad(at_full_size(alpha_HW, image)["none"], alpha) / 255)
            apart[each].append(np.abs(predicted.astype(int) - alpha_HW))
    for (source, name), values in errors.items():
        print(f"{source:14} {name:8} MAD {1000 * np.mean(values):6.2f}e-3 over {len(values)} pairs")
    for each in ("bf16", "int8"):
        difference = np.stack(apart[each])
        print(
            f"{each} against fp32: mean {difference.mean():.3f}/255, more than 2/255 in {np.mean(difference > 2):.4%} "
            f"of the pixels, at most {difference.max()}/255"
        )


if __name__ == "__main__":
    main()
