"""A trained U-Net in 8-bit integers, for processors that multiply these faster than any other numbers.

    image_BCHW, uint8  ->  Int8UNet  ->  alpha_BHW, float32 in [0, 1]

Features are uint8. What one of them is worth differs from channel to channel, and the weights of the next convolution
take that in; these are int8, with a step of their own for each channel that they lead to. How far the features of a
channel reach is not measured on photos but read from its BatchNorm, as in Nagel et al., Data-Free Quantization Through
Weight Equalization and Bias Correction, 2019.

Knows the network's shape (matting/unet.py) and oneDNN's operators, which torch has on x86 only.
"""

import math
from collections.abc import Sequence
from itertools import pairwise, product
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from matting.unet import UNet, Up, clean_ends, pad_to_multiple

# How far features reach: so many of their standard deviations beyond their mean. What is beyond is cut off. With fewer,
# more pixels are far off, and the steps that are finer then make up for it only in those that are close.
_DEVIATIONS = 8


class _Features(NamedTuple):
    """What uint8 features stand for: (feature - zero) * step of their channel."""

    step_C: Tensor
    zero: float = 0.0
    most: int = 255  # 127 where two are added, so that there is room for the sum


_PIXELS = _Features(torch.full((3,), 2 / 255), zero=127.5)  # which the network takes as -1 to 1


class Int8UNet(nn.Module):
    """The alpha of a network that has learned, on the CPU.

    Args:
        model: the network, which stays as it is.

    Call with ``image_BCHW``, uint8, 3 channels, any height and width. Returns ``alpha_BHW`` in [0, 1].
    """

    def __init__(self, model: UNet) -> None:
        super().__init__()
        config = self._config = model.config
        adds, signed = config.join == "add", config.relu == "block"
        ups = [up for up in model.up if isinstance(up, Up)]
        grows = [_layers(up.grow)[0] for up in ups]
        features, skips = _PIXELS, list[_Features]()
        self.down, self.grow, self.merge = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, block in enumerate(model.down):
            layers = _layers(block)
            after = _reaching(layers[-1].norm)
            if adds and level < config.depth:
                after = _to_be_added(after, _reaching(grows[-1 - level].norm))
            if level == 0:
                layers[0] = _Layer(_on_pixels(layers[0].convolution, config.stem), layers[0].norm)
            self.down.append(_convolutions(layers, features, after, signed))
            skips.append(features := after)
        for up, grow, skip in zip(ups, grows, skips[-2::-1], strict=True):
            own = skip if adds else _reaching(grow.norm)
            self.grow.append(_Convolution(grow.convolution, features, own._replace(step_C=own.step_C.repeat(4))))
            features = own._replace(most=255) if adds else _Features(torch.cat([own.step_C, skip.step_C]))
            layers = _layers(up.merge)
            after = _reaching(layers[-1].norm)
            self.merge.append(_convolutions(layers, features, after, signed))
            features = after
        (head,) = _layers(model.head)
        between = _reaching(head.norm, signed=True)
        last = _before_shuffling(model.head[2].get_parameter("weight").detach()[3:], config.stem)
        self.head = nn.Sequential(_Convolution(head.convolution, features, between), _Convolution(last, between, None))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        height, width = image_BCHW.shape[-2:]
        features = pad_to_multiple(image_BCHW, self._config.multiple)
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            if level:
                skips.append(features)
                features = _halved(features)
            features = block(features)
        for grow, merge in zip(self.grow, self.merge, strict=True):
            grown, skip = _woven(grow(features)), skips.pop()
            features = merge(grown + skip if self._config.join == "add" else torch.cat([grown, skip], dim=1))
        alpha = torch.tanh(functional.pixel_shuffle(self.head(features), self._config.stem))
        return (clean_ends(alpha, self._config.ends)[:, 0, :height, :width] + 1) / 2


class _Convolution(nn.Module):
    """A convolution and the ReLU after it, if there is one, from uint8 features to others; with ``after`` None, a
    convolution alone, to float32 ones."""

    def __init__(self, convolution: nn.Conv2d, before: _Features, after: _Features | None) -> None:
        super().__init__()
        assert convolution.bias is not None
        self._zero_before, self._zero_after = math.ceil(before.zero), 0
        self._dtype, self._then = torch.float32, "none"
        weight_OIHW = convolution.weight.detach() * before.step_C[:, None, None]
        self._bias = convolution.bias.detach() + (self._zero_before - before.zero) * weight_OIHW.sum((1, 2, 3))
        if after:
            weight_OIHW, self._bias = weight_OIHW / after.step_C[:, None, None, None], self._bias / after.step_C
            self._zero_after = math.ceil(after.zero)
            self._dtype = torch.uint8 if after.most == 255 else torch.int8
            self._then = "none" if after.zero else "relu"
        self._step = weight_OIHW.abs().amax((1, 2, 3)).clamp_min(1e-12) / 127
        self._zeros = torch.zeros(len(self._step), dtype=torch.int32)
        self._where = (list(convolution.stride), list(convolution.padding), [1, 1], 1)  # dilation, groups
        rounded = (weight_OIHW / self._step[:, None, None, None]).round().to(torch.int8)
        self._weight = torch.ops.onednn.qconv_prepack(rounded, self._step, 1.0, self._zero_before, *self._where)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        convolved: Tensor = torch.ops.onednn.qconv2d_pointwise(
            *(features_BCHW, 1.0, self._zero_before),
            *(self._weight, self._step, self._zeros, self._bias, *self._where),
            *(1.0, self._zero_after, self._dtype, self._then, [], ""),
        )
        return convolved.view(torch.uint8) if self._dtype == torch.int8 else convolved


