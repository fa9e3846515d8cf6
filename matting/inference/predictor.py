"""The way from photos of any size to their alphas, in two passes of the network and an upsampling.

    image_HWC (uint8) -> squash to an input shape -> first pass: small alpha of the whole photo
      -> second pass, where people are small: small alpha of the box around them
      -> upsample, guided by the photo -> alpha_HW (uint8) at the photo's size

The predictor reads no photo files; the only URI that it takes is the one of its checkpoint.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple, Protocol

import numpy as np
from PIL import Image

from matting.data.images import Pixels, from_pillow
from matting.inference.input_shapes import Shape, input_shape
from matting.inference.network import Network, SmallAlphas
from matting.inference.refine import DETAIL, guided, squash, upsample
from matting.nn import checkpoint

Refine = Literal["none", "guided", "mirrored"]
Box = tuple[slice, slice]  # rows and columns of a photo
PredictorStage = Literal["network", "refine"]
During = Callable[[PredictorStage], AbstractContextManager[None]]  # counts the time of a ``with`` block

# The second pass is for photos whose people all lie in a box smaller than this fraction of the photo.
SECOND_PASS_MAX_FRACTION = 0.5
# The second pass widens the box on each side by this fraction of the box's height or width.
SECOND_PASS_MARGIN = 0.1
# Rows and columns belong to the box if more than this fraction of their pixels is a person; fewer pixels are noise.
SECOND_PASS_MIN_PERSON = 0.01


class SmallPrediction(NamedTuple):
    """A small alpha, and the part of the photo that it covers.

    Attributes:
        small_alpha_HW: Alpha at one of the network's input shapes, uint8.
        box: Rows and columns of the photo that the alpha covers; everything outside is background.
    """

    small_alpha_HW: Pixels
    box: Box


class PhotoPredictor(Protocol):
    """Interface of predictors of alphas: a :class:`Predictor`, or one that leaves the work to another process."""

    @property
    def min_side(self) -> int:
        """Shorter side, in pixels, below which a reduced photo would change its alpha noticeably."""

    def batch_key(self, width: int, height: int) -> Shape | None:
        """Return what photos must have in common to share a batch, for a photo's size."""

    def timed_alphas(self, images_HWC: Sequence[Pixels], sizes: Sequence[Shape], during: During) -> list[Pixels]:
        """Predict alphas at the photos' own sizes."""


