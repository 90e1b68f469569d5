"""A net and parameters on which the tests of adaptive gradient clipping agree."""

import torch
from torch import Tensor, nn


def net() -> nn.Sequential:
    """Two convolutions and two linear layers; the last is the head."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(24, 5), nn.Linear(5, 3)
    )


def backward(model: nn.Module, scale: float = 100.0) -> dict[str, Tensor]:
    """Give the net large gradients and return copies of them."""
    (scale * model(torch.randn(2, 3, 6, 6)).square().sum()).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def parameter(values: object, gradient: object) -> nn.Parameter:
    tensor = nn.Parameter(torch.tensor(values, dtype=torch.float64))
    tensor.grad = torch.tensor(gradient, dtype=torch.float64)
    return tensor
