"""ResNet with transposed convolutions for heat maps of key points (SGS Table 8)."""

from typing import Any

from torch import Tensor, nn

from backpass.models.backbone import build_backbone
from backpass.models.registry import register_model

__all__ = ["PoseResNet", "pose_resnet18", "pose_resnet34", "pose_resnet50"]

_WIDTH = 256
_LAYERS = 3
_STD = 0.001


class PoseResNet(nn.Module):
    """A ResNet without pooling and classifier, three transposed convolutions, and a 1x1 conv to the heat maps.

    Xiao et al., ECCV 2018 ("MSRA ResNet"), as published in microsoft/human-pose-estimation.pytorch. Each transposed
    conv is 4x4 of stride 2 and padding 1, with 256 channels, without bias, followed by BN and ReLU. Their weights and
    those of the 1x1 conv are drawn from N(0, 0.001**2), and its bias is 0.

    Args:
        backbone: returns a list of one map at stride 32.
        channels: channels of this map.
        num_classes: number of heat maps, one a joint.
    """

    def __init__(self, backbone: nn.Module, channels: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        layers: list[nn.Module] = []
        for _ in range(_LAYERS):
            layers += [
                nn.ConvTranspose2d(channels, _WIDTH, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(_WIDTH),
                nn.ReLU(inplace=True),
            ]
            channels = _WIDTH
        self.upsampling = nn.Sequential(*layers)
        self.head = nn.Conv2d(_WIDTH, num_classes, 1)
        for module in (*self.upsampling, self.head):
            if isinstance(module, nn.ConvTranspose2d | nn.Conv2d):
                nn.init.normal_(module.weight, std=_STD)
        if self.head.bias is not None:
            nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return heat maps ``(N, num_classes, H / 4, W / 4)`` for images ``(N, in_channels, H, W)``."""
        (maps,) = self.backbone(x)
        heatmaps: Tensor = self.head(self.upsampling(maps))
        return heatmaps


def _pose_resnet(name: str, num_classes: int, in_channels: int) -> PoseResNet:
    backbone = build_backbone(name, (4,), 32, in_channels)
    information: Any = backbone.feature_info
    return PoseResNet(backbone, information.channels()[0], num_classes)


@register_model
def pose_resnet18(num_classes: int = 16, in_channels: int = 3) -> PoseResNet:
    """Return MSRA ResNet-18: 15,376,464 parameters, 3.862G MACs, 17 convs with k > 1 (SGS Table 8).

    Counts are for 16 joints (MPII) and one 256x256 image; the transposed convolutions are not among the 17. The
    backbone has timm's initialisation.

    Raises:
        MissingExtraError: timm is not installed.
    """
    return _pose_resnet("resnet18", num_classes, in_channels)


@register_model
def pose_resnet34(num_classes: int = 16, in_channels: int = 3) -> PoseResNet:
    """Return MSRA ResNet-34: 25,484,624 parameters, 6.278G MACs, 33 convs with k > 1 (SGS Table 8).

    Counts and initialisation as in :func:`pose_resnet18`.
    """
    return _pose_resnet("resnet34", num_classes, in_channels)


@register_model
def pose_resnet50(num_classes: int = 16, in_channels: int = 3) -> PoseResNet:
    """Return MSRA ResNet-50: 33,999,440 parameters, 7.234G MACs, 17 convs with k > 1 (SGS Table 8).

    Counts and initialisation as in :func:`pose_resnet18`.
    """
    return _pose_resnet("resnet50", num_classes, in_channels)
