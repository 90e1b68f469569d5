"""ResNet backbones of timm for models with a dense output."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from backpass._internal.imports import import_lab
from backpass.errors import InputError

__all__ = ["FirstBlock", "build_backbone", "dilate_first_blocks"]

FirstBlock = Literal["full", "half"]
"""Dilation of the 3x3 convs in the first block of a dilated stage (:func:`dilate_first_blocks`)."""


def build_backbone(
    name: str, stages: Sequence[int], output_stride: int, in_channels: int, deep_stem: bool = False
) -> nn.Module:
    """Return a ResNet of timm without its classifier, which gives the maps of some stages.

    Parameters have timm's names, which are torchvision's, so that weights trained on ImageNet load. Initialisation is
    timm's, with the last normalisation of every block at 1, as in torchvision.

    Args:
        name: a ResNet of timm, such as ``"resnet18"``.
        stages: stages whose maps are returned, from 1 to 4, ascending.
        output_stride: stride of the last stage: 32, or 8 with stages 3 and 4 dilated.
        in_channels: channels of the images.
        deep_stem: three 3x3 convs of 64, 64 and 128 channels instead of one 7x7 conv of 64.

    Raises:
        MissingExtraError: timm is not installed.
    """
    timm = import_lab("timm", "timm", "the models with a dense output")
    stem: dict[str, Any] = {"stem_type": "deep", "stem_width": 64} if deep_stem else {}
    backbone: nn.Module = timm.create_model(
        name,
        features_only=True,
        out_indices=tuple(stages),
        output_stride=output_stride,
        in_chans=in_channels,
        zero_init_last=False,
        **stem,
    )
    return backbone


def dilate_first_blocks(backbone: nn.Module, first_block: FirstBlock) -> None:
    """Set the dilation of the first block of stages 3 and 4 of a ResNet at output stride 8, in place.

    Args:
        backbone: :func:`build_backbone` at output stride 8.
        first_block: ``"full"``: every 3x3 conv of a stage has the stage's dilation, 2 and 4, as in hszhao/semseg.
            ``"half"``: the conv that carried the stride keeps the dilation of the stage before, 1 and 2, as in timm,
            torchvision and mmsegmentation.

    Raises:
        InputError: ``first_block`` is something else.
    """
    if first_block not in ("full", "half"):
        raise InputError(f"expected first_block to be 'full' or 'half', got {first_block!r}; choose one of them")
    if first_block == "half":
        return
    for stage, dilation in (("layer3", 2), ("layer4", 4)):
        first = backbone.get_submodule(f"{stage}.0")
        for conv in first.modules():
            if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (dilation, dilation)