class Predictor:
    """Predicts alphas for photos of any size.

    Args:
        network: Network that predicts small alphas.
        refine: Way from small alphas to the photo's size. "none" interpolates; "guided" moves soft edges to where the
            photo's colours change; "mirrored" is guided, with mirror augmentation: the mean of the alphas of the photo
            and of its mirror image, at twice the network's time.

    Attributes:
        min_side: Shorter side, in pixels, below which a reduced photo would change its alpha noticeably.
    """

    def __init__(self, network: SmallAlphas, refine: Refine = "none") -> None:
        self._network = network
        self._refine = refine
        self.min_side = round(DETAIL * network.size)

    @classmethod
    def load(cls, uri: str, refine: Refine = "guided") -> "Predictor":
        """Return the predictor of a checkpoint folder, on the CPU.

        Raises:
            CheckpointError, StorageError: The folder is not a checkpoint, or cannot be read.
        """
        return cls(Network(checkpoint.load(uri)), refine)

    def __call__(self, photo: Image.Image) -> Image.Image:
        """Predict a photo's alpha: PIL image -> PIL image of mode "L", upright, limited by the photo's own opacity.

        Raises:
            BadImage: The photo has floating-point or 32-bit pixels, or is a TIFF that Pillow decodes wrong.
        """
        decoded = from_pillow(photo)
        return Image.fromarray(decoded.limit(self.alphas([decoded.image_HWC])[0]))

    def alphas(self, images_HWC: Sequence[Pixels]) -> list[Pixels]:
        """Predict alphas at each photo's own size: uint8 (H, W, 3) each -> uint8 (H, W) each."""
        sizes = [(image.shape[1], image.shape[0]) for image in images_HWC]
        return self.timed_alphas(images_HWC, sizes, lambda _: nullcontext())

    def timed_alphas(self, images_HWC: Sequence[Pixels], sizes: Sequence[Shape], during: During) -> list[Pixels]:
        """Predict alphas of photos that may be reduced, and count the time of both halves.

        Args:
            images_HWC, sizes: As in :meth:`predict_small`.
            during: Function that counts the time of a ``with`` block for a stage.
        """
        with during("network"):
            small = self.predict_small(images_HWC, sizes)
        with during("refine"):
            return self.enlarge(small, images_HWC, sizes)

    def batch_key(self, width: int, height: int) -> Shape | None:
        """Return what photos must have in common to share a batch: their input shape."""
        return self.input_shape(width, height)

    def input_shape(self, width: int, height: int) -> Shape:
        """Return the input shape that a photo of this size is squashed to."""
        return input_shape(width / height, self._network.size, self._network.aspects)

    def predict_small(self, images_HWC: Sequence[Pixels], sizes: Sequence[Shape]) -> list[SmallPrediction]:
        """Run the first half of :meth:`alphas`: both passes of the network.

        Args:
            images_HWC: Photos, uint8 (H, W, 3) each, at their own sizes or reduced to no less than ``min_side`` pixels
                a side.
            sizes: Photos' own sizes, (width, height) in pixels.
        """
        predictions = [
            SmallPrediction(alpha, (slice(0, image.shape[0]), slice(0, image.shape[1])))
            for alpha, image in zip(self._predict_whole(images_HWC, sizes), images_HWC, strict=True)
        ]
        boxes = {index: box for index, small in enumerate(predictions) if (box := second_pass_box(small))}
        crops = [images_HWC[index][box] for index, box in boxes.items()]
        alphas = self._predict_whole(crops, [(crop.shape[1], crop.shape[0]) for crop in crops])
        for (index, box), alpha in zip(boxes.items(), alphas, strict=True):
            predictions[index] = SmallPrediction(alpha, box)
        return predictions

    def enlarge(
        self, predictions: Sequence[SmallPrediction], images_HWC: Sequence[Pixels], sizes: Sequence[Shape]
    ) -> list[Pixels]:
        """Run the second half of :meth:`alphas`: bring small alphas to the photos' own sizes, uint8 (H, W) each.

        Args:
            predictions: Results of :meth:`predict_small` for the same photos.
            images_HWC, sizes: Same photos and sizes as in :meth:`predict_small`.
        """
        return [
            self._enlarge_one(small, image, *size)
            for small, image, size in zip(predictions, images_HWC, sizes, strict=True)
        ]

    def _predict_whole(self, images_HWC: Sequence[Pixels], sizes: Sequence[Shape]) -> list[Pixels]:
        """Predict a small alpha of each whole image; with mirror augmentation, the mean of two."""
        squashed = [squash(image, *self.input_shape(*size)) for image, size in zip(images_HWC, sizes, strict=True)]
        if self._refine != "mirrored":
            return self._predict_squashed(squashed)
        mirrored = (np.ascontiguousarray(image[:, ::-1]) for image in squashed)
        alphas = self._predict_squashed([*squashed, *mirrored])
        both = zip(alphas[: len(squashed)], alphas[len(squashed) :], strict=True)
        return [np.rint(np.mean([alpha, mirrored[:, ::-1]], axis=0)).astype(np.uint8) for alpha, mirrored in both]

    def _predict_squashed(self, squashed_HWC: Sequence[Pixels]) -> list[Pixels]:
        """Predict small alphas of images that have an input shape, in one call of the network for each shape."""
        shapes = [squashed.shape for squashed in squashed_HWC]
        found: dict[int, Pixels] = {}
        for shape in dict.fromkeys(shapes):
            indices = [index for index, own in enumerate(shapes) if own == shape]
            alphas = self._network.small_alphas(np.stack([squashed_HWC[index] for index in indices]))
            found |= zip(indices, alphas, strict=True)
        return [found[index] for index in range(len(shapes))]

    def _enlarge_one(self, small: SmallPrediction, image_HWC: Pixels, width: int, height: int) -> Pixels:
        rows, columns = small.box
        box = _scale_slice(rows, height / image_HWC.shape[0]), _scale_slice(columns, width / image_HWC.shape[1])
        alpha_HW = np.zeros((height, width), np.uint8)
        box_height, box_width = alpha_HW[box].shape
        if self._refine != "none":
            alpha_HW[box] = guided(small.small_alpha_HW, image_HWC[small.box], box_width, box_height)
        else:
            alpha_HW[box] = upsample(small.small_alpha_HW, box_width, box_height)
        return alpha_HW


def second_pass_box(small: SmallPrediction) -> Box | None:
    """Return the box for the second pass: around all people of a whole photo's small alpha, and a margin.

    Returns:
        Rows and columns of the photo; None if there is nobody, or the people take up so much of the photo that a
        second pass would not help.
    """
    inside_HW = small.small_alpha_HW >= 128
    rows, columns = (np.flatnonzero(inside_HW.mean(axis) > SECOND_PASS_MIN_PERSON) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return None
    spans = [(indices[0].item(), indices[-1].item() + 1) for indices in (rows, columns)]
    return box_of_people(spans[0], spans[1], inside_HW.shape, (small.box[0].stop, small.box[1].stop))


def box_of_people(
    rows: Sequence[int], columns: Sequence[int], small_shape: Sequence[int], shape: Sequence[int]
) -> Box | None:
    """Return the box for the second pass, as :func:`second_pass_box` does.

    Args:
        rows, columns: First index of people in a small alpha, and the one behind the last; in the wrong order if there
            is nobody.
        small_shape: Height and width of the small alpha.
        shape: Height and width of the photo.
    """
    area = max(0, rows[1] - rows[0]) * max(0, columns[1] - columns[0])
    if not 0 < area < SECOND_PASS_MAX_FRACTION * small_shape[0] * small_shape[1]:
        return None
    return (
        _span_with_margin(rows[0], rows[1], shape[0] / small_shape[0], shape[0]),
        _span_with_margin(columns[0], columns[1], shape[1] / small_shape[1], shape[1]),
    )


def _span_with_margin(start: int, stop: int, scale: float, length: int) -> slice:
    """Return a span of rows (or columns) and a margin on both sides, in pixels of the photo.

    Args:
        start, stop: First row or column of the small alpha, and the one behind the last.
        scale: Number of the photo's rows or columns for each of the small alpha.
        length: Number of the photo's rows or columns, which bounds the span.
    """
    margin = SECOND_PASS_MARGIN * (stop - start)
    return slice(max(0, math.floor((start - margin) * scale)), min(length, math.ceil((stop + margin) * scale)))


def _scale_slice(part: slice, scale: float) -> slice:
    """Convert rows or columns of a reduced photo to those of the photo itself, which has ``scale`` times as many."""
    return slice(round(part.start * scale), round(part.stop * scale))
