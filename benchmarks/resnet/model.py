"""A small residual network for images of 32 x 32 pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

STEM = "stem"
"""The name of the convolution that reads the pixels."""


class ResNet8(nn.Module):
    """A network of He et al. 2016 for CIFAR (section 4.2, 6n + 2 layers) with n = 1, for one processor core.

    A convolution, three stages of one block of two 3 x 3 convolutions (of ``width``, 2 and 4 times that
    many channels, at half the resolution each), the mean over places, and a linear layer. Batch norm follows
    every convolution. It differs from the published network in two things: the first convolution has stride
    2, which makes an epoch four times as fast, and where the number of channels changes, the shortcut is a
    1 x 1 convolution with batch norm (the paper's option B) in place of padding by zeros.

    The convolution that ends a block and its shortcut write the same channels: a residual connection makes
    all channels of a stage, but those inside its block, one space.

    Args:
        image_shape: ``(channels, height, width)``.
        num_classes: the number of outputs.
        width: the channels of the first stage.

    Example:
        >>> ResNet8()(torch.zeros(5, 3, 32, 32)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self, image_shape: Sequence[int] = (3, 32, 32), num_classes: int = 10, width: int = 16
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(image_shape[0], width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.stage1 = _Block(width, width, stride=1)
        self.stage2 = _Block(width, 2 * width, stride=2)
        self.stage3 = _Block(2 * width, 4 * width, stride=2)
        self.head = nn.Linear(4 * width, num_classes)
        # The processor's convolutions are a quarter faster if channels are innermost.
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        places = self.stage3(self.stage2(self.stage1(relu(self.norm(self.stem(images))))))
        logits: Tensor = self.head(places.mean((2, 3)))
        return logits


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if before != after:
            norm = nn.BatchNorm2d(after)
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), norm)

    def forward(self, before: Tensor) -> Tensor:
        inside = relu(self.norm1(self.conv1(before)))
        return relu(self.norm2(self.conv2(inside)) + self.shortcut(before))
