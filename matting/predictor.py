"""A trained network, applied: photos of any size -> their alphas.

    image_HWC uint8 -> squashed to the network's input -> micro-batches of one fixed size -> small alpha
      -> people who are small in the photo once more, from closer -> alpha at H × W

The input is the square of training, or, for photos much wider or taller than those of training, a rectangle of no more
pixels, so that people come in about the proportions in which the network learned them.

Knows no picture files; of URIs, only that of its checkpoint.
"""

import copy
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from matting import checkpoint
from matting.checkpoint import Aspects, Checkpoint
from matting.devices import Format, fastest_format, pictures_at_once, to_device
from matting.images import Pixels, to_rgb
from matting.int8 import Int8UNet
from matting.refine import DETAIL, guided, squash, upsample
from matting.unet import UNet, alpha_of

Refine = Literal["none", "guided", "mirrored"]
Shape = tuple[int, int]  # (width, height) in pixels
Box = tuple[slice, slice]  # rows and columns of a photo

# Photos so much wider than the widest that was learned from, or so much taller than the tallest, are seen in another
# shape, and those that are _FARTHER from it by that again in yet another. In the square, people of a wide photo are
# made thin, which networks mind sooner than people made wide.
_WIDER = 1.2
_TALLER = 1.4
_FARTHER = 7 / 6

# If all that is taken for people lies in a box of less than _CLOSER of the photo, the network looks again, at the box
# alone, widened on each side by _MARGIN of its own height or width. Rows and columns with no more than _STRAY of their
# pixels taken for a person do not count.
_CLOSER = 0.5
_MARGIN = 0.1
_STRAY = 0.01


class SmallAlphas(Protocol):
    """Whatever predicts small alphas: a Network here, or one in another process."""

    size: int  # pixels a side, in training
    aspects: Aspects | None  # of the photos that it learned from, if that is known

    def small_alphas(self, squashed_BHWC: Pixels) -> Pixels:
        """uint8 (B, H, W, 3) -> uint8 (B, H, W); at their best for about size × size pixels."""


