"""Alphas of a batch of decoded photos on a device, with one copy to it, and one back for each pass of the network.

    photos (uint8, any sizes) -> pack -> PhotoBatch: one buffer -> the device
      first pass, whole photos:      groups of like size: squash -> network, all groups of a shape -> refine -> alphas
      second pass, the box of people: the same for the few photos that have one
      -> one buffer of alphas -> unpack

Within a pass the host reads nothing from the device, so that it only queues work. Photos of one size make one group
without padding; others are padded to the largest of photos of about their size.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from matting.data.images import Pixels
from matting.inference.batched import Area, Spans, guided_batch, squash_batch, upsample_batch
from matting.inference.input_shapes import Shape, input_shape
from matting.inference.predictor import SECOND_PASS_MIN_PERSON, During, Refine, box_of_people
from matting.inference.refine import DETAIL
from matting.nn.checkpoint import Aspects

MAX_PIXELS_TOGETHER = 1 << 26  # of a group, padding included: some 2 GB of float32 planes
_IMAGE_STEP, _PHOTO_STEP = 64, 256  # pixels; sides in the same step share a group

Integers = NDArray[np.int64]


class TensorNetwork(Protocol):
    """Interface of a network that predicts small alphas on its device."""

    @property
    def size(self) -> int:
        """Side of the squares that the network was trained on, in pixels."""

    @property
    def aspects(self) -> Aspects | None:
        """Range of width over height of the training images before they were squashed; None if unknown."""

    def alphas_on_device(self, squashed_BHWC: Tensor, parts: int) -> Tensor:
        """Predict alphas: uint8 (B, H, W, 3) -> uint8 (B, H, W), with the micro-batch divided by `parts`."""


class PhotoBatch(NamedTuple):
    """Decoded photos in one buffer.

    Attributes:
        pixels: Bytes of all photos behind each other, (H, W, 3) each.
        shapes_N2: Height and width of each photo as it is in the buffer, perhaps reduced.
        sizes_N2: Height and width of each photo's alpha.
    """

    pixels: Pixels
    shapes_N2: Integers
    sizes_N2: Integers


class PackingPredictor:
    """Predictor that leaves the whole computation to another process, a batch at a time.

    Args:
        size: Side of the squares that the network was trained on.
        compute: Function that computes the alphas of a batch; see :meth:`DevicePredictor.alphas`.

    Attributes:
        min_side: As that of :class:`~matting.inference.predictor.Predictor`.
    """

    def __init__(self, size: int, compute: Callable[[PhotoBatch], Pixels]) -> None:
        self.min_side = round(DETAIL * size)
        self._compute = compute

    def batch_key(self, width: int, height: int) -> Shape | None:  # noqa: ARG002 - the device groups them
        """Return None: photos of all sizes may share a batch."""
        return None

    def timed_alphas(self, images_HWC: Sequence[Pixels], sizes: Sequence[Shape], during: During) -> list[Pixels]:
        """Predict alphas as :meth:`matting.inference.predictor.Predictor.timed_alphas` does; all counts as network."""
        with during("network"):
            # Photos of one size lie behind each other, so that the device takes them as one tensor.
            order = sorted(range(len(sizes)), key=lambda index: (sizes[index], images_HWC[index].shape))
            batch = PhotoBatch(
                np.concatenate([images_HWC[index].reshape(-1) for index in order]),
                np.array([images_HWC[index].shape[:2] for index in order]),
                np.array([sizes[index][::-1] for index in order]),
            )
            alphas = unpack(self._compute(batch), batch.sizes_N2)
            found = dict(zip(order, alphas, strict=True))
            return [found[index] for index in range(len(order))]


def unpack(alphas: Pixels, sizes_N2: Integers) -> list[Pixels]:
    """Cut one buffer of alphas into alphas of these heights and widths, as views."""
    pieces = np.split(alphas, sizes_N2.prod(1).cumsum()[:-1])
    return [piece.reshape(size) for piece, size in zip(pieces, sizes_N2, strict=True)]


class _Parts(NamedTuple):
    """Parts of photos to predict, a row each, and where they lie. Boxes are (top, left, height, width)."""

    offset_N: Integers  # of the photo in the buffer
    shape_N2: Integers
    size_N2: Integers
    box_N4: Integers  # in the photo of the buffer
    input_N2: Integers  # width and height of the network's input

    def take(self, rows: Integers) -> "_Parts":
        return _Parts(*(values[rows] for values in self))

    def targets(self) -> Integers:
        """Return the boxes in the photos' own sizes."""
        scale = self.size_N2 / self.shape_N2
        start = np.rint(self.box_N4[:, :2] * scale)
        stop = np.rint((self.box_N4[:, :2] + self.box_N4[:, 2:]) * scale)
        return np.concatenate([start, stop - start], 1).astype(np.int64)


