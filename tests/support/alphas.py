"""Simple ways to enlarge alphas and to compare them, beside which the project's own are judged."""

import numpy as np
from PIL import Image

from matting.data.images import Pixels


def bicubic(small_alpha: Pixels, width: int, height: int) -> Pixels:
    """Resize an alpha with Pillow's bicubic filter alone."""
    return np.array(Image.fromarray(small_alpha).resize((width, height), Image.Resampling.BICUBIC))


def mad(pred_alpha: Pixels, true_alpha: Pixels) -> float:
    """Return the mean absolute difference of two alphas, in steps of 1/255."""
    return float(np.abs(pred_alpha.astype(float) - true_alpha).mean())