class Network:
    """A trained network, made ready to predict.

    Args:
        loaded: the checkpoint.
        device: to run on.
        number_format: of the convolutions, by default the fastest there; see :func:`to_bf16` and
            :class:`~matting.int8.Int8UNet`, which is for CPUs alone.
        micro_batch: pictures the network sees at once; by default as many as are fastest there. Always as many, the
            last batch padded, so that a photo's alpha does not depend on its neighbours.
    """

    def __init__(
        self,
        loaded: Checkpoint,
        device: torch.device | None = None,
        number_format: Format | None = None,
        micro_batch: int | None = None,
    ) -> None:
        self.size, self.aspects = loaded.size, loaded.aspects
        self._device = device or torch.device("cpu")
        number_format = number_format or fastest_format(self._device)
        self._micro_batch = micro_batch or pictures_at_once(self._device, number_format)
        self._network: UNet | Int8UNet
        if number_format == "int8":
            self._network = Int8UNet(loaded.model)
        else:
            network = folded(loaded.model)
            if number_format == "bf16":
                network = to_bf16(network)
            self._network = network.to(self._device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def small_alphas(self, squashed_BHWC: Pixels) -> Pixels:
        """Small alphas: uint8 (B, H, W, 3) -> uint8 (B, H, W)."""
        count = len(squashed_BHWC)
        padding = -count % self._micro_batch
        padded = np.concatenate([squashed_BHWC, np.zeros((padding, *squashed_BHWC.shape[1:]), np.uint8)])
        alphas = []
        with torch.inference_mode():
            for chunk in torch.split(to_device(padded, self._device), self._micro_batch):
                alpha_BHW = self._alphas(chunk.permute(0, 3, 1, 2))
                alphas.append((alpha_BHW * 255).round().to(torch.uint8).cpu())
        result: Pixels = torch.cat(alphas).numpy()[:count]
        return result

    def _alphas(self, image_BCHW: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> (B, H, W) in [0, 1]."""
        alpha_BHW: Tensor
        if isinstance(self._network, Int8UNet):
            alpha_BHW = self._network(image_BCHW)
        else:
            alpha_BHW = alpha_of(self._network(image_BCHW / 255))[:, 0]
        return alpha_BHW


class Look(NamedTuple):
    """What the network says of a photo: of all of it, or of the part that people are in."""

    small_alpha_HW: Pixels  # uint8, of one of the network's input shapes
    box: Box  # the part that this is of; nobody is outside


class Predictor:
    """Alphas for photos of any size.

    Args:
        network: predicts small alphas.
        refine: how alphas get to the photo's size: "none" interpolates; "guided" also looks at the photo; "mirrored"
            does so with the mean of what the network says of the photo and of its mirror image, in twice its time.

    Of a photo no more than some ``side`` pixels a side are looked at.
    """

    def __init__(self, network: SmallAlphas, refine: Refine = "none") -> None:
        self._network = network
        self._refine = refine
        self.side = round(DETAIL * network.size)

    @classmethod
    def load(cls, uri: str, refine: Refine = "guided") -> "Predictor":
        """The predictor of a checkpoint folder.

        Raises:
            CheckpointError, StorageError: it is not one, or cannot be read.
        """
        return cls(Network(checkpoint.load(uri)), refine)

    def __call__(self, photo: Image.Image) -> Image.Image:
        """A photo's alpha: PIL image -> PIL image of mode "L", upright as the EXIF data says, of the upright size.

        Raises:
            BadImage: the photo is of floating-point pixels, or of 32-bit ones.
        """
        return Image.fromarray(self.alphas([to_rgb(ImageOps.exif_transpose(photo))])[0])

    def alphas(self, images_HWC: Sequence[Pixels]) -> list[Pixels]:
        """Alphas at each photo's own size: uint8 (H, W, 3) each -> uint8 (H, W) each."""
        sizes = [(image.shape[1], image.shape[0]) for image in images_HWC]
        return self.enlarged(self.looks(images_HWC, sizes), images_HWC, sizes)

    def shape(self, width: int, height: int) -> Shape:
        """The shape in which the network sees a photo of this size."""
        return input_shape(width / height, self._network.size, self._network.aspects)

    def looks(self, images_HWC: Sequence[Pixels], sizes: Sequence[Shape]) -> list[Look]:
        """The first half of :meth:`alphas`: photos, uint8 (H, W, 3) each -> what the network says of them.

        The photos may be reduced to no less than ``side`` pixels a side; ``sizes`` are their own, (W, H).
        """
        looks = [
            Look(alpha, (slice(0, image.shape[0]), slice(0, image.shape[1])))
            for alpha, image in zip(self._seen_whole(images_HWC, sizes), images_HWC, strict=True)
        ]
        closer = {place: box for place, look in enumerate(looks) if (box := people_box(look))}
        parts = [images_HWC[place][box] for place, box in closer.items()]
        alphas = self._seen_whole(parts, [(part.shape[1], part.shape[0]) for part in parts])
        for (place, box), alpha in zip(closer.items(), alphas, strict=True):
            looks[place] = Look(alpha, box)
        return looks

    def _seen_whole(self, images_HWC: Sequence[Pixels], sizes: Sequence[Shape]) -> list[Pixels]:
        squashed = [squash(image, *self.shape(*size)) for image, size in zip(images_HWC, sizes, strict=True)]
        if self._refine != "mirrored":
            return self._small_alphas(squashed)
        alphas = self._small_alphas([*squashed, *(np.ascontiguousarray(picture[:, ::-1]) for picture in squashed)])
        both = zip(alphas[: len(squashed)], alphas[len(squashed) :], strict=True)
        return [np.rint(np.mean([alpha, mirrored[:, ::-1]], axis=0)).astype(np.uint8) for alpha, mirrored in both]

    def _small_alphas(self, squashed_HWC: Sequence[Pixels]) -> list[Pixels]:
        """Pictures of the network's input shapes -> an alpha each. Those of one shape go to the network together."""
        shapes = [squashed.shape for squashed in squashed_HWC]
        found: dict[int, Pixels] = {}
        for shape in dict.fromkeys(shapes):
            places = [place for place, own in enumerate(shapes) if own == shape]
            alphas = self._network.small_alphas(np.stack([squashed_HWC[place] for place in places]))
            found |= zip(places, alphas, strict=True)
        return [found[place] for place in range(len(shapes))]

    def enlarged(self, looks: Sequence[Look], images_HWC: Sequence[Pixels], sizes: Sequence[Shape]) -> list[Pixels]:
        """The second half: looks and photos, as above -> alphas at the photos' own sizes, uint8 (H, W) each."""
        return [self._enlarged(look, image, *size) for look, image, size in zip(looks, images_HWC, sizes, strict=True)]

    def _enlarged(self, look: Look, image_HWC: Pixels, width: int, height: int) -> Pixels:
        rows, columns = look.box
        place = scaled(rows, height / image_HWC.shape[0]), scaled(columns, width / image_HWC.shape[1])
        alpha_HW = np.zeros((height, width), np.uint8)
        part_height, part_width = alpha_HW[place].shape
        if self._refine != "none":
            alpha_HW[place] = guided(look.small_alpha_HW, image_HWC[look.box], part_width, part_height)
        else:
            alpha_HW[place] = upsample(look.small_alpha_HW, part_width, part_height)
        return alpha_HW


def people_box(look: Look) -> Box | None:
    """Where to look again, from closer: around all that is taken for people in a look at a whole photo, if that is
    little enough of it."""
    inside_HW = look.small_alpha_HW >= 128
    rows, columns = (np.flatnonzero(inside_HW.mean(axis) > _STRAY) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return None
    if (rows[-1] + 1 - rows[0]) * (columns[-1] + 1 - columns[0]) >= _CLOSER * inside_HW.size:
        return None
    return (
        widened(rows, look.box[0].stop / inside_HW.shape[0], look.box[0].stop),
        widened(columns, look.box[1].stop / inside_HW.shape[1], look.box[1].stop),
    )


def widened(taken: np.ndarray, scale: float, length: int) -> slice:
    """From the first to the last of these rows or columns of a small alpha, and a margin more, as rows or columns of
    the photo: it has ``length`` of them, ``scale`` times as many."""
    start, stop = taken[0], taken[-1] + 1
    margin = _MARGIN * (stop - start)
    return slice(max(0, math.floor((start - margin) * scale)), min(length, math.ceil((stop + margin) * scale)))


def scaled(part: slice, scale: float) -> slice:
    """These rows or columns of a photo that was reduced, in the photo itself, which has so many times as many."""
    return slice(round(part.start * scale), round(part.stop * scale))


def input_shape(aspect: float, size: int, learned: Aspects | None) -> Shape:
    """The shape in which a network sees a photo whose width over height is ``aspect``; see :func:`input_shapes`."""
    return next(shape for least, shape in reversed(input_shapes(size, learned)) if aspect >= least)


def input_shapes(size: int, learned: Aspects | None) -> list[tuple[float, Shape]]:
    """The shapes in which a network sees photos, each with the least width over height of those that it is for; from
    the tallest to the widest.

    Args:
        size: pixels a side of the square that the network's training pictures were squashed to.
        learned: width over height of these pictures before; None if not known: then all photos are seen as squares.

    Returns:
        The square, and on either side of it six fifths of its one side by four and by three of the other.
    """
    if not learned:
        return [(0.0, (size, size))]
    narrowest, widest = learned[0] / _TALLER, learned[1] * _WIDER
    long, short, shortest = (share * size // 5 for share in (6, 4, 3))
    return [
        (0.0, (shortest, long)),
        (narrowest / _FARTHER, (short, long)),
        (narrowest, (size, size)),
        (widest, (long, short)),
        (widest * _FARTHER, (long, shortest)),
    ]


def folded(model: UNet) -> UNet:
    """A copy with every BatchNorm folded into the convolution before it: the same function, in fewer passes."""
    model = copy.deepcopy(model).eval()
    for module in list(model.modules()):
        if not isinstance(module, nn.Sequential):
            continue
        for place in range(len(module) - 1):
            convolution, norm = module[place], module[place + 1]
            if isinstance(norm, nn.BatchNorm2d):
                assert isinstance(convolution, nn.Conv2d | nn.ConvTranspose2d)
                transposed = isinstance(convolution, nn.ConvTranspose2d)
                module[place] = fuse_conv_bn_eval(convolution, norm, transpose=transposed)
                module[place + 1] = nn.Identity()
    return model


def to_bf16(network: UNet) -> UNet:
    """A copy that computes in bfloat16 between its first convolution and its tanh, which are in float32.

    The first convolution stays in float32: large even areas of a photo add its weights' rounding errors up, and they
    make most of the difference. So alphas are within 2/255 of float32 but for a few pixels in a thousand.
    """
    rounded = copy.deepcopy(network).to(torch.bfloat16)
    first, first_rounded = network.down[0], rounded.down[0]
    assert isinstance(first, nn.Sequential)
    assert isinstance(first_rounded, nn.Sequential)
    first_rounded[0] = nn.Sequential(copy.deepcopy(first[0]), _To(torch.bfloat16))
    return rounded


class _To(nn.Module):
    """Changes the number format of what passes."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def forward(self, features_BCHW: Tensor) -> Tensor:
        return features_BCHW.to(self._dtype)
