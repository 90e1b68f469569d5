"""ResNet for 32x32 images, and the layout that its pre-activation, SE and norm-free relatives share."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from backpass.models.registry import register_model

__all__ = ["BasicBlock", "Bottleneck", "ResNet", "ResidualBlock", "resnet18", "resnet34", "resnet50"]

BlockBuilder = Callable[[int, int, int], nn.Module]
"""Builds a block from its input channels, output channels and stride."""

Norm = Callable[[int], nn.Module]
"""Builds a normalisation layer for a number of channels."""

BASIC_WIDTHS = (64, 128, 256, 512)
BOTTLENECK_WIDTHS = (256, 512, 1024, 2048)


class ResidualBlock(nn.Module):
    """``ReLU(residual(x) + shortcut(x))``; subclasses define ``residual``.

    The shortcut is the identity where the block keeps the shape, and a strided 1x1 conv with normalisation
    where it does not.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, norm: Norm = nn.BatchNorm2d, bias: bool = False
    ) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=bias), norm(out_channels)
            )

    def residual(self, x: Tensor) -> Tensor:
        """Return what is added to the shortcut."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated sum of residual and shortcut."""
        return F.relu(self.residual(x) + self.downsample(x))


class BasicBlock(ResidualBlock):
    """Two 3x3 convs; the first carries the stride."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, norm: Norm = nn.BatchNorm2d, bias: bool = False
    ) -> None:
        super().__init__(in_channels, out_channels, stride, norm, bias)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=bias)
        self.bn1 = norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias)
        self.bn2 = norm(out_channels)

    def residual(self, x: Tensor) -> Tensor:
        """Return conv - norm - ReLU - conv - norm of ``x``."""
        x = F.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.bn2(self.conv2(x))
        return out


class Bottleneck(ResidualBlock):
    """A 1x1 conv to a quarter of the width, a 3x3 conv that carries the stride, and a 1x1 conv back."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, norm: Norm = nn.BatchNorm2d, bias: bool = False
    ) -> None:
        super().__init__(in_channels, out_channels, stride, norm, bias)
        width = out_channels // 4
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=bias)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=bias)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=bias)
        self.bn3 = norm(out_channels)

    def residual(self, x: Tensor) -> Tensor:
        """Return three times conv - norm, with ReLUs between, of ``x``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        out: Tensor = self.bn3(self.conv3(x))
        return out


class ResNet(nn.Module):
    """A stem, four stages of blocks with strides 1, 2, 2, 2, the mean over the map, and a linear layer.

    Parameters have torchvision's names (``conv1``, ``bn1``, ``layer1.0.conv1``, ``fc``).

    Args:
        block: builds one block from ``(in_channels, out_channels, stride)``.
        depths: number of blocks of each stage.
        widths: output channels of each stage.
        num_classes: number of logits.
        in_channels: channels of the images.
        stem: ``"cifar"`` is a 3x3 conv of stride 1; ``"imagenet"`` a 7x7 conv of stride 2 and a 3x3 max-pool of
            stride 2. Both have 64 channels, normalisation and ReLU.
        norm: builds the stem's normalisation layer.
        bias: whether the stem's conv has a bias.
    """

    def __init__(
        self,
        block: BlockBuilder,
        depths: Sequence[int],
        widths: Sequence[int],
        num_classes: int,
        in_channels: int,
        *,
        stem: Literal["cifar", "imagenet"] = "cifar",
        norm: Norm = nn.BatchNorm2d,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if stem == "cifar":
            self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=bias)
            self.maxpool: nn.Module = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=bias)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.bn1 = norm(64)
        channels = (64, *widths)
        self.layer1 = _stage(block, depths[0], channels[0], channels[1], stride=1)
        self.layer2 = _stage(block, depths[1], channels[1], channels[2], stride=2)
        self.layer3 = _stage(block, depths[2], channels[2], channels[3], stride=2)
        self.layer4 = _stage(block, depths[3], channels[3], channels[4], stride=2)
        self.fc = nn.Linear(channels[4], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` for images ``(N, in_channels, H, W)``."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _stage(block: BlockBuilder, depth: int, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    first = block(in_channels, out_channels, stride)
    return nn.Sequential(first, *(block(out_channels, out_channels, 1) for _ in range(depth - 1)))


@register_model
def resnet18(num_classes: int = 100, in_channels: int = 3) -> ResNet:
    """Return ResNet-18: 11,220,132 parameters, 555.47M MACs, 17 convs with k > 1 (SGS Table 4).

    Convs have no bias. Initialisation is PyTorch's default. Counts are for 100 classes and one 32x32 image.
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), BASIC_WIDTHS, num_classes, in_channels)


@register_model
def resnet34(num_classes: int = 100, in_channels: int = 3) -> ResNet:
    """Return ResNet-34: 21,328,292 parameters, 1159.45M MACs, 33 convs with k > 1 (SGS Table 4).

    Biases, initialisation and counts as in :func:`resnet18`.
    """
    return ResNet(BasicBlock, (3, 4, 6, 3), BASIC_WIDTHS, num_classes, in_channels)


@register_model
def resnet50(num_classes: int = 100, in_channels: int = 3) -> ResNet:
    """Return ResNet-50: 23,705,252 parameters, 1298.01M MACs, 17 convs with k > 1 (SGS Table 4).

    The stride of a bottleneck is on its 3x3 conv. Biases, initialisation and counts as in :func:`resnet18`.
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), BOTTLENECK_WIDTHS, num_classes, in_channels)
