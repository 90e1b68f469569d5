"""A model on the CPU is measured and scaled as well while new tensors go elsewhere, here to the meta device."""

from typing import Any

import pytest
import torch
from torch import nn

from backpass.sgs import SpatialGradientScaling, mutual_information


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, device="cpu"), nn.ReLU(), nn.Conv2d(4, 2, 3, device="cpu"))


@pytest.mark.parametrize(
    "options", [{}, {"drop_near_equal": True}, {"measure": "autocorrelation"}, {"apply": "update"}]
)
def test_the_default_device_changes_nothing(options: dict[str, Any]) -> None:
    images = torch.rand(8, 3, 8, 8)

    def trained() -> nn.Sequential:
        model = net()
        optimizer, sgs = torch.optim.SGD(model.parameters(), lr=0.1), SpatialGradientScaling(model, **options)
        sgs.update([images])
        sgs.attach(optimizer)
        model(images).square().sum().backward()
        optimizer.step()
        sgs.load_state_dict(sgs.state_dict())
        return model

    expected = trained()
    with torch.device("meta"):
        found = trained()
        shared = mutual_information(images, (3, 3), padding=1)
    assert all(map(torch.equal, found.state_dict().values(), expected.state_dict().values()))
    assert torch.equal(shared, mutual_information(images, (3, 3), padding=1))
