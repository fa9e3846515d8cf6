"""The baseline's network, written out layer by layer from the description of its published structure.

Slow to read and obvious on purpose: no loops over levels, no shared blocks, no scaling inside. Takes image_BCHW in
[-1, 1] with sides that are multiples of 8. Width 32, depth 3.
"""

import torch
from torch import nn


def conv(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=1, padding=1, bias=False)


def up(channels_in: int, channels_out: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels_in, channels_out, kernel_size=4, stride=2, padding=1, bias=False)


class BaselineUNet(nn.Module):
    """U-Net of width 32 and depth 3; `relu` is "layer" or "block", as in UNetConfig."""

    def __init__(self, relu: str) -> None:
        super().__init__()
        self.between = nn.ReLU() if relu == "layer" else nn.Identity()
        self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(2, 2)

        self.enc1a, self.enc1a_bn = conv(3, 32), nn.BatchNorm2d(32)
        self.enc1b, self.enc1b_bn = conv(32, 32), nn.BatchNorm2d(32)
        self.enc2a, self.enc2a_bn = conv(32, 64), nn.BatchNorm2d(64)
        self.enc2b, self.enc2b_bn = conv(64, 64), nn.BatchNorm2d(64)
        self.enc3a, self.enc3a_bn = conv(64, 128), nn.BatchNorm2d(128)
        self.enc3b, self.enc3b_bn = conv(128, 128), nn.BatchNorm2d(128)
        self.enc4a, self.enc4a_bn = conv(128, 256), nn.BatchNorm2d(256)
        self.enc4b, self.enc4b_bn = conv(256, 256), nn.BatchNorm2d(256)

        self.up3, self.up3_bn = up(256, 128), nn.BatchNorm2d(128)
        self.dec3a, self.dec3a_bn = conv(256, 128), nn.BatchNorm2d(128)
        self.dec3b, self.dec3b_bn = conv(128, 128), nn.BatchNorm2d(128)
        self.up2, self.up2_bn = up(128, 64), nn.BatchNorm2d(64)
        self.dec2a, self.dec2a_bn = conv(128, 64), nn.BatchNorm2d(64)
        self.dec2b, self.dec2b_bn = conv(64, 64), nn.BatchNorm2d(64)
        self.up1, self.up1_bn = up(64, 32), nn.BatchNorm2d(32)
        self.dec1a, self.dec1a_bn = conv(64, 32), nn.BatchNorm2d(32)
        self.dec1b, self.dec1b_bn = conv(32, 32), nn.BatchNorm2d(32)

        self.out_a, self.out_bn = conv(32, 4), nn.BatchNorm2d(4)
        self.out_b = conv(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        e1 = self.relu(self.enc1b_bn(self.enc1b(self.between(self.enc1a_bn(self.enc1a(x))))))
        e2 = self.relu(self.enc2b_bn(self.enc2b(self.between(self.enc2a_bn(self.enc2a(self.pool(e1)))))))
        e3 = self.relu(self.enc3b_bn(self.enc3b(self.between(self.enc3a_bn(self.enc3a(self.pool(e2)))))))
        e4 = self.relu(self.enc4b_bn(self.enc4b(self.between(self.enc4a_bn(self.enc4a(self.pool(e3)))))))
        d3 = torch.cat((self.relu(self.up3_bn(self.up3(e4))), e3), 1)
        d3 = self.relu(self.dec3b_bn(self.dec3b(self.between(self.dec3a_bn(self.dec3a(d3))))))
        d2 = torch.cat((self.relu(self.up2_bn(self.up2(d3))), e2), 1)
        d2 = self.relu(self.dec2b_bn(self.dec2b(self.between(self.dec2a_bn(self.dec2a(d2))))))
        d1 = torch.cat((self.relu(self.up1_bn(self.up1(d2))), e1), 1)
        d1 = self.relu(self.dec1b_bn(self.dec1b(self.between(self.dec1a_bn(self.dec1a(d1))))))
        return torch.tanh(self.out_b(self.out_bn(self.out_a(d1))))
