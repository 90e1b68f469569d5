"""The ResNets of He et al. (arXiv 1512.03385, section 4.2) for 32x32 images: three narrow stages."""

import torch.nn.functional as F
from torch import Tensor, nn

from backpass.models.initialization import init_convs_fan_out_
from backpass.models.registry import register_model
from backpass.models.resnet import BasicBlock

__all__ = ["CifarBlock", "CifarResNet", "resnet20"]

_WIDTHS = (16, 32, 64)


class CifarBlock(BasicBlock):
    """Two 3x3 convs; where the shape changes, the shortcut is strided and padded with zero channels (option A)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.downsample = _PaddedShortcut(stride, out_channels - in_channels)


class _PaddedShortcut(nn.Module):
    """Every ``stride``-th pixel, and zeros for the new channels, half before and half after the old ones."""

    def __init__(self, stride: int, new_channels: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = new_channels

    def forward(self, x: Tensor) -> Tensor:
        before = self.new_channels // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new_channels - before))


class CifarResNet(nn.Module):
    """A 3x3 stem of 16 channels, three stages of 16, 32 and 64 channels, the mean over the map, and a linear layer.

    Args:
        depth: number of weight layers, 6 n + 2 with n blocks a stage.
        num_classes: number of logits.
        in_channels: channels of the images.
    """

    def __init__(self, depth: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, _WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        blocks: list[nn.Module] = []
        channels = _WIDTHS[0]
        for width in _WIDTHS:
            for number in range((depth - 2) // 6):
                blocks.append(CifarBlock(channels, width, 2 if number == 0 and width != _WIDTHS[0] else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, num_classes)
        init_convs_fan_out_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` for images ``(N, in_channels, H, W)``."""
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


@register_model
def resnet20(num_classes: int = 100, in_channels: int = 3) -> CifarResNet:
    """Return ResNet-20: 275,572 parameters, 40.56M MACs, 19 convs with k > 1; 269,722 parameters at 10 classes.

    Convs have no bias and are drawn as by He et al.; the linear layer has PyTorch's default.
    """
    return CifarResNet(20, num_classes, in_channels)
