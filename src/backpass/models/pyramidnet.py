"""PyramidNet of depth 110 (additive widths, basic blocks) for 32x32 images."""

import torch.nn.functional as F
from torch import Tensor, nn

from backpass.models.initialization import init_convs_fan_out_
from backpass.models.registry import register_model

__all__ = ["PyramidBlock", "PyramidNet", "pyramidnet110_a48", "pyramidnet110_a84", "pyramidnet110_a270"]

_STEM_WIDTH = 16
_BLOCKS_PER_STAGE = 18
_BLOCKS = 3 * _BLOCKS_PER_STAGE


class PyramidBlock(nn.Module):
    """BN - conv - BN - ReLU - conv - BN, plus the input; both convs are 3x3, the first carries the stride.

    The shortcut has no weights: 2x2 average pooling where strided, and zeros for the channels that the input lacks.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.extra_channels = out_channels - in_channels
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of residual and shortcut, without an activation."""
        out = F.relu(self.bn2(self.conv1(self.bn1(x))))
        residual: Tensor = self.bn3(self.conv2(out))
        if self.stride != 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        return residual + F.pad(x, (0, 0, 0, 0, 0, self.extra_channels))


class PyramidNet(nn.Module):
    """54 blocks whose width grows by ``alpha / 54`` a block, from 16 to ``16 + alpha`` channels.

    Block j of 1..54 has ``round(16 + alpha * j / 54)`` output channels; blocks 19 and 37 have stride 2.
    The stem is a 3x3 conv and BN without ReLU; BN, ReLU, the mean over the map and a linear layer come last.
    Convs have no bias and are drawn from N(0, 2 / (k * k * C_out)).
    """

    def __init__(self, alpha: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, _STEM_WIDTH, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM_WIDTH)
        blocks = []
        channels = _STEM_WIDTH
        for index in range(_BLOCKS):
            width = round(_STEM_WIDTH + alpha * (index + 1) / _BLOCKS)
            stride = 2 if index in (_BLOCKS_PER_STAGE, 2 * _BLOCKS_PER_STAGE) else 1
            blocks.append(PyramidBlock(channels, width, stride))
            channels = width
        self.blocks = nn.Sequential(*blocks)
        self.bn2 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        init_convs_fan_out_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` for images ``(N, in_channels, H, W)``."""
        x = self.blocks(self.bn1(self.conv1(x)))
        logits: Tensor = self.fc(F.relu(self.bn2(x)).mean((2, 3)))
        return logits


@register_model
def pyramidnet110_a48(num_classes: int = 100, in_channels: int = 3) -> PyramidNet:
    """Return PyramidNet-110, alpha 48: 1,778,556 parameters, 403.82M MACs, 109 convs with k > 1.

    SGS Table 4. The paper names alpha alone; depth and block are inferred from its baselines.
    Counts are for 100 classes and one 32x32 image.
    """
    return PyramidNet(48, num_classes, in_channels)


@register_model
def pyramidnet110_a84(num_classes: int = 100, in_channels: int = 3) -> PyramidNet:
    """Return PyramidNet-110, alpha 84: 3,913,536 parameters, 772.18M MACs, 109 convs with k > 1.

    SGS Table 4. Depth, block and counts as in :func:`pyramidnet110_a48`.
    """
    return PyramidNet(84, num_classes, in_channels)


@register_model
def pyramidnet110_a270(num_classes: int = 100, in_channels: int = 3) -> PyramidNet:
    """Return PyramidNet-110, alpha 270: 28,511,307 parameters, 4718.01M MACs, 109 convs with k > 1.

    SGS Table 4. Depth, block and counts as in :func:`pyramidnet110_a48`.
    """
    return PyramidNet(270, num_classes, in_channels)
