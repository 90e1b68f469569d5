"""Squeeze-and-excitation ResNet for 32x32 images."""

import torch.nn.functional as F
from torch import Tensor, nn

from backpass.models.registry import register_model
from backpass.models.resnet import BASIC_WIDTHS, BasicBlock, ResNet

__all__ = ["SEBasicBlock", "SqueezeExcitation", "seresnet18", "seresnet34"]


class SqueezeExcitation(nn.Module):
    """Scale each channel by ``sigmoid(fc2(relu(fc1(mean over the map))))``, a number in (0, 1)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // reduction)
        self.fc2 = nn.Linear(channels // reduction, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` of shape ``(N, C, H, W)`` with its channels scaled."""
        hidden = F.relu(self.fc1(x.mean((2, 3))))
        gate: Tensor = self.fc2(hidden).sigmoid()
        return x * gate[:, :, None, None]


class SEBasicBlock(BasicBlock):
    """A basic block whose residual ends in one more ReLU and squeeze-and-excitation; convs have a bias."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, stride, bias=True)
        self.se = SqueezeExcitation(out_channels)

    def residual(self, x: Tensor) -> Tensor:
        """Return the basic block's residual, activated and with its channels scaled."""
        scaled: Tensor = self.se(F.relu(super().residual(x)))
        return scaled


@register_model
def seresnet18(num_classes: int = 100, in_channels: int = 3) -> ResNet:
    """Return SE-ResNet-18: 11,314,012 parameters, 555.56M MACs, 17 convs with k > 1 (SGS Table 4).

    Convs have a bias. Initialisation is PyTorch's default. Counts are for 100 classes and one 32x32 image.
    """
    return ResNet(SEBasicBlock, (2, 2, 2, 2), BASIC_WIDTHS, num_classes, in_channels, bias=True)


@register_model
def seresnet34(num_classes: int = 100, in_channels: int = 3) -> ResNet:
    """Return SE-ResNet-34: 21,498,000 parameters, 1159.61M MACs, 33 convs with k > 1.

    SGS Table 4. Biases, initialisation and counts as in :func:`seresnet18`.
    """
    return ResNet(SEBasicBlock, (3, 4, 6, 3), BASIC_WIDTHS, num_classes, in_channels, bias=True)
