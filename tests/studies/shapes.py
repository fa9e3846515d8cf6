"""Study: the error of mattes by the photo's aspect ratio and by the shape of the network's input.

    python -m tests.studies.shapes --pairs PAIRS --checkpoint CHECKPOINT [--split val,train]

Windows of many aspect ratios, with the head in them, are cut from the photos of PAIRS. Each is matted with every input
shape that prediction uses.
"""

from collections import defaultdict

import numpy as np

from matting.data.dataset import PairOptions, open_dataset
from matting.data.images import Pixels
from matting.inference.input_shapes import input_shapes
from matting.inference.network import Network
from matting.inference.refine import squash, upsample
from matting.nn import checkpoint
from tests.support.alphas import mad
from tests.support.studies import parser_of

ASPECTS = (0.45, 0.5, 0.5625, 0.6, 0.667, 0.75, 1.0, 1.1, 1.2, 1.333, 1.5, 1.778, 2.0, 2.4)
HEADROOM = 0.12  # space above the person, as a fraction of a wide window's height


def window(alpha_HW: Pixels, aspect: float) -> tuple[slice, slice]:
    """Return rows and columns of the largest window of this aspect ratio, with the head or the whole person in it."""
    height, width = alpha_HW.shape
    person = alpha_HW > 127
    if aspect > width / height:
        rows = int(width / aspect)
        top = int(np.argmax(person.any(axis=1))) - int(HEADROOM * rows)
        top = min(max(0, top), height - rows)
        return slice(top, top + rows), slice(None)
    columns = int(height * aspect)
    middle = int(np.average(np.arange(width), weights=person.sum(axis=0) + 1e-6))
    left = min(max(0, middle - columns // 2), width - columns)
    return slice(None), slice(left, left + columns)


def main() -> None:
    """Print MAD by aspect ratio of the window and by input shape."""
    parser = parser_of("shapes")
    parser.add_argument("--split", default="val")
    options = parser.parse_args()
    loaded = checkpoint.load(options.checkpoint)
    network = Network(loaded, micro_batch=1)
    shapes = [shape for _, shape in input_shapes(loaded.size, loaded.aspects)]
    errors = defaultdict[tuple[float, tuple[int, int]], list[float]](list)
    pairs = open_dataset(options.pairs, PairOptions())
    chosen = [(split, key) for split in options.split.split(",") for key in pairs.keys[split]]
    for split, key in chosen:
        example = pairs.example(split, key)
        assert example.image is not None
        assert example.alpha is not None
        for aspect in ASPECTS:
            box = window(example.alpha, aspect)
            image_HWC, alpha_HW = np.ascontiguousarray(example.image[box]), example.alpha[box]
            for shape in shapes:
                small_alpha = network.small_alphas(squash(image_HWC, *shape)[None])[0]
                pred_alpha = upsample(small_alpha, image_HWC.shape[1], image_HWC.shape[0])
                errors[aspect, shape].append(mad(pred_alpha, alpha_HW) / 255)
    print("aspect", *(f"{width}×{height}" for width, height in shapes), sep="\t")
    for aspect in ASPECTS:
        means = (1000 * np.mean(errors[aspect, shape]) for shape in shapes)
        print(f"{aspect:g}", *(f"{mean:.1f}" for mean in means), sep="\t")
    print(f"{len(chosen)} photos")


if __name__ == "__main__":
    main()
