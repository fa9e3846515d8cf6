"""A trained U-Net in 8-bit integers, for processors that multiply these faster than any other numbers.

    image_BCHW, uint8  ->  Int8UNet  ->  alpha_BHW, float32 in [0, 1]

Features are uint8, with a scale for each channel, which the weights of the next convolution absorb. Weights are int8,
with a scale for each output channel. The range of a channel's features is not measured on photos but follows from its
BatchNorm, as in Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019.

The module depends on the layout of matting/nn/unet.py and on oneDNN's operators, which torch has on x86 only.
"""

import math
from collections.abc import Sequence
from itertools import pairwise, product
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from matting.nn.unet import UNet, Up, clip_alpha, pad_to_multiple

# Features are clipped at so many standard deviations beyond their mean. A smaller number makes steps finer, which helps
# pixels that are close to float32 already, and clips more features, which puts more pixels far off.
_DEVIATIONS = 8


class _Quantization(NamedTuple):
    """The numbers that uint8 features stand for: (feature - zero_point) * scale of their channel."""

    scale_C: Tensor
    zero_point: float = 0.0
    largest: int = 255  # 127 where two features are added, so that their sum fits


_PIXELS = _Quantization(torch.full((3,), 2 / 255), zero_point=127.5)  # the network takes pixels from -1 to 1


class Int8UNet(nn.Module):
    """The alpha channel of a trained network, computed in 8-bit integers on the CPU.

    Call with ``image_BCHW``, uint8, 3 channels, any height and width. Returns ``alpha_BHW`` in [0, 1].

    Args:
        model: Trained network, which stays as it is.
    """

    def __init__(self, model: UNet) -> None:
        super().__init__()
        config = self._config = model.config
        adds, signed = config.skip == "add", config.relu == "block"
        ups = [up for up in model.up if isinstance(up, Up)]
        grows = [_folded_layers(up.grow)[0] for up in ups]
        features, skips = _PIXELS, list[_Quantization]()
        self.down, self.grow, self.merge = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, block in enumerate(model.down):
            layers = _folded_layers(block)
            after = _quantization_after(layers[-1].norm)
            if adds and level < config.depth:
                after = _common_quantization(after, _quantization_after(grows[-1 - level].norm))
            if level == 0:
                layers[0] = _FoldedLayer(_absorb_unshuffle(layers[0].convolution, config.unshuffle), layers[0].norm)
            self.down.append(_quantized_block(layers, features, after, signed))
            skips.append(features := after)
        for up, grow, skip in zip(ups, grows, skips[-2::-1], strict=True):
            own = skip if adds else _quantization_after(grow.norm)
            quarters = own._replace(scale_C=own.scale_C.repeat(4))
            self.grow.append(_QuantizedConv(grow.convolution, features, quarters))
            features = own._replace(largest=255) if adds else _Quantization(torch.cat([own.scale_C, skip.scale_C]))
            layers = _folded_layers(up.merge)
            after = _quantization_after(layers[-1].norm)
            self.merge.append(_quantized_block(layers, features, after, signed))
            features = after
        (head,) = _folded_layers(model.head)
        between = _quantization_after(head.norm, signed=True)
        last = _move_before_shuffle(model.head[2].get_parameter("weight").detach()[3:], config.unshuffle)
        self.head = nn.Sequential(
            _QuantizedConv(head.convolution, features, between), _QuantizedConv(last, between, None)
        )

    def forward(self, image_BCHW: Tensor) -> Tensor:
        height, width = image_BCHW.shape[-2:]
        features = pad_to_multiple(image_BCHW, self._config.multiple)
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            if level:
                skips.append(features)
                features = _max_pool(features)
            features = block(features)
        for grow, merge in zip(self.grow, self.merge, strict=True):
            grown, skip = _interleave(grow(features)), skips.pop()
            features = merge(grown + skip if self._config.skip == "add" else torch.cat([grown, skip], dim=1))
        alpha = torch.tanh(functional.pixel_shuffle(self.head(features), self._config.unshuffle))
        return (clip_alpha(alpha, self._config.alpha_clip)[:, 0, :height, :width] + 1) / 2