class DevicePredictor:
    """Predicts alphas of batches of photos, with all arithmetic on one device. Several threads may call it.

    Args:
        network: Network on that device.
        refine: Way from small alphas to the photos' sizes; see :class:`~matting.inference.predictor.Predictor`.
        device: The device.
    """

    def __init__(self, network: TensorNetwork, refine: Refine, device: torch.device) -> None:
        self._network, self._refine, self._device = network, refine, device
        self._threads = threading.local()
        self._input_shape = lru_cache(4096)(lambda aspect: input_shape(aspect, network.size, network.aspects))

    def alphas(self, batch: PhotoBatch) -> Pixels:
        """Predict the alphas of all photos, behind each other, uint8, at their own sizes.

        Where the device's memory does not suffice, this tries once more with half as many photos at a time.

        Raises:
            torch.OutOfMemoryError: Half as many do not fit either.
        """
        with self._stream(), torch.inference_mode():
            try:
                return self._alphas(batch, 1)
            except torch.OutOfMemoryError:
                pass
            torch.cuda.empty_cache()  # after the error is forgotten, whose traceback holds on to tensors
            return self._alphas(batch, 2)

    def _stream(self) -> AbstractContextManager[object]:
        """Return a stream for each thread, so that one block's copies go on beside another's arithmetic."""
        if self._device.type != "cuda":
            return nullcontext()
        if not hasattr(self._threads, "stream"):
            self._threads.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]  # torch does not annotate it
        return torch.cuda.stream(self._threads.stream)

    def _alphas(self, batch: PhotoBatch, parts: int) -> Pixels:
        pixels = upload(batch.pixels, self._device)
        offset_N = np.cumsum(np.append(0, 3 * batch.shapes_N2.prod(1)[:-1]))
        box_N4 = np.concatenate([np.zeros_like(batch.shapes_N2), batch.shapes_N2], 1)
        whole = _Parts(offset_N, batch.shapes_N2, batch.sizes_N2, box_N4, self._input_shapes(batch.sizes_N2))
        order, found, people = self._run_pass(pixels, whole, parts)
        alphas = np.empty(whole.size_N2.prod(1).sum(), np.uint8)
        views = unpack(alphas, whole.size_N2)
        _place(found, order, whole, views)
        boxes = second_pass_boxes(download(people)[np.argsort(order)], whole)
        if boxes:
            rows, box_N4 = np.array(list(boxes)), np.array(list(boxes.values()))
            second = whole.take(rows)._replace(box_N4=box_N4, input_N2=self._input_shapes(box_N4[:, 2:]))
            order, found, _ = self._run_pass(pixels, second, parts)
            _place(found, order, second, [views[row] for row in rows])
        return alphas

    def _input_shapes(self, sizes_N2: Integers) -> Integers:
        return np.array([self._input_shape(width / height) for height, width in sizes_N2.tolist()])

    def _run_pass(self, pixels: Tensor, parts_of_photos: _Parts, parts: int) -> tuple[Integers, Tensor, Tensor]:
        """Run one pass, without reading anything from the device.

        Args:
            pixels: Buffer of the photos on the device.
            parts_of_photos: What to predict.
            parts: Number by which groups and micro-batches are divided.

        Returns:
            Order of the photos in the results; their alphas behind each other, uint8; and the rows and columns of the
            people in each small alpha, in fractions of 1: (N, 4) of first and last row, first and last column.
        """
        groups = cut_into_groups(parts_of_photos, MAX_PIXELS_TOGETHER // parts)
        order = np.concatenate(groups)
        ordered = parts_of_photos.take(order)
        geometry = np.concatenate([ordered.box_N4, ordered.targets()], 1).astype(np.float32)
        geometries = torch.split(upload(geometry, self._device), [len(group) for group in groups])
        taken = [parts_of_photos.take(group) for group in groups]
        photos = [_gather(pixels, group) for group in taken]
        sources = [_area(values[:, :4], *images.shape[1:3]) for values, images in zip(geometries, photos, strict=True)]
        squashed = [
            squash_batch(images, source, *group.input_N2[0].tolist())
            for images, source, group in zip(photos, sources, taken, strict=True)
        ]
        small = self._small_alphas(squashed, parts)
        alphas = []
        for group, values, images, source, small_alpha in zip(taken, geometries, photos, sources, small, strict=True):
            target = _area(values[:, 4:], *group.size_N2.max(0).tolist())
            alphas.append(_flat(self._enlarge(small_alpha, images, source, target), group.size_N2))
        return order, torch.cat(alphas), torch.cat([people_of(small_alpha) for small_alpha in small])

    def _small_alphas(self, squashed: list[Tensor], parts: int) -> list[Tensor]:
        """Predict small alphas of all groups, those of one shape in one call."""
        found = list[Tensor]()
        while len(found) < len(squashed):  # groups of one shape follow each other
            same = [images for images in squashed[len(found) :] if images.shape[1:] == squashed[len(found)].shape[1:]]
            small = self._predict_squashed(torch.cat(same), parts)
            found += torch.split(small, [len(images) for images in same])
        return found

    def _predict_squashed(self, squashed_BHWC: Tensor, parts: int) -> Tensor:
        if self._refine != "mirrored":
            return self._network.alphas_on_device(squashed_BHWC, parts)
        both = self._network.alphas_on_device(torch.cat([squashed_BHWC, squashed_BHWC.flip(2)]), parts)
        alpha_BHW, mirrored_BHW = torch.split(both.float(), len(squashed_BHWC))
        mean_BHW: Tensor = (alpha_BHW + mirrored_BHW.flip(2)) / 2
        return mean_BHW.round().to(torch.uint8)

    def _enlarge(self, small_alpha_BHW: Tensor, images_BHWC: Tensor, source: Area, target: Area) -> Tensor:
        if self._refine == "none":
            return upsample_batch(small_alpha_BHW, target)
        return guided_batch(small_alpha_BHW, images_BHWC, source, target)


def people_of(small_alpha_BHW: Tensor) -> Tensor:
    """Return the first and last rows and columns of people, in fractions of the sides: uint8 (B, h, w) -> (B, 4).

    Where there is nobody, the first one is behind the last one.
    """
    inside = small_alpha_BHW >= 128
    found = list[Tensor]()
    for across in (2, 1):
        length = small_alpha_BHW.shape[3 - across]
        has = inside.sum(across) > SECOND_PASS_MIN_PERSON * small_alpha_BHW.shape[across]
        index = torch.arange(length, device=inside.device)
        found += [torch.where(has, index, length).amin(1), torch.where(has, index + 1, 0).amax(1)]
    return torch.stack(found, 1)


def second_pass_boxes(people_N4: Integers, whole: _Parts) -> dict[int, list[int]]:
    """Return the boxes (top, left, height, width) of the second pass, by number of the photo."""
    boxes = dict[int, list[int]]()
    for row, (people, shape, width_height) in enumerate(
        zip(people_N4.tolist(), whole.shape_N2.tolist(), whole.input_N2.tolist(), strict=True)
    ):
        if box := box_of_people(people[:2], people[2:], width_height[::-1], shape):
            rows, columns = box
            boxes[row] = [rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start]
    return boxes


def cut_into_groups(parts: _Parts, max_pixels: int) -> list[Integers]:
    """Group photos of one input shape and of about one size; groups of one shape follow each other.

    Args:
        parts: Photos.
        max_pixels: Number of pixels that a group's alphas or photos may have, padding included.
    """
    keys = np.concatenate([parts.input_N2, parts.shape_N2 // _IMAGE_STEP, parts.size_N2 // _PHOTO_STEP], 1)
    _, numbers = np.unique(keys, axis=0, return_inverse=True)
    groups = list[Integers]()
    for number in range(numbers.max() + 1):
        rows = np.flatnonzero(numbers.reshape(-1) == number)
        pixels = max(parts.shape_N2[rows].max(0).prod(), parts.size_N2[rows].max(0).prod())
        count = max(1, max_pixels // int(pixels))
        groups += [rows[start : start + count] for start in range(0, len(rows), count)]
    return groups


def _runs(values: Integers) -> list[tuple[int, int]]:
    """Return start and stop of runs of equal rows."""
    bounds = np.flatnonzero((values[1:] != values[:-1]).any(1)) + 1
    return list(zip([0, *bounds.tolist()], [*bounds.tolist(), len(values)], strict=True))


def _gather(pixels: Tensor, group: _Parts) -> Tensor:
    """Return the photos of a group as one tensor (B, H, W, 3), padded with 0: a view if all are of one size."""
    # Rows are equal where photos have one size and lie behind each other.
    lengths = 3 * group.shape_N2.prod(1)
    gaps = group.offset_N - np.arange(len(lengths)) * lengths
    runs = _runs(np.concatenate([group.shape_N2, gaps[:, None]], 1))
    pieces = []
    for start, stop in runs:
        height, width = group.shape_N2[start].tolist()
        offset, length = int(group.offset_N[start]), int(lengths[start])
        pieces.append(pixels[offset : offset + (stop - start) * length].view(-1, height, width, 3))
    height, width = group.shape_N2.max(0).tolist()
    padded = [F.pad(piece, (0, 0, 0, width - piece.shape[2], 0, height - piece.shape[1])) for piece in pieces]
    return torch.cat(padded) if len(pieces) > 1 else pieces[0]


def _flat(alpha_BHW: Tensor, sizes_B2: Integers) -> Tensor:
    """Return alphas behind each other, without their padding."""
    return torch.cat(
        [
            alpha_BHW[start:stop, : sizes_B2[start, 0], : sizes_B2[start, 1]].reshape(-1)
            for start, stop in _runs(sizes_B2)
        ]
    )


def _area(boxes_B4: Tensor, height: int, width: int) -> Area:
    top, left, heights, widths = boxes_B4.unbind(1)
    return Area(Spans(top, heights, height), Spans(left, widths, width))


def _place(found: Tensor, order: Integers, parts: _Parts, views: Sequence[Pixels]) -> None:
    """Copy alphas, which lie behind each other in `order` on their device, into the photos' own arrays."""
    for row, alpha in zip(order, unpack(download(found), parts.size_N2[order]), strict=True):
        views[row][:] = alpha


def upload(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """Copy an array to a device; to a GPU through pinned memory, while the host goes on."""
    on_gpu = device.type == "cuda"
    host = torch.empty(array.shape, dtype=torch.from_numpy(np.empty(0, array.dtype)).dtype, pin_memory=on_gpu)
    np.copyto(host.numpy(), array)
    return host.to(device, non_blocking=True)


def download(tensor: Tensor) -> NDArray[Any]:
    """Copy a tensor from its device, and wait for it."""
    if tensor.device.type != "cuda":
        return tensor.numpy()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor).numpy()