class _Layer(NamedTuple):
    """A convolution into which its BatchNorm is folded, and that BatchNorm."""

    convolution: nn.Conv2d
    norm: nn.BatchNorm2d


def _layers(block: nn.Module) -> list[_Layer]:
    """Of a block. Those that are transposed, as :func:`_quarters`."""
    layers = []
    for module, norm in pairwise(block.children()):
        if isinstance(norm, nn.BatchNorm2d):
            assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
            transposed = isinstance(module, nn.ConvTranspose2d)
            folded = fuse_conv_bn_eval(module, norm, transpose=transposed)
            layers.append(_Layer(_quarters(folded) if isinstance(folded, nn.ConvTranspose2d) else folded, norm))
    return layers


def _convolutions(layers: Sequence[_Layer], before: _Features, after: _Features, signed: bool) -> nn.Sequential:
    """A block, from features to features; between its layers, they are as the BatchNorms say."""
    between = [_reaching(layer.norm, signed) for layer in layers[:-1]]
    convolutions = [layer.convolution for layer in layers]
    return nn.Sequential(*map(_Convolution, convolutions, [before, *between], [*between, after]))


def _reaching(norm: nn.BatchNorm2d, signed: bool = False) -> _Features:
    """What comes out of a BatchNorm and the ReLU after it, or of one without, which is signed."""
    mean, deviation = norm.bias.detach(), norm.weight.detach().abs()
    reach_C = ((mean.abs() if signed else mean) + _DEVIATIONS * deviation).clamp_min(1e-6)  # of channels that died, too
    return _Features(reach_C / 127, zero=128) if signed else _Features(reach_C / 255)


def _to_be_added(one: _Features, other: _Features) -> _Features:
    """What both are brought to, so that their integers can be added."""
    return _Features(torch.maximum(one.step_C, other.step_C) * 255 / 127, most=127)


def _on_pixels(convolution: nn.Conv2d, stem: int) -> nn.Conv2d:
    """A 3 × 3 convolution of what ``pixel_unshuffle`` makes of a picture -> the same, of the picture itself."""
    weight = convolution.weight.detach()
    out, _, rows, columns = weight.shape
    weight = weight.reshape(out, 3, stem, stem, rows, columns).permute(0, 1, 4, 2, 5, 3)
    assert convolution.bias is not None
    return _of(weight.reshape(out, 3, rows * stem, columns * stem), convolution.bias, stride=stem, padding=stem)


def _quarters(convolution: nn.ConvTranspose2d) -> nn.Conv2d:
    """A transposed 4 × 4 convolution of stride 2 -> one of 2 × 2 that has, one after the other, the channels of the
    pixels at the upper left, upper right, lower left and lower right of each."""
    assert convolution.bias is not None
    weight = convolution.weight.detach().transpose(0, 1)
    taps = ([3, 1], [2, 0])  # of the even rows and columns, of the odd ones
    quarters = [weight[:, :, rows][..., columns] for rows, columns in product(taps, taps)]
    return _of(torch.cat(quarters), convolution.bias.repeat(4), padding=1)


def _before_shuffling(weight_1CHW: Tensor, stem: int) -> nn.Conv2d:
    """A 3 × 3 convolution without bias, after ``pixel_shuffle`` -> the same before it.

    Its weights are its answers, in the middle, to pictures of a single 1.
    """
    channels = weight_1CHW.shape[1] * stem**2
    single = torch.eye(9 * channels).reshape(9 * channels, channels, 3, 3)
    answers = functional.conv2d(functional.pixel_shuffle(single, stem), weight_1CHW, padding=1)
    weight = functional.pixel_unshuffle(answers, stem)[:, :, 1, 1].T.reshape(stem**2, channels, 3, 3)
    return _of(weight, torch.zeros(stem**2), padding=1)


def _of(weight: Tensor, bias: Tensor, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    """The convolution with these weights."""
    out, channels, height, width = weight.shape
    made = nn.Conv2d(channels, out, (height, width), stride, padding)
    made.weight.data, made.bias = weight, nn.Parameter(bias.detach())
    return made


def _woven(quarters_BCHW: Tensor) -> Tensor:
    """What comes out of :func:`_quarters`' convolution, pixel beside pixel: (B, 4C, H + 1, W + 1) -> (B, C, 2H, 2W)."""
    batch, channels, height, width = quarters_BCHW.shape
    shape = (batch, channels // 4, 2 * height - 2, 2 * width - 2)
    woven = torch.empty(shape, dtype=quarters_BCHW.dtype, memory_format=torch.channels_last)
    for part, (row, column) in zip(quarters_BCHW.chunk(4, dim=1), product((0, 1), (0, 1)), strict=True):
        woven[:, :, row::2, column::2] = part[:, :, row : row + height - 1, column : column + width - 1]
    return woven


def _halved(features_BCHW: Tensor) -> Tensor:
    """Max-pooling by 2 × 2, of which torch's own refuses large pictures of uint8."""
    rows = torch.maximum(features_BCHW[:, :, 0::2], features_BCHW[:, :, 1::2])
    return torch.maximum(rows[..., 0::2], rows[..., 1::2])
