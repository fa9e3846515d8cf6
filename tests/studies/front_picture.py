"""Study: draw the image at the top of the README: photo, predicted matte, cutout on a new background.

    python jobs/train.py
    python -m tests.studies.front_picture --checkpoint runs/quickstart-synthetic/best --output .github/matte.webp

The people are drawn, and the network has not trained on them: they come from another seed.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from matting.data.synthetic import draw_person
from matting.inference.compose import on_background
from matting.inference.predictor import Predictor
from matting.inference.refine import cutout

PEOPLE = (3, 14, 25)  # of the seed below
SEED = 7
WIDTH, HEIGHT, GAP = 240, 320, 8
BACKGROUND = ((58, 123, 148), (242, 201, 146))  # RGB at the top and at the bottom


def main() -> None:
    """Write the image."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.front_picture")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--people", type=int, nargs="+", default=PEOPLE)
    options = parser.parse_args()
    predictor = Predictor.load(options.checkpoint, "mirrored")
    columns = 3 * len(options.people)
    sheet = Image.new("RGB", (columns * (WIDTH + GAP) - GAP, HEIGHT), "white")
    for place, number in enumerate(options.people):
        photo_HWC, _ = draw_person(SEED, number, WIDTH, HEIGHT)
        (alpha_HW,) = predictor.alphas([photo_HWC])
        composite_HWC = on_background(cutout(photo_HWC, alpha_HW), gradient(WIDTH, HEIGHT))
        panels = photo_HWC, np.repeat(alpha_HW[..., None], 3, axis=2), composite_HWC
        for panel, pixels in enumerate(panels):
            sheet.paste(Image.fromarray(pixels), ((3 * place + panel) * (WIDTH + GAP), 0))
    sheet.save(options.output, quality=88)


def gradient(width: int, height: int) -> np.ndarray:
    """Return the background: uint8 RGB (height, width, 3)."""
    down = np.linspace(0, 1, height)[:, None]
    rows = np.rint((1 - down) * BACKGROUND[0] + down * BACKGROUND[1]).astype(np.uint8)
    return np.repeat(rows[:, None], width, axis=1)


if __name__ == "__main__":
    main()
