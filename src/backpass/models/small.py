"""A network for very small images, for tests, examples and the digits data set."""

import torch.nn.functional as F
from torch import Tensor, nn

from backpass.models.registry import register_model

__all__ = ["DigitsNet", "digits_net"]


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
