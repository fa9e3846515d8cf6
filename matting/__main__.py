"""One photo to a cutout, without a cluster.

python -m matting photo.jpg -o cutout.png --checkpoint runs/first/best
"""

import argparse
import sys

from matting import images, storage
from matting.checkpoint import CheckpointError
from matting.images import BadImage
from matting.predictor import Predictor
from matting.refine import cutout


def main() -> None:
    """Read, predict, write; an error is one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m matting", description="Cut the person out of a photo.")
    parser.add_argument("photo", help="URI of the photo")
    parser.add_argument("-o", "--output", required=True, help="URI of the cutout, an RGBA PNG")
    parser.add_argument("--checkpoint", required=True, help="URI of a checkpoint folder")
    options = parser.parse_args()
    if not options.output.lower().endswith(".png"):
        parser.error(f"{options.output} would hold a PNG; name it so, with the suffix .png")
    try:
        predictor = Predictor.load(options.checkpoint, "mirrored")  # for one photo, starting takes longer than looking
        image_HWC = images.decode_image(storage.read_bytes(options.photo))
        (alpha_HW,) = predictor.alphas([image_HWC])
        storage.write_bytes(options.output, images.encode_png(cutout(image_HWC, alpha_HW)))
    except (BadImage, CheckpointError, storage.StorageError) as error:
        about = f"{options.photo}: " if isinstance(error, BadImage) else ""
        print(f"error: {about}{error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
