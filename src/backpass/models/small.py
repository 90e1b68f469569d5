"""Small networks: one for very small images such as the digits, and a depthwise one for 32x32 images."""

import torch.nn.functional as F
from torch import Tensor, nn

from backpass.models.registry import register_model

__all__ = ["DepthwiseNet", "DigitsNet", "depthwise_net", "digits_net"]


class DigitsNet(nn.Module):
    """Three 3x3 convs (32, 64, 64 channels), each with BN and ReLU, a linear layer on the mean over the map.

    A 2x2 max-pool after the second conv halves the map. Convs have no bias. Initialisation is PyTorch's default.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(64)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` for images ``(N, in_channels, H, W)`` of at least 2x2 pixels."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.max_pool2d(x, 2)
        x = F.relu(self.bn3(self.conv3(x)))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


@register_model
def digits_net(num_classes: int = 10, in_channels: int = 1) -> DigitsNet:
    """Return a small plain net for 8x8 images: 56,554 parameters, 1.79M MACs, 3 convs with k > 1."""
    return DigitsNet(num_classes, in_channels)


class DepthwiseNet(nn.Module):
    """A 3x3 stem and five depthwise separable convs, a linear layer on the mean over the map.

    Each separable conv is a 3x3 depthwise conv, BN, ReLU, a 1x1 conv, BN, ReLU (MobileNet, arXiv 1704.04861); the
    second and the fourth have stride 2. Convs have no bias. Initialisation is PyTorch's default.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        layers = _conv_bn_relu(in_channels, 32, 3)
        channels = 32
        for width, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)):
            layers += _conv_bn_relu(channels, channels, 3, stride, groups=channels) + _conv_bn_relu(channels, width, 1)
            channels = width
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` for images ``(N, in_channels, H, W)``."""
        logits: Tensor = self.fc(self.features(x).mean((2, 3)))
        return logits


def _conv_bn_relu(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]


@register_model
def depthwise_net(num_classes: int = 100, in_channels: int = 3) -> DepthwiseNet:
    """Return a small depthwise net: 159,908 parameters, 16.55M MACs, 6 convs with k > 1, 5 of them depthwise."""
    return DepthwiseNet(num_classes, in_channels)
