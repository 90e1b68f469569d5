"""ShuffleNet (version 1, three groups) for 32x32 images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backpass.models.registry import register_model

__all__ = ["ShuffleNet", "ShuffleUnit", "shufflenet"]

_GROUPS = 3


class ShuffleUnit(nn.Module):
    """A grouped 1x1 conv, channel shuffle, 3x3 depthwise conv and grouped 1x1 conv, joined with the input.

    At stride 1 the branch is added to the input. At stride 2 the 3x3 average-pooled input comes first and the
    branch supplies the remaining ``out_channels - in_channels`` channels. A ReLU follows the join. All convs
    have a bias and BN; the inner width is a quarter of ``out_channels``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        width = out_channels // 4
        branch_channels = out_channels if stride == 1 else out_channels - in_channels
        self.conv1 = nn.Conv2d(in_channels, width, 1, groups=_GROUPS)
        self.bn1 = nn.BatchNorm2d(width)
        self.shuffle = nn.ChannelShuffle(_GROUPS)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, groups=width)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, branch_channels, 1, groups=_GROUPS)
        self.bn3 = nn.BatchNorm2d(branch_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated sum, or the activated concatenation where strided."""
        branch = F.relu(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(self.shuffle(branch)))
        branch = self.bn3(self.conv3(branch))
        if self.stride == 1:
            return F.relu(x + branch)
        return F.relu(torch.cat([F.avg_pool2d(x, 3, stride=2, padding=1), branch], dim=1))


class ShuffleNet(nn.Module):
    """A 3x3 stem of 24 channels without pooling, three stages of 4, 8 and 4 units, and a linear layer.

    The first unit of each stage has stride 2. Unlike the ShuffleNet paper, the first 1x1 conv of the first
    stage is grouped as well.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 24, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(24)
        units = []
        channels = 24
        for width, depth in ((240, 4), (480, 8), (960, 4)):
            units.append(ShuffleUnit(channels, width, stride=2))
            units += [ShuffleUnit(width, width, stride=1) for _ in range(depth - 1)]
            channels = width
        self.units = nn.Sequential(*units)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` for images ``(N, in_channels, H, W)``."""
        x = self.units(F.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


@register_model
def shufflenet(num_classes: int = 100, in_channels: int = 3) -> ShuffleNet:
    """Return ShuffleNet: 1,012,108 parameters, 41.69M MACs, 17 convs with k > 1 (SGS Table 4).

    Of these convs 16 are depthwise. Convs have a bias. Initialisation is PyTorch's default. Counts are for 100
    classes and one 32x32 image.
    """
    return ShuffleNet(num_classes, in_channels)
