"""MobileNetV2 for 32x32 images."""

from torch import Tensor, nn

from backpass.models.registry import register_model

__all__ = ["InvertedResidual", "MobileNetV2", "mobilenetv2"]

# Expansion, output channels, number of blocks, and stride of the first block of each stage.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 1),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """A 1x1 expansion, a 3x3 depthwise conv and a linear 1x1 conv, plus the input where the shape is kept.

    All convs have a bias and BN; ReLU6 follows the first two. The expansion stands also where it is 1.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = in_channels * expansion
        self.keeps_shape = stride == 1 and in_channels == out_channels
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, width, 1),
            nn.BatchNorm2d(width),
            nn.ReLU6(),
            nn.Conv2d(width, width, 3, stride, padding=1, groups=width),
            nn.BatchNorm2d(width),
            nn.ReLU6(),
            nn.Conv2d(width, out_channels, 1),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual, plus ``x`` where both have one shape."""
        residual: Tensor = self.residual(x)
        return x + residual if self.keeps_shape else residual


class MobileNetV2(nn.Module):
    """A 1x1 stem, 17 inverted residuals, a 1x1 conv to 1280 channels, and a 1x1 conv to the logits.

    The stem's conv is padded by 1, so that the map of a 32x32 image is 34x34 after it and 5x5 at the end.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 32, 1, padding=1), nn.BatchNorm2d(32), nn.ReLU6())
        blocks = []
        channels = 32
        for expansion, width, depth, first_stride in _STAGES:
            for index in range(depth):
                stride = first_stride if index == 0 else 1
                blocks.append(InvertedResidual(channels, width, stride, expansion))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(nn.Conv2d(channels, 1280, 1), nn.BatchNorm2d(1280), nn.ReLU6())
        self.classifier = nn.Conv2d(1280, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` for images ``(N, in_channels, H, W)``."""
        x = self.last(self.blocks(self.stem(x)))
        logits: Tensor = self.classifier(x.mean((2, 3), keepdim=True))
        return logits.flatten(1)


@register_model
def mobilenetv2(num_classes: int = 100, in_channels: int = 3) -> MobileNetV2:
    """Return MobileNetV2: 2,369,380 parameters, 64.95M MACs, 17 convs with k > 1 (SGS Table 4).

    These convs are all depthwise. Convs have a bias. Initialisation is PyTorch's default. Counts are for 100
    classes and one 32x32 image.
    """
    return MobileNetV2(num_classes, in_channels)