class _QuantizedConv(nn.Module):
    """A convolution of uint8 features: to uint8 features, with the ReLU that follows, or to float32, without one.

    Args:
        convolution: Convolution with a bias.
        before: Quantization of the input features.
        after: Quantization of the output features, signed where no ReLU follows; None for float32 output.
    """

    # torch.ops.onednn.qconv_prepack and qconv2d_pointwise are private to torch's quantizer. They are called directly
    # because torch has no public eager operator that convolves uint8 with a scale per channel and fuses the ReLU. If a
    # torch release changes them, test_quantized_convolution_matches_float fails.

    def __init__(self, convolution: nn.Conv2d, before: _Quantization, after: _Quantization | None) -> None:
        super().__init__()
        assert convolution.bias is not None
        self._zero_before, self._zero_after = math.ceil(before.zero_point), 0
        self._dtype, self._activation = torch.float32, "none"
        weight_OIHW = convolution.weight.detach() * before.scale_C[:, None, None]
        self._bias = convolution.bias.detach() + (self._zero_before - before.zero_point) * weight_OIHW.sum((1, 2, 3))
        if after:
            weight_OIHW, self._bias = weight_OIHW / after.scale_C[:, None, None, None], self._bias / after.scale_C
            self._zero_after = math.ceil(after.zero_point)
            self._dtype = torch.uint8 if after.largest == 255 else torch.int8
            self._activation = "none" if after.zero_point else "relu"
        self._scale = weight_OIHW.abs().amax((1, 2, 3)).clamp_min(1e-12) / 127
        self._zeros = torch.zeros(len(self._scale), dtype=torch.int32)
        self._geometry = (list(convolution.stride), list(convolution.padding), [1, 1], 1)  # dilation, groups
        rounded = (weight_OIHW / self._scale[:, None, None, None]).round().to(torch.int8)
        self._weight = torch.ops.onednn.qconv_prepack(rounded, self._scale, 1.0, self._zero_before, *self._geometry)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        convolved: Tensor = torch.ops.onednn.qconv2d_pointwise(
            *(features_BCHW, 1.0, self._zero_before),
            *(self._weight, self._scale, self._zeros, self._bias, *self._geometry),
            *(1.0, self._zero_after, self._dtype, self._activation, [], ""),
        )
        return convolved.view(torch.uint8) if self._dtype == torch.int8 else convolved


class _FoldedLayer(NamedTuple):
    """A convolution with its BatchNorm folded in, and that BatchNorm."""

    convolution: nn.Conv2d
    norm: nn.BatchNorm2d


def _folded_layers(block: nn.Module) -> list[_FoldedLayer]:
    """Return the convolutions of a block with their BatchNorms; transposed ones come as :func:`_as_quarters`."""
    layers = []
    for module, norm in pairwise(block.children()):
        if isinstance(norm, nn.BatchNorm2d):
            assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
            transposed = isinstance(module, nn.ConvTranspose2d)
            folded = fuse_conv_bn_eval(module, norm, transpose=transposed)
            plain = _as_quarters(folded) if isinstance(folded, nn.ConvTranspose2d) else folded
            layers.append(_FoldedLayer(plain, norm))
    return layers


def _quantized_block(
    layers: Sequence[_FoldedLayer], before: _Quantization, after: _Quantization, signed: bool
) -> nn.Sequential:
    """Return a quantized block; the BatchNorms determine the quantization between its layers."""
    between = [_quantization_after(layer.norm, signed) for layer in layers[:-1]]
    convolutions = [layer.convolution for layer in layers]
    return nn.Sequential(*map(_QuantizedConv, convolutions, [before, *between], [*between, after]))


def _quantization_after(norm: nn.BatchNorm2d, signed: bool = False) -> _Quantization:
    """Return the quantization of features after a BatchNorm: signed ones, or those after a ReLU."""
    mean, deviation = norm.bias.detach(), norm.weight.detach().abs()
    # The bound keeps channels that died, with a weight and bias of 0, from a scale of 0.
    range_C = ((mean.abs() if signed else mean) + _DEVIATIONS * deviation).clamp_min(1e-6)
    return _Quantization(range_C / 127, zero_point=128) if signed else _Quantization(range_C / 255)


