"""Masks into mattes: the hard edge of a binary mask becomes the soft one that its photo shows.

image_HWC, mask_HW, both uint8  ->  alpha_HW, uint8

Most public sets of people have binary masks, whose hair is a solid shape; a network learns from them that hair is one.
Needs the extra "soften". Knows no files.
"""

import numpy as np

from matting.images import Pixels

GREY = (8, 247)  # between these a pixel is neither clear nor solid
GREY_AN_EDGE = 1.5  # grey pixels for each pixel of the edge: shrunk masks have 1.0-1.4, shrunk mattes 1.8-5


def is_mask(alpha_HW: Pixels) -> bool:
    """Whether a matte is a mask: hardly a pixel is grey, but those that shrinking leaves along the edge."""
    grey = np.count_nonzero((alpha_HW > GREY[0]) & (alpha_HW < GREY[1]))
    inside = alpha_HW >= 128
    edge = np.count_nonzero(inside[1:] != inside[:-1]) + np.count_nonzero(inside[:, 1:] != inside[:, :-1])
    return bool(grey <= GREY_AN_EDGE * edge)


def soften(image_HWC: Pixels, mask_HW: Pixels, pixels: int) -> Pixels:
    """Alpha by closed-form matting (Levin, Lischinski and Weiss, CVPR 2006) in a band along the mask's edge.

    Args:
        image_HWC: uint8 (H, W, 3).
        mask_HW: uint8 (H, W), solid from 128 on.
        pixels: on either side of the edge, where alpha is found anew; farther away it is the mask's.

    Returns:
        uint8 (H, W). The mask as it is, if all of it is clear or solid, or lies within the band.

    Raises:
        ImportError: pymatting is not installed; the message says what to install.
    """
    try:
        from pymatting import estimate_alpha_cf
    except ImportError as error:
        raise ImportError('Softening masks needs pymatting: pip install "matting[soften]".') from error
    from scipy import ndimage

    inside = mask_HW >= 128
    # To the nearest pixel on the other side, in pixels.
    distance = np.where(inside, ndimage.distance_transform_edt(inside), ndimage.distance_transform_edt(~inside))
    known = distance > pixels
    if inside.all() or not inside.any() or not (known & inside).any() or not (known & ~inside).any():
        return mask_HW
    trimap = np.where(known, inside.astype(float), 0.5)
    alpha: Pixels = np.rint(estimate_alpha_cf(image_HWC / 255, trimap) * 255).astype(np.uint8)
    return alpha
