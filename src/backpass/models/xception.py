"""Xception for 32x32 images."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from backpass.models.registry import register_model

__all__ = ["SeparableConv2d", "Xception", "XceptionBlock", "xception"]


class SeparableConv2d(nn.Module):
    """A 3x3 depthwise conv and a 1x1 conv, with neither bias nor anything between them."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map at the size of ``x``."""
        out: Tensor = self.pointwise(self.depthwise(x))
        return out


class XceptionBlock(nn.Module):
    """``residual(ReLU(x)) + shortcut(ReLU(x))``, or ``residual(ReLU(x)) + shortcut(x)`` with a raw shortcut.

    The residual is a chain of separable convs with BN, ReLUs between them, and perhaps a 3x3 max-pool at its end.

    Args:
        in_channels: channels of the input.
        widths: output channels of each separable conv.
        pool_stride: stride of the max-pool and of the shortcut, then a 1x1 conv (with bias) and BN. ``None``: no
            pool, and the shortcut is the identity.
        raw_shortcut: whether the shortcut takes ``x`` before the ReLU. In the model of SGS Table 4 that holds for
            the last block alone: the others' ReLU works in place, so that their shortcut takes its output.
    """

    def __init__(
        self, in_channels: int, widths: Sequence[int], pool_stride: int | None, raw_shortcut: bool = False
    ) -> None:
        super().__init__()
        self.raw_shortcut = raw_shortcut
        self.residual = _separable_chain(in_channels, widths)
        self.shortcut: nn.Module = nn.Identity()
        if pool_stride is not None:
            self.residual.append(nn.MaxPool2d(3, pool_stride, padding=1))
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, widths[-1], 1, pool_stride), nn.BatchNorm2d(widths[-1])
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of residual and shortcut, without an activation."""
        activated = F.relu(x)
        out: Tensor = self.residual(activated) + self.shortcut(x if self.raw_shortcut else activated)
        return out


def _separable_chain(in_channels: int, widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [SeparableConv2d(in_channels, width), nn.BatchNorm2d(width), nn.ReLU()]
        in_channels = width
    return nn.Sequential(*layers[:-1])


class Xception(nn.Module):
    """Entry flow (two 3x3 convs, three blocks), middle flow (eight blocks), exit flow, and a linear layer.

    The first block of the published layout has no leading ReLU; its input is a ReLU's output, so that the one
    which every block has here changes nothing.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
        )
        self.blocks = nn.Sequential(
            XceptionBlock(64, (128, 128), pool_stride=2),
            XceptionBlock(128, (256, 256), pool_stride=2),
            XceptionBlock(256, (728, 728), pool_stride=1),
            *(XceptionBlock(728, (728, 728, 728), pool_stride=None) for _ in range(8)),
            XceptionBlock(728, (728, 1024), pool_stride=2, raw_shortcut=True),
        )
        self.last = _separable_chain(1024, (1536, 2048))
        self.fc = nn.Linear(2048, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` for images ``(N, in_channels, H, W)``."""
        x = F.relu(self.last(self.blocks(self.stem(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


@register_model
def xception(num_classes: int = 100, in_channels: int = 3) -> Xception:
    """Return Xception: 21,013,988 parameters, 1129.87M MACs, 36 convs with k > 1 (SGS Table 4).

    Of these convs 34 are depthwise. Only the four 1x1 convs of shortcuts have a bias. Initialisation is PyTorch's
    default. Counts are for 100 classes and one 32x32 image.
    """
    return Xception(num_classes, in_channels)
