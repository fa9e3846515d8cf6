"""How well are people matted who are far away? Prints a column of a table of jobs/configs/README.md.

    python -m tests.measure_far --pairs PAIRS --backgrounds PHOTOS --checkpoint CHECKPOINT [--split train,val]

The people of PAIRS, in their own colours, are set before PHOTOS without people: as large as they are, and smaller, on
the lower edge of the picture. A slow study, not a test.
"""

import argparse

import numpy as np
import torch

from matting import backgrounds, images
from matting.collection import Example, PairOptions, open_pairs
from matting.images import Pixels
from matting.metrics import batch_metrics
from matting.predictor import Predictor
from matting.refine import cutout

SHARES = (1.0, 0.8, 0.6, 0.45, 0.3)  # of each side of the picture that the pair's photo takes


def compose(example: Example, share: float, scene_HWC: Pixels, draw: np.random.Generator) -> tuple[Pixels, Pixels]:
    """image_HWC and alpha_HW of the person somewhere on the lower edge of a part of the scene."""
    assert example.image is not None
    assert example.alpha is not None
    height, width = example.alpha.shape
    rows, columns = round(height / share), round(width / share)
    side = max(rows, columns)
    top, left = draw.integers(side - rows + 1), draw.integers(side - columns + 1)
    image_HWC = images.resize(scene_HWC, side, side)[top : top + rows, left : left + columns].astype(float)
    alpha_HW = np.zeros((rows, columns), np.uint8)
    left = draw.integers(columns - width + 1)
    place = slice(rows - height, rows), slice(left, left + width)
    alpha_HW[place] = example.alpha
    opacity_HW1 = example.alpha[..., None] / 255
    person_HWC = cutout(example.image, example.alpha)[..., :3]
    image_HWC[place] = opacity_HW1 * person_HWC + (1 - opacity_HW1) * image_HWC[place]
    return np.rint(image_HWC).astype(np.uint8), alpha_HW


def matte(predictor: Predictor, image_HWC: Pixels) -> Pixels:
    """alpha_HW of the picture as a JPEG file, which jobs/predict.py decodes no finer than it needs."""
    reduced_HWC, width, height = images.decode_reduced(images.encode_jpeg(image_HWC, quality=95), predictor.side)
    looks = predictor.looks([reduced_HWC], [(width, height)])
    return predictor.enlarged(looks, [reduced_HWC], [(width, height)])[0]


def main() -> None:
    """Print MAD and IoU by how much of the picture the photo takes."""
    parser = argparse.ArgumentParser()
    for name in ("pairs", "backgrounds", "checkpoint"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--split", default="val")
    options = parser.parse_args()
    predictor = Predictor.load(options.checkpoint, "none")
    scenes, _ = backgrounds.decode(backgrounds.choose(options.backgrounds, seed=0), 512)
    pairs = open_pairs(options.pairs, PairOptions())
    examples = [example for split in options.split.split(",") for example in pairs.splits[split].examples(None)]
    print("share", "MAD ×1e-3", "IoU", sep="\t")
    for share in SHARES:
        draw = np.random.default_rng(0)
        scores = []
        for example in examples:
            image_HWC, alpha_HW = compose(example, share, scenes[draw.integers(len(scenes))], draw)
            found, true = (torch.from_numpy(a)[None] / 255 for a in (matte(predictor, image_HWC), alpha_HW))
            scores.append([float(batch_metrics(found, true)[name]) for name in ("mad", "iou")])
        print(f"{share:g}", *(f"{mean:.3g}" for mean in np.mean(scores, axis=0)), sep="\t")
    print(f"{len(examples)} photos")


if __name__ == "__main__":
    main()
