"""Study: the error of mattes of people who are far away.

    python -m tests.studies.far --pairs PAIRS --backgrounds PHOTOS --checkpoint CHECKPOINT [--split train,val]

The people of PAIRS, in their own colors, are composited on PHOTOS without people, at the lower edge of the image: at
their full size, and smaller.
"""

import numpy as np
import torch

from matting.data import backgrounds, images
from matting.data.dataset import PairOptions, open_dataset
from matting.data.images import Pixels
from matting.data.rows import Example
from matting.inference.predictor import Predictor
from matting.inference.refine import cutout
from matting.nn.metrics import batch_metrics
from tests.support.studies import parser_of

SCALES = (1.0, 0.8, 0.6, 0.45, 0.3)  # side of the pair's photo, as a fraction of the composed image's side


def compose(example: Example, scale: float, scene_HWC: Pixels, draw: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Return image_HWC and alpha_HW of the person at a random place of the lower edge of a crop of the scene."""
    assert example.image is not None
    assert example.alpha is not None
    height, width = example.alpha.shape
    rows, columns = round(height / scale), round(width / scale)
    side = max(rows, columns)
    top, left = draw.integers(side - rows + 1), draw.integers(side - columns + 1)
    image_HWC = images.resize(scene_HWC, side, side)[top : top + rows, left : left + columns].astype(float)
    alpha_HW = np.zeros((rows, columns), np.uint8)
    left = draw.integers(columns - width + 1)
    box = slice(rows - height, rows), slice(left, left + width)
    alpha_HW[box] = example.alpha
    opacity_HW1 = example.alpha[..., None] / 255
    person_HWC = cutout(example.image, example.alpha)[..., :3]
    image_HWC[box] = opacity_HW1 * person_HWC + (1 - opacity_HW1) * image_HWC[box]
    return np.rint(image_HWC).astype(np.uint8), alpha_HW


def matte(predictor: Predictor, image_HWC: Pixels) -> Pixels:
    """Return alpha_HW as jobs/predict.py would, from a JPEG file decoded at a reduced size."""
    photo = images.decode_photo(images.encode_jpeg(image_HWC, quality=95), predictor.min_side)
    reduced_HWC, width, height = photo.image_HWC, photo.width, photo.height
    looks = predictor.predict_small([reduced_HWC], [(width, height)])
    return predictor.enlarge(looks, [reduced_HWC], [(width, height)])[0]


def main() -> None:
    """Print MAD and IoU by scale."""
    parser = parser_of("far")
    parser.add_argument("--backgrounds", required=True)
    parser.add_argument("--split", default="val")
    options = parser.parse_args()
    predictor = Predictor.load(options.checkpoint, "none")
    scenes, _ = backgrounds.decode(backgrounds.choose(options.backgrounds, seed=0), 512)
    pairs = open_dataset(options.pairs, PairOptions())
    examples = [example for split in options.split.split(",") for example in pairs.splits[split].examples(None)]
    print("scale", "MAD ×1e-3", "IoU", sep="\t")
    for scale in SCALES:
        draw = np.random.default_rng(0)
        scores = []
        for example in examples:
            image_HWC, alpha_HW = compose(example, scale, scenes[draw.integers(len(scenes))], draw)
            pred, true = (torch.from_numpy(a)[None] / 255 for a in (matte(predictor, image_HWC), alpha_HW))
            scores.append([float(batch_metrics(pred, true)[name]) for name in ("mad", "iou")])
        print(f"{scale:g}", *(f"{mean:.3g}" for mean in np.mean(scores, axis=0)), sep="\t")
    print(f"{len(examples)} photos")


if __name__ == "__main__":
    main()
