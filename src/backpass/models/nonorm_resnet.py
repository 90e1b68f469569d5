"""ImageNet's ResNets without their normalisation layers, as in the PGT paper."""

from collections.abc import Sequence
from functools import partial

from torch import nn

from backpass.models.initialization import init_convs_fan_out_
from backpass.models.registry import register_model
from backpass.models.resnet import (
    BASIC_WIDTHS,
    BOTTLENECK_WIDTHS,
    BasicBlock,
    BlockBuilder,
    Bottleneck,
    ResNet,
)

__all__ = ["nonorm_resnet18", "nonorm_resnet50"]


@register_model
def nonorm_resnet18(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """Return ImageNet's ResNet-18 without its BNs: 11,679,912 parameters, 1.814G MACs, 17 convs with k > 1.

    torchvision's layout with each BN replaced by the identity: convs without bias, drawn from
    N(0, 2 / (k * k * C_out)), no zero initialisation, no scalars. ImageNet top-1 of the PGT paper: 66.80 -> 67.80
    at alpha 0.25. Counts are for 1000 classes and one 224x224 image.
    """
    block = partial(BasicBlock, norm=nn.Identity)
    return _nonorm_resnet(block, (2, 2, 2, 2), BASIC_WIDTHS, num_classes, in_channels)


@register_model
def nonorm_resnet50(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """Return ImageNet's ResNet-50 without its BNs: 25,503,912 parameters, 4.089G MACs, 17 convs with k > 1.

    Layout, initialisation and counts as in :func:`nonorm_resnet18`.
    """
    block = partial(Bottleneck, norm=nn.Identity)
    return _nonorm_resnet(block, (3, 4, 6, 3), BOTTLENECK_WIDTHS, num_classes, in_channels)


def _nonorm_resnet(
    block: BlockBuilder, depths: Sequence[int], widths: Sequence[int], num_classes: int, in_channels: int
) -> ResNet:
    model = ResNet(block, depths, widths, num_classes, in_channels, stem="imagenet", norm=nn.Identity)
    init_convs_fan_out_(model)
    return model
