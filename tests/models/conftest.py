from collections.abc import Callable

import pytest
import torch
from torch import nn


@pytest.fixture
def in_float64() -> Callable[[nn.Module], nn.Module]:
    """Return a function that readies a module for comparison: float64, eval mode, statistics of BN drawn at random."""

    def ready(model: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(11)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.data.uniform_(0.5, 1.5, generator=generator)
        return model.double().eval()

    return ready


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
