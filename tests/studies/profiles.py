"""Study: what predictions gain where a photo's colour profile is applied.

    python -m tests.studies.profiles --pairs PAIRS --checkpoint CHECKPOINT

PAIRS is a folder of raw pairs, whose photos are sRGB. Each photo is predicted as it is, and as a phone would store it:
with its numbers in Display P3, once with the profile and once without.
"""

import numpy as np

from matting.data import images
from matting.data.images import Pixels
from matting.data.pairs import find_pairs
from matting.inference.predictor import Predictor
from tests.support.alphas import mad
from tests.support.profiles import P3, SRGB, matrix_of, rgb_profile, srgb_curve, srgb_curve_inverse
from tests.support.studies import decoded, parser_of


def in_p3(image_HWC: Pixels) -> Pixels:
    """Return the numbers in Display P3 of colours in sRGB."""
    linear = srgb_curve(image_HWC / 255) @ matrix_of(SRGB).T @ np.linalg.inv(matrix_of(P3)).T
    return np.rint(255 * srgb_curve_inverse(linear.clip(0, 1))).astype(np.uint8)


def main() -> None:
    """Print the error of each way of storing the photos, and by how much alphas differ from those of sRGB."""
    options = parser_of("profiles").parse_args()
    predictor = Predictor.load(options.checkpoint)
    errors: dict[str, list[float]] = {"sRGB": [], "P3, converted": [], "P3, profile ignored": []}
    shifts: dict[str, list[float]] = {name: [] for name in errors}
    for image, alpha in decoded(find_pairs(options.pairs).pairs):
        numbers = in_p3(image)
        converted = images.decode_image(images.encode_png(numbers, rgb_profile(P3)))
        alphas = predictor.alphas([image, converted, numbers])
        for name, pred_alpha in zip(errors, alphas, strict=True):
            errors[name].append(mad(pred_alpha, alpha) / 255)
            shifts[name].append(mad(pred_alpha, alphas[0]) / 255)
    for name in errors:
        print(
            f"{name:20} MAD {1000 * np.mean(errors[name]):6.2f}e-3, mean shift of alpha "
            f"{1000 * np.mean(shifts[name]):5.2f}e-3, over {len(errors[name])} pairs"
        )


if __name__ == "__main__":
    main()
