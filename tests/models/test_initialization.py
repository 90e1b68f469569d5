import pytest
import torch
from torch import nn

from backpass.models.initialization import init_convs_fan_out_


def test_variance_follows_the_fan_out_and_nothing_else_is_touched():
    model = nn.Sequential(nn.Conv2d(16, 128, (3, 5)), nn.Linear(4, 4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    init_convs_fan_out_(model)
    after = model.state_dict()
    assert after["0.weight"].std().item() == pytest.approx((2 / (15 * 128)) ** 0.5, rel=0.02)
    assert after["0.weight"].mean().item() == pytest.approx(0, abs=1e-3)
    for name in ("0.bias", "1.weight", "1.bias"):
        assert torch.equal(after[name], before[name])
