"""Turn binary masks into mattes: the hard edge of a mask becomes the soft edge that its photo shows.

    image_HWC, mask_HW, both uint8  ->  alpha_HW, uint8

Most public datasets of people have binary masks, in which hair is a solid shape; a network trained on them predicts
such shapes. This module needs the extra "soften".
"""

import numpy as np

from matting.data.images import Pixels

GREY_RANGE = (8, 247)  # alpha values between these are soft: neither transparent nor opaque
MAX_GREY_PER_EDGE = 1.5  # soft pixels per pixel of the edge: shrunk masks have 1.0-1.4, shrunk mattes 1.8-5


def is_mask(alpha_HW: Pixels) -> bool:
    """Return whether a matte is a binary mask: it has no more soft pixels than shrinking a mask leaves at its edge."""
    grey = np.count_nonzero((alpha_HW > GREY_RANGE[0]) & (alpha_HW < GREY_RANGE[1]))
    inside = alpha_HW >= 128
    edge = np.count_nonzero(inside[1:] != inside[:-1]) + np.count_nonzero(inside[:, 1:] != inside[:, :-1])
    return bool(grey <= MAX_GREY_PER_EDGE * edge)


def soften(image_HWC: Pixels, mask_HW: Pixels, pixels: int) -> Pixels:
    """Estimate alpha in a band along a mask's edge by closed-form matting.

    Args:
        image_HWC: Photo, uint8 (H, W, 3).
        mask_HW: Mask, uint8 (H, W), opaque from 128 on.
        pixels: Width of the band on either side of the edge; outside of it the alpha is the mask's.

    Returns:
        Alpha, uint8 (H, W). The mask itself if it has no edge, or no foreground or background outside of the band.

    Raises:
        ImportError: pymatting is not installed; the message says what to install.

    Literature: Levin, Lischinski and Weiss, A Closed Form Solution to Natural Image Matting, CVPR 2006.
    """
    try:
        from pymatting import estimate_alpha_cf
    except ImportError as error:
        raise ImportError('Softening masks needs pymatting: pip install "matting[soften]".') from error
    from scipy import ndimage

    inside = mask_HW >= 128
    # Distance to the nearest pixel on the other side of the edge.
    distance = np.where(inside, ndimage.distance_transform_edt(inside), ndimage.distance_transform_edt(~inside))
    known = distance > pixels
    if inside.all() or not inside.any() or not (known & inside).any() or not (known & ~inside).any():
        return mask_HW
    trimap = np.where(known, inside.astype(float), 0.5)
    alpha_HW: Pixels = np.rint(estimate_alpha_cf(image_HWC / 255, trimap) * 255).astype(np.uint8)
    return alpha_HW
