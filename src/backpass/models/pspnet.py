"""PSPNet for semantic segmentation, on ResNets at output stride 8 (SGS Table 7)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backpass.models.backbone import FirstBlock, build_backbone, dilate_first_blocks
from backpass.models.registry import register_model

__all__ = ["PSPNet", "PyramidPooling", "pspnet18", "pspnet34", "pspnet50"]

_BINS = (1, 2, 3, 6)
_DROPOUT = 0.1


class PyramidPooling(nn.Module):
    """The map, followed by its averages over 1, 4, 9 and 36 regions, each reduced to a quarter of the channels.

    Each branch is an adaptive average pool, a 1x1 conv without bias, BN, ReLU and a bilinear upsampling to the size of
    the map (``align_corners``). With one region BN sees one value for each channel and image, so training takes more
    than one image a process, or synchronised BN.

    Args:
        channels: channels C of the map; the result has 2C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = channels // len(_BINS)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(bins),
                nn.Conv2d(channels, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            )
            for bins in _BINS
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the map and its four reduced averages, ``(N, 2C, H, W)``."""
        return torch.cat([x, *(_resize(branch(x), x) for branch in self.branches)], dim=1)


class PSPNet(nn.Module):
    """A ResNet at output stride 8, pyramid pooling, a head, and an auxiliary head on stage 3 for training.

    Zhao et al., CVPR 2017, as published in hszhao/semseg. A head is a 3x3 conv without bias, BN, ReLU,
    ``Dropout2d(0.1)`` and a 1x1 conv. Logits are upsampled to the size of the images (bilinear, ``align_corners``);
    with sides of 8n + 1 pixels, such as 713, every eighth pixel then is one of the map.

    Args:
        backbone: returns the maps of stages 3 and 4 at stride 8.
        channels: channels of these two maps.
        num_classes: number of classes.
        auxiliary: whether there is an auxiliary head, which nothing but training uses.
        widths: channels of the 3x3 convs of the head and of the auxiliary head; default: the published 512 and 256.
    """

    def __init__(
        self,
        backbone: nn.Module,
        channels: tuple[int, int],
        num_classes: int,
        auxiliary: bool = True,
        widths: tuple[int, int] = (512, 256),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = PyramidPooling(channels[1])
        self.head = _head(2 * channels[1], widths[0], num_classes)
        self.auxiliary = _head(channels[0], widths[1], num_classes) if auxiliary else None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return logits ``(N, num_classes, H, W)`` for images ``(N, in_channels, H, W)``.

        In training mode, with an auxiliary head, the result is the pair of its logits and the auxiliary head's.
        """
        if self.training and self.auxiliary is not None:
            return self.all_heads(x)
        _, stage4 = self.backbone(x)
        return _resize(self.head(self.pyramid(stage4)), x)

    def all_heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of the head and, if there is one, of the auxiliary head, in training and eval mode.

        Spatial Gradient Scaling measures in eval mode, so it reaches the auxiliary head only this way:
        ``sgs.update(batches, forward=model.all_heads)``.
        """
        stage3, stage4 = self.backbone(x)
        logits = _resize(self.head(self.pyramid(stage4)), x)
        if self.auxiliary is None:
            return (logits,)
        return logits, _resize(self.auxiliary(stage3), x)


def _head(in_channels: int, width: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Dropout2d(_DROPOUT),
        nn.Conv2d(width, num_classes, 1),
    )


def _resize(maps: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(maps, size=like.shape[-2:], mode="bilinear", align_corners=True)


def _pspnet(
    name: str,
    num_classes: int,
    in_channels: int,
    first_block: FirstBlock = "full",
    deep_stem: bool = False,
    auxiliary: bool = True,
) -> PSPNet:
    backbone = build_backbone(name, (3, 4), 8, in_channels, deep_stem)
    dilate_first_blocks(backbone, first_block)
    information: Any = backbone.feature_info
    stage3, stage4 = information.channels()
    return PSPNet(backbone, (stage3, stage4), num_classes, auxiliary)


@register_model
def pspnet18(
    num_classes: int = 19,
    in_channels: int = 3,
    *,
    first_block: FirstBlock = "full",
    deep_stem: bool = False,
    auxiliary: bool = True,
) -> PSPNet:
    """Return PSPNet-18: 16,764,262 parameters (16,169,043 without the auxiliary head), 133.41G MACs (SGS Table 7).

    MACs are for one image of 713x713 without the auxiliary head, which only training runs; 19 convs have k > 1, the
    auxiliary head's included. The heads have PyTorch's default initialisation, the backbone timm's.

    Args:
        num_classes: number of classes; default 19, those of Cityscapes.
        in_channels: channels of the images.
        first_block: dilation in the first block of stages 3 and 4: ``"full"`` (default), 2 and 4 in every 3x3 conv, as
            in hszhao/semseg, or ``"half"``, 1 and 2 in the conv that carried the stride, as in timm. The semseg code
            has no ResNet-18 or 34, and the SGS paper does not state its own variant.
        deep_stem: stem of three 3x3 convs, as in hszhao/semseg; default: the 7x7 conv of the ImageNet models of SGS.
        auxiliary: whether there is an auxiliary head.

    Raises:
        InputError: ``first_block`` is unknown.
        MissingExtraError: timm is not installed.
    """
    return _pspnet("resnet18", num_classes, in_channels, first_block, deep_stem, auxiliary)


@register_model
def pspnet34(
    num_classes: int = 19,
    in_channels: int = 3,
    *,
    first_block: FirstBlock = "full",
    deep_stem: bool = False,
    auxiliary: bool = True,
) -> PSPNet:
    """Return PSPNet-34: 26,872,422 parameters (26,277,203 without the auxiliary head), 216.99G MACs (SGS Table 7).

    35 convs have k > 1. Arguments and counts as in :func:`pspnet18`.
    """
    return _pspnet("resnet34", num_classes, in_channels, first_block, deep_stem, auxiliary)


@register_model
def pspnet50(
    num_classes: int = 19,
    in_channels: int = 3,
    *,
    first_block: FirstBlock = "full",
    deep_stem: bool = False,
    auxiliary: bool = True,
) -> PSPNet:
    """Return PSPNet-50: 48,956,262 parameters (46,591,571 without the auxiliary head), 350.00G MACs (SGS Table 7).

    19 convs have k > 1. Arguments and counts as in :func:`pspnet18`.
    """
    return _pspnet("resnet50", num_classes, in_channels, first_block, deep_stem, auxiliary)
