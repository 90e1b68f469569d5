"""Pre-activation ResNet for 32x32 images."""

import torch.nn.functional as F
from torch import Tensor, nn

from backpass.models.registry import register_model
from backpass.models.resnet import BASIC_WIDTHS, ResNet

__all__ = ["PreActBlock", "preactresnet18", "preactresnet34"]


class PreActBlock(nn.Module):
    """``residual(x) + shortcut(x)`` with BN and ReLU before each of the two 3x3 convs of the residual.

    The shortcut takes the raw input: itself where the block keeps the shape, else a strided 1x1 conv without BN.
    All convs have a bias.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Conv2d(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of residual and shortcut, without an activation."""
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        total: Tensor = out + self.downsample(x)
        return total


@register_model
def preactresnet18(num_classes: int = 100, in_channels: int = 3) -> ResNet:
    """Return PreActResNet-18: 11,222,244 parameters, 555.47M MACs, 17 convs with k > 1.

    SGS Table 4. The stem keeps its BN and ReLU, and none follow the last block. Convs have a bias.
    Initialisation is PyTorch's default. Counts are for 100 classes and one 32x32 image.
    """
    return ResNet(PreActBlock, (2, 2, 2, 2), BASIC_WIDTHS, num_classes, in_channels, bias=True)


@register_model
def preactresnet34(num_classes: int = 100, in_channels: int = 3) -> ResNet:
    """Return PreActResNet-34: 21,334,116 parameters, 1159.45M MACs, 33 convs with k > 1.

    SGS Table 4. Layout and initialisation as in :func:`preactresnet18`.
    """
    return ResNet(PreActBlock, (3, 4, 6, 3), BASIC_WIDTHS, num_classes, in_channels, bias=True)
