"""A trained network, prepared to predict fast: folded BatchNorm, a number format, micro-batches of one fixed size.

squashed_BHWC (uint8) -> micro-batches -> network on the device -> small_alpha_BHW (uint8)
"""

import copy
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from matting.data.images import Pixels
from matting.inference.int8 import Int8UNet
from matting.nn.checkpoint import Aspects, Checkpoint
from matting.nn.precision import NumberFormat, fastest_number_format, micro_batch_size, to_device
from matting.nn.unet import UNet, alpha_of


class SmallAlphas(Protocol):
    """Interface of a network that predicts alphas at its input's size: a :class:`Network`, or a remote one."""

    @property
    def size(self) -> int:
        """Side of the squares that the network was trained on, in pixels."""

    @property
    def aspects(self) -> Aspects | None:
        """Range of width over height of the training images before they were squashed; None if unknown."""

    def small_alphas(self, squashed_BHWC: Pixels) -> Pixels:
        """Predict alphas: uint8 (B, H, W, 3) -> uint8 (B, H, W). They are best for about size × size pixels."""


class Network:
    """A checkpoint's network on a device, ready to predict.

    Every micro-batch has the same number of images, the last one padded, so that a photo's alpha does not depend on
    the photos beside it.

    Args:
        loaded: Checkpoint to predict with; its model stays as it is.
        device: Device to predict on; the CPU by default.
        number_format: Number format of the convolutions; by default the fastest one on the device. See :func:`to_bf16`
            and :class:`~matting.inference.int8.Int8UNet`, which runs on CPUs only.
        micro_batch: Number of images in a forward pass; by default the fastest one on the device.
    """

    def __init__(
        self,
        loaded: Checkpoint,
        device: torch.device | None = None,
        number_format: NumberFormat | None = None,
        micro_batch: int | None = None,
    ) -> None:
        self.size, self.aspects = loaded.size, loaded.aspects
        self._device = device or torch.device("cpu")
        number_format = number_format or fastest_number_format(self._device)
        self._micro_batch = micro_batch or micro_batch_size(self._device, number_format)
        self._network: UNet | Int8UNet
        if number_format == "int8":
            self._network = Int8UNet(loaded.model)
        else:
            network = fold_batchnorm(loaded.model)
            if number_format == "bf16":
                network = to_bf16(network)
            network = network.to(self._device)
            self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not annotated

    def small_alphas(self, squashed_BHWC: Pixels) -> Pixels:
        """Predict alphas at the input's size: uint8 (B, H, W, 3) -> uint8 (B, H, W).

        Where the device's memory does not suffice, this tries once more with half the micro-batch.

        Raises:
            torch.OutOfMemoryError: Half the micro-batch does not fit either.
        """
        try:
            return self._small_alphas(squashed_BHWC, self._micro_batch)
        except torch.OutOfMemoryError:
            if self._micro_batch == 1:
                raise
        torch.cuda.empty_cache()  # after the error is forgotten, whose traceback holds on to tensors
        return self._small_alphas(squashed_BHWC, self._micro_batch // 2)

    def _small_alphas(self, squashed_BHWC: Pixels, micro_batch: int) -> Pixels:
        found: Pixels = self._predict(to_device(squashed_BHWC, self._device), micro_batch).cpu().numpy()
        return found

    def alphas_on_device(self, squashed_BHWC: Tensor, parts: int) -> Tensor:
        """Predict alphas on the device: uint8 (B, H, W, 3) -> uint8 (B, H, W), without waiting for it.

        Args:
            squashed_BHWC: Images on the network's device.
            parts: Number by which the micro-batch is divided, for a device whose memory does not suffice.
        """
        return self._predict(squashed_BHWC, max(1, self._micro_batch // parts))

    def _predict(self, squashed_BHWC: Tensor, micro_batch: int) -> Tensor:
        count = len(squashed_BHWC)
        padding = squashed_BHWC.new_zeros(-count % micro_batch, *squashed_BHWC.shape[1:])
        with torch.inference_mode():
            alphas = [
                (self._forward(chunk.permute(0, 3, 1, 2)) * 255).round().to(torch.uint8)
                for chunk in torch.split(torch.cat([squashed_BHWC, padding]), micro_batch)
            ]
            return torch.cat(alphas)[:count]

    def _forward(self, image_BCHW: Tensor) -> Tensor:
        """Compute alphas of a micro-batch: uint8 (B, 3, H, W) -> float (B, H, W) in [0, 1]."""
        alpha_BHW: Tensor
        if isinstance(self._network, Int8UNet):
            alpha_BHW = self._network(image_BCHW)
        else:
            alpha_BHW = alpha_of(self._network(image_BCHW / 255))[:, 0]
        return alpha_BHW


def fold_batchnorm(model: UNet) -> UNet:
    """Return a copy with every BatchNorm folded into the convolution before it: the same function in fewer passes."""
    model = copy.deepcopy(model).eval()
    for module in list(model.modules()):
        if not isinstance(module, nn.Sequential):
            continue
        for index in range(len(module) - 1):
            convolution, norm = module[index], module[index + 1]
            if isinstance(norm, nn.BatchNorm2d):
                assert isinstance(convolution, nn.Conv2d | nn.ConvTranspose2d)
                transposed = isinstance(convolution, nn.ConvTranspose2d)
                module[index] = fuse_conv_bn_eval(convolution, norm, transpose=transposed)
                module[index + 1] = nn.Identity()
    return model


def to_bf16(network: UNet) -> UNet:
    """Return a copy that computes in bfloat16, except for its first convolution and its tanh, which stay in float32.

    In large even areas of a photo, the rounding errors of the first convolution's weights add up and cause most of the
    difference. With that convolution in float32, all but a few pixels in a thousand are within 2/255 of float32.
    """
    rounded = copy.deepcopy(network).to(torch.bfloat16)
    first, first_rounded = network.down[0], rounded.down[0]
    assert isinstance(first, nn.Sequential)
    assert isinstance(first_rounded, nn.Sequential)
    first_rounded[0] = nn.Sequential(copy.deepcopy(first[0]), _Cast(torch.bfloat16))
    return rounded


class _Cast(nn.Module):
    """A layer that converts features to another number format."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def forward(self, features_BCHW: Tensor) -> Tensor:
        return features_BCHW.to(self._dtype)