def _common_quantization(one: _Quantization, other: _Quantization) -> _Quantization:
    """Return a quantization that fits both kinds of features, so that their integers can be added."""
    return _Quantization(torch.maximum(one.scale_C, other.scale_C) * 255 / 127, largest=127)


def _absorb_unshuffle(convolution: nn.Conv2d, unshuffle: int) -> nn.Conv2d:
    """Turn a 3 × 3 convolution after ``pixel_unshuffle`` into one that reads the image itself."""
    weight = convolution.weight.detach()
    out, _, rows, columns = weight.shape
    weight = weight.reshape(out, 3, unshuffle, unshuffle, rows, columns).permute(0, 1, 4, 2, 5, 3)
    assert convolution.bias is not None
    return _conv2d(
        weight.reshape(out, 3, rows * unshuffle, columns * unshuffle),
        convolution.bias,
        stride=unshuffle,
        padding=unshuffle,
    )


def _as_quarters(convolution: nn.ConvTranspose2d) -> nn.Conv2d:
    """Turn a transposed 4 × 4 convolution of stride 2 into a 2 × 2 convolution with four times the channels.

    The four groups of channels are the output's pixels at the upper left, upper right, lower left and lower right of
    every input pixel; :func:`_interleave` puts them side by side.
    """
    assert convolution.bias is not None
    weight = convolution.weight.detach().transpose(0, 1)
    taps = ([3, 1], [2, 0])  # taps that reach even rows and columns, and odd ones
    quarters = [weight[:, :, rows][..., columns] for rows, columns in product(taps, taps)]
    return _conv2d(torch.cat(quarters), convolution.bias.repeat(4), padding=1)


def _move_before_shuffle(weight_1CHW: Tensor, unshuffle: int) -> nn.Conv2d:
    """Turn a 3 × 3 convolution without bias after ``pixel_shuffle`` into one before it.

    The weights of the new convolution are the old one's responses, at the centre, to images with a single 1.
    """
    channels = weight_1CHW.shape[1] * unshuffle**2
    impulses = torch.eye(9 * channels).reshape(9 * channels, channels, 3, 3)
    responses = functional.conv2d(functional.pixel_shuffle(impulses, unshuffle), weight_1CHW, padding=1)
    weight = functional.pixel_unshuffle(responses, unshuffle)[:, :, 1, 1].T.reshape(unshuffle**2, channels, 3, 3)
    return _conv2d(weight, torch.zeros(unshuffle**2), padding=1)


def _conv2d(weight: Tensor, bias: Tensor, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    """Return a convolution with the given weights."""
    out, channels, height, width = weight.shape
    convolution = nn.Conv2d(channels, out, (height, width), stride, padding)
    convolution.weight.data, convolution.bias = weight, nn.Parameter(bias.detach())
    return convolution


def _interleave(quarters_BCHW: Tensor) -> Tensor:
    """Put the quarters of :func:`_as_quarters` side by side: (B, 4C, H + 1, W + 1) -> (B, C, 2H, 2W)."""
    batch, channels, height, width = quarters_BCHW.shape
    shape = (batch, channels // 4, 2 * height - 2, 2 * width - 2)
    features = torch.empty(shape, dtype=quarters_BCHW.dtype, memory_format=torch.channels_last)
    for part, (row, column) in zip(quarters_BCHW.chunk(4, dim=1), product((0, 1), (0, 1)), strict=True):
        features[:, :, row::2, column::2] = part[:, :, row : row + height - 1, column : column + width - 1]
    return features


def _max_pool(features_BCHW: Tensor) -> Tensor:
    """Max-pool by 2 × 2; torch's own pooling refuses large images of uint8."""
    rows = torch.maximum(features_BCHW[:, :, 0::2], features_BCHW[:, :, 1::2])
    return torch.maximum(rows[..., 0::2], rows[..., 1::2])
