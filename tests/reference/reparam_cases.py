"""Blocks, models and inputs that several tests of re-parameterisation use."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from backpass.reparam import reparameterize


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter and statistic, since the default ones (0 and 1) hide many errors of a fusion."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for tensor in (layer.weight, layer.bias, layer.running_mean):
                    tensor.copy_(torch.randn(tensor.shape, generator=generator))
                layer.running_var.copy_(0.5 + torch.rand(layer.running_var.shape, generator=generator))
            elif isinstance(layer, nn.Conv2d):
                for tensor in layer.parameters():
                    tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    return module


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def convolutions() -> list[nn.Conv2d]:
    """Convolutions of every stride, group count, kernel size, dilation, padding and padding mode that blocks accept."""
    centred = [
        nn.Conv2d(8, 8, k, stride, dilation * (k // 2), dilation, groups)
        for k, groups, (stride, dilation) in itertools.product((3, 5), (1, 4, 8), ((1, 1), ((2, 1), 1), (2, 2)))
    ]
    shifted = [
        nn.Conv2d(8, 8, k, stride, padding, dilation, bias=False)
        for k, stride, padding, dilation in (
            (3, 1, 0, 1),
            (3, 2, 0, 1),
            (3, 1, (2, 0), 1),
            (3, (1, 2), (0, 4), 2),
            (5, 1, (1, 4), 1),
            (5, 2, (4, 0), 1),
            (5, 1, 3, 2),
        )
    ]
    reshaping = [nn.Conv2d(8, out, 3, padding=1, groups=groups) for out, groups in ((16, 1), (16, 8), (4, 1), (4, 4))]
    modes = [nn.Conv2d(8, 8, 3, 1, p, padding_mode=mode) for p, mode in ((1, "reflect"), (2, "circular"))]
    words = [nn.Conv2d(8, 8, 3, dilation=2, padding=word) for word in ("same", "valid")]
    return centred + shifted + reshaping + modes + words


class Residual(nn.Module):
    """Two convolutions with normalisations named as in most residual networks, and a strided shortcut."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential(nn.Conv2d(3, width, 1, stride=2, bias=False), nn.BatchNorm2d(width))
        self.fc = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)) + self.shortcut(x))
        return self.fc(out.mean((2, 3)))


class Untraceable(Residual):
    """The same, with a decision that symbolic tracing cannot take."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > -1e9 else -x)


class Wired(nn.Module):
    """Two convolutions and two normalisations of one width, wired by a function."""

    def __init__(self, wiring: Callable[["Wired", Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.n, self.m = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.act = nn.ReLU()
        self.wiring = wiring

    def forward(self, x: Tensor) -> Any:
        return self.wiring(self, x)


X = images(2, 3, 9, 9)


def trained(name: str = "dbb", **options: Any) -> nn.Module:
    """Return a converted :class:`Residual` in eval mode, with random parameters and statistics."""
    return randomise(reparameterize(Residual(), name, **options), seed=3).eval()


def assert_same(model: nn.Module, other: nn.Module) -> None:
    """Compare the outputs for ``X``, ``model`` in eval mode."""
    torch.testing.assert_close(model.eval()(X), other(X), rtol=1e-4, atol=1e-4)
