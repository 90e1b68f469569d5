"""Small models with one backbone: a classifier, a PSPNet, and a net for heat maps."""

import torch.nn.functional as F
from torch import Tensor, nn

from backpass.models.pspnet import PSPNet


class Block(nn.Module):
    """Two 3x3 convs with BN, and a shortcut."""

    def __init__(self, channels: int, width: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class Backbone(nn.Module):
    """A stem of stride 2 and four blocks, the last of stride 8; returns the maps of the last two."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.layer1, self.layer2 = Block(16, 16), Block(16, 32, 2)
        self.layer3, self.layer4 = Block(32, 64, 2), Block(64, 64, dilation=2)

    def forward(self, x: Tensor) -> list[Tensor]:
        stage3 = self.layer3(self.layer2(self.layer1(self.stem(x))))
        return [stage3, self.layer4(stage3)]


class Classifier(nn.Module):
    """The backbone and a linear layer on the mean over its map."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.backbone, self.fc = Backbone(in_channels), nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.backbone(x)[-1].mean((2, 3)))


class HeatMaps(nn.Module):
    """The backbone, a transposed conv to stride 4, and a 1x1 conv to the heat maps."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.backbone = Backbone(in_channels)
        self.up = nn.Sequential(nn.ConvTranspose2d(64, 64, 4, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.head = nn.Conv2d(64, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.backbone(x)[-1]))


def small_classifier(num_classes: int = 19, in_channels: int = 3) -> nn.Module:
    return Classifier(num_classes, in_channels)


def small_pspnet(num_classes: int = 19, in_channels: int = 3) -> nn.Module:
    return PSPNet(Backbone(in_channels), (64, 64), num_classes, widths=(64, 32))


def small_heatmaps(num_classes: int = 16, in_channels: int = 3) -> nn.Module:
    return HeatMaps(num_classes, in_channels)
