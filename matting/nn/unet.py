"""The U-Net: image in, premultiplied cutout and alpha out.

    image_BCHW, float in [0, 1]  ->  UNet  ->  rgba_BCHW, float in [-1, 1]

The model scales its input to [-1, 1] itself, so that no caller can forget it. This module describes the network only:
no losses, no devices, no files.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from matting.nn.batchnorm import BatchNorm

Relu = Literal["layer", "block"]

Skip = Literal["concat", "add"]


@dataclass(frozen=True)
class UNetConfig:
    """Architecture of the network; the defaults are the baseline's.

    Args:
        width: Number of channels of the first level; each level down doubles it, up to max_width.
        depth: Number of times that the network halves the image.
        relu: Place of the ReLUs: "layer" after every convolution of a block, "block" only after the second, as in the
            baseline's published code.
        max_width: Largest number of channels of a level.
        skip: Skip connections of the decoder: "concat" concatenates the encoder's features and convolves twice, as in
            the U-Net; "add" adds them and convolves once, as in LinkNet (Chaurasia and Culurciello 2017), in two thirds
            of the arithmetic.
        unshuffle: Side in pixels of the squares that the levels process as one pixel (pixel unshuffle, Shi et al.
            2016): at the input their pixels become channels, at the output channels become pixels. With 2, the most
            expensive level is left out; with 1, none.
        alpha_clip: Distance from 0 and 1 within which the trained network's alphas become 0 and 1; those between are
            stretched, so that doubtful pixels leave no haze. Not in training, since clipped values have no gradient.

    Raises:
        ValueError: A value is out of its range.
    """

    width: int = 32
    depth: int = 3
    relu: Relu = "layer"
    max_width: int = 1024
    skip: Skip = "concat"
    unshuffle: int = 1
    alpha_clip: float = 0.0

    def __post_init__(self) -> None:
        for name in ("width", "depth", "unshuffle"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, is {getattr(self, name)}")
        if self.max_width < self.width:
            raise ValueError(f"max_width must be at least width, {self.width}; is {self.max_width}")
        if self.relu not in ("layer", "block"):
            raise ValueError(f"relu must be 'layer' or 'block', is {self.relu!r}")
        if self.skip not in ("concat", "add"):
            raise ValueError(f"skip must be 'concat' or 'add', is {self.skip!r}")
        if not 0 <= self.alpha_clip < 0.5:
            raise ValueError(f"alpha_clip must be at least 0 and less than 0.5, is {self.alpha_clip}")

    @property
    def multiple(self) -> int:
        """Number that both sides of the network's padded input are multiples of."""
        return int(self.unshuffle * 2**self.depth)


class DoubleConv(nn.Sequential):
    """Two 3×3 convolutions without bias, each followed by BatchNorm and, as ``relu`` says, a ReLU."""

    def __init__(self, channels_in: int, channels_out: int, relu: Relu) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
            BatchNorm(channels_out),
        ]
        if relu == "layer":
            layers.append(nn.ReLU(inplace=True))
        layers += [
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            BatchNorm(channels_out),
            nn.ReLU(inplace=True),
        ]
        super().__init__(*layers)


class Up(nn.Module):
    """One level of the decoder: upsampling by 2, the skip connection, and one or two convolutions."""

    def __init__(self, channels_in: int, channels_out: int, config: UNetConfig) -> None:
        super().__init__()
        self._concat = config.skip == "concat"
        self.grow = nn.Sequential(
            nn.ConvTranspose2d(channels_in, channels_out, 4, stride=2, padding=1, bias=False),
            BatchNorm(channels_out),
            nn.ReLU(inplace=True),
        )
        self.merge: nn.Module
        if self._concat:
            self.merge = DoubleConv(2 * channels_out, channels_out, config.relu)
        else:
            self.merge = nn.Sequential(
                nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
                BatchNorm(channels_out),
                nn.ReLU(inplace=True),
            )

    def forward(self, features_BCHW: Tensor, skip_BCHW: Tensor) -> Tensor:
        """Return the decoder's features at the resolution of ``skip_BCHW``, the encoder's features of this level."""
        grown = self.grow(features_BCHW)
        joined = torch.cat([grown, skip_BCHW], dim=1) if self._concat else grown + skip_BCHW
        merged: Tensor = self.merge(joined)
        return merged


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) with RGBA output; 2,444,600 parameters at width 32 and depth 3.

    Args:
        config: Architecture.

    Call it with ``image_BCHW``, float in [0, 1], 3 channels, any height and width: sides that are not multiples
    of ``config.multiple`` are padded by reflection, and the output is cropped back. Returns ``rgba_BCHW`` in [-1, 1]:
    channels 0 to 2 are the image premultiplied by alpha, channel 3 is alpha.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [min(config.width * 2**level, config.max_width) for level in range(config.depth + 1)]
        self.down = nn.ModuleList(
            DoubleConv(channels_in, channels_out, config.relu)
            for channels_in, channels_out in zip([3 * config.unshuffle**2, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            Up(channels_in, channels_out, config)
            for channels_in, channels_out in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        channels = 4 * config.unshuffle**2
        self.head = nn.Sequential(
            nn.Conv2d(config.width, channels, 3, padding=1, bias=False),
            BatchNorm(channels),
            nn.Conv2d(4, 4, 3, padding=1, bias=False),
        )

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Return rgba_BCHW of image_BCHW; see the class."""
        height, width = image_BCHW.shape[-2:]
        features = pad_to_multiple(image_BCHW * 2 - 1, self.config.multiple)
        if self.config.unshuffle > 1:
            features = functional.pixel_unshuffle(features, self.config.unshuffle)
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            if level:
                skips.append(features)
                features = functional.max_pool2d(features, 2)
            features = block(features)
        for block in self.up:
            features = block(features, skips.pop())
        features = functional.pixel_shuffle(self.head[:2](features), self.config.unshuffle)
        # In float32: in bfloat16, tanh is exactly 1 from 3.5 on, where a wrong pixel would have no gradient.
        rgba = torch.tanh(self.head[2](features).float())
        if self.config.alpha_clip and not self.training:
            rgba = torch.cat([rgba[:, :3], clip_alpha(rgba[:, 3:], self.config.alpha_clip)], dim=1)
        return rgba[..., :height, :width]


def pad_to_multiple(image_BCHW: Tensor, multiple: int) -> Tensor:
    """Pad at the right and the bottom until both sides are multiples of ``multiple``.

    The padding is a reflection; a side that is too short for it repeats its last row or column.
    """
    for axis in (-1, -2):
        side = image_BCHW.shape[axis]
        missing = -side % multiple
        if missing:
            amounts = (0, missing, 0, 0) if axis == -1 else (0, 0, 0, missing)
            image_BCHW = functional.pad(image_BCHW, amounts, mode="reflect" if missing < side else "replicate")
    return image_BCHW


def clip_alpha(alpha: Tensor, alpha_clip: float) -> Tensor:
    """Stretch alphas in [-1, 1] and clamp them, so that the outer ``alpha_clip`` of the range becomes -1 or 1.

    Args:
        alpha: Alphas in [-1, 1].
        alpha_clip: Fraction of the range at each end, less than 0.5.
    """
    return (alpha / (1 - 2 * alpha_clip)).clamp(-1, 1)


def alpha_of(rgba_BCHW: Tensor) -> Tensor:
    """Return the alpha_B1HW in [0, 1] of the network's output, rgba_BCHW in [-1, 1]."""
    return (rgba_BCHW[:, 3:4] + 1) / 2
