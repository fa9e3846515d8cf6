"""The network: photo in, premultiplied cutout and alpha out.

image_BCHW, float in [0, 1]  ->  UNet  ->  rgba_BCHW, float in [-1, 1]

Scaling to the network's own range happens inside the model, so that no caller can forget it. This file knows the shape
of the network and nothing else: no losses, no devices, no files.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Relu = Literal["layer", "block"]
Join = Literal["concat", "add"]


@dataclass(frozen=True)
class UNetConfig:
    """Shape of the network.

    Args:
        width: channels of the first level; each level down doubles them, up to max_width.
        depth: how often the picture is halved.
        max_width: channels that no level has more of.
        relu: "layer" puts a ReLU after every convolution of a block, "block" only after the second, as in the seed's
            published code.
        join: how a level's features come back on the way up: "concat" beside those from below, then two convolutions,
            as in the U-Net; "add" onto them, then one, as in LinkNet (Chaurasia and Culurciello 2017), in two thirds of
            the arithmetic.
        stem: pixels a side that the levels take as one: at the entrance their colours become channels, at the exit
            channels become pixels (Shi et al. 2016). With 2, the level that costs most and knows least is spared.
        ends: alphas of the trained network within this of 0 and 1 become 0 and 1, and those between are spread, so that
            doubt leaves no haze. Not while it learns, as what is clipped has no gradient.
    """

    width: int = 32
    depth: int = 3
    relu: Relu = "layer"
    max_width: int = 1024
    join: Join = "concat"
    stem: int = 1
    ends: float = 0.0

    def __post_init__(self) -> None:
        for name in ("width", "depth", "stem"):
            if getattr(self, name) < 1:
                raise ValueError(f"UNet needs {name} >= 1, got {getattr(self, name)}")
        if self.max_width < self.width:
            raise ValueError(f"UNet needs max_width >= width, got {self.max_width} and {self.width}")
        if self.relu not in ("layer", "block"):
            raise ValueError(f"relu is 'layer' or 'block', got {self.relu!r}")
        if self.join not in ("concat", "add"):
            raise ValueError(f"join is 'concat' or 'add', got {self.join!r}")
        if not 0 <= self.ends < 0.5:
            raise ValueError(f"ends is at least 0 and less than 0.5, got {self.ends}")

    @property
    def multiple(self) -> int:
        """What a picture's sides must be multiples of."""
        return int(self.stem * 2**self.depth)


class DoubleConv(nn.Sequential):
    """Two 3×3 convolutions, each with BatchNorm and no bias."""

    def __init__(self, channels_in: int, channels_out: int, relu: Relu) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        ]
        if relu == "layer":
            layers.append(nn.ReLU(inplace=True))
        layers += [
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        ]
        super().__init__(*layers)


class Up(nn.Module):
    """Double the resolution, join the encoder's features of that level, convolve."""

    def __init__(self, channels_in: int, channels_out: int, config: UNetConfig) -> None:
        super().__init__()
        self._concat = config.join == "concat"
        self.grow = nn.Sequential(
            nn.ConvTranspose2d(channels_in, channels_out, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        )
        self.merge: nn.Module
        if self._concat:
            self.merge = DoubleConv(2 * channels_out, channels_out, config.relu)
        else:
            self.merge = nn.Sequential(
                nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels_out),
                nn.ReLU(inplace=True),
            )

    def forward(self, features_BCHW: Tensor, skip_BCHW: Tensor) -> Tensor:
        grown = self.grow(features_BCHW)
        joined = torch.cat([grown, skip_BCHW], dim=1) if self._concat else grown + skip_BCHW
        merged: Tensor = self.merge(joined)
        return merged


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) of the design: 2,444,600 parameters at width 32 and depth 3.

    Args:
        config: its shape.

    Call with ``image_BCHW``, float in [0, 1], 3 channels, any height and width: sides that are no multiple of
    ``config.multiple`` are padded by reflection, and the output is cropped back. Returns ``rgba_BCHW`` in [-1, 1]:
    channels 0 to 2 are the image premultiplied by alpha, channel 3 is alpha.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [min(config.width * 2**level, config.max_width) for level in range(config.depth + 1)]
        self.down = nn.ModuleList(
            DoubleConv(channels_in, channels_out, config.relu)
            for channels_in, channels_out in zip([3 * config.stem**2, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            Up(channels_in, channels_out, config)
            for channels_in, channels_out in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        channels = 4 * config.stem**2
        self.head = nn.Sequential(
            nn.Conv2d(config.width, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.Conv2d(4, 4, 3, padding=1, bias=False),
        )

    def forward(self, image_BCHW: Tensor) -> Tensor:
        height, width = image_BCHW.shape[-2:]
        features = pad_to_multiple(image_BCHW * 2 - 1, self.config.multiple)
        if self.config.stem > 1:
            features = functional.pixel_unshuffle(features, self.config.stem)
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            if level:
                skips.append(features)
                features = functional.max_pool2d(features, 2)
            features = block(features)
        for block in self.up:
            features = block(features, skips.pop())
        features = functional.pixel_shuffle(self.head[:2](features), self.config.stem)
        # In float32: in bfloat16, tanh is 1 from 3.5 on, and a pixel that is wrong there would have no gradient.
        rgba = torch.tanh(self.head[2](features).float())
        if self.config.ends and not self.training:
            rgba = torch.cat([rgba[:, :3], clean_ends(rgba[:, 3:], self.config.ends)], dim=1)
        return rgba[..., :height, :width]


def pad_to_multiple(image_BCHW: Tensor, multiple: int) -> Tensor:
    """Pad at the right and below until both sides are multiples of ``multiple``.

    By reflection; a side too short to be reflected that far repeats its last row or column instead.
    """
    for axis in (-1, -2):
        side = image_BCHW.shape[axis]
        missing = -side % multiple
        if missing:
            amounts = (0, missing, 0, 0) if axis == -1 else (0, 0, 0, missing)
            image_BCHW = functional.pad(image_BCHW, amounts, mode="reflect" if missing < side else "replicate")
    return image_BCHW


def clean_ends(alpha: Tensor, ends: float) -> Tensor:
    """Alphas in [-1, 1], of which those within ``ends`` of the whole range from either end come to lie there."""
    return (alpha / (1 - 2 * ends)).clamp(-1, 1)


def alpha_of(rgba_BCHW: Tensor) -> Tensor:
    """The network's alpha, from [-1, 1] to [0, 1]: rgba_BCHW -> alpha_B1HW."""
    return (rgba_BCHW[:, 3:4] + 1) / 2
