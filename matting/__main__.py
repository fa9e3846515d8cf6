"""Cut the person out of one photo, without a cluster.

python -m matting photo.jpg -o cutout.png --checkpoint runs/first/best
"""

import argparse
import sys

from matting.data import images
from matting.data.images import BadImage
from matting.inference.predictor import Predictor
from matting.inference.refine import cutout
from matting.nn.checkpoint import CheckpointError
from matting.storage import store
from matting.storage.errors import StorageError


def main() -> None:
    """Read the photo, predict its alpha and write the cutout; print an error as one line and exit with code 2."""
    parser = argparse.ArgumentParser(prog="python -m matting", description="Cut the person out of a photo.")
    parser.add_argument("photo", help="URI of the photo")
    parser.add_argument("-o", "--output", required=True, help="URI of the cutout to write, an RGBA PNG (*.png)")
    parser.add_argument("--checkpoint", required=True, help="URI of a checkpoint folder")
    options = parser.parse_args()
    if not options.output.lower().endswith(".png"):
        parser.error(f"{options.output} would hold a PNG; name it so, with the suffix .png")
    try:
        # For one photo, start-up takes longer than both passes: the slowest and best way of refining costs little.
        predictor = Predictor.load(options.checkpoint, "mirrored")
        image_HWC = images.decode_image(store.read_bytes(options.photo))
        (alpha_HW,) = predictor.alphas([image_HWC])
        store.write_bytes(options.output, images.encode_png(cutout(image_HWC, alpha_HW)))
    except (BadImage, CheckpointError, StorageError) as error:
        prefix = f"{options.photo}: " if isinstance(error, BadImage) else ""
        print(f"error: {prefix}{error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
