import math

import pytest
import torch
from torch import nn

from backpass.training.optimization import OPTIMIZERS, build_optimizer, build_schedule, parameter_groups
from backpass.training.recipe import OptimizerSettings, ScheduleSettings


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def test_decay_can_spare_norms_and_biases():
    groups = parameter_groups(model(), OptimizerSettings(weight_decay=0.1, decay_norm_and_bias=False))
    assert [(g["weight_decay"], [p.ndim for p in g["params"]]) for g in groups] == [(0.1, [4]), (0.0, [1, 1, 1])]


def test_decay_is_on_everything_by_default_and_frozen_parameters_are_left_out():
    net = model()
    net[0].bias.requires_grad_(False)
    (group,) = parameter_groups(net, OptimizerSettings(weight_decay=0.1))
    assert group["weight_decay"] == 0.1
    assert len(group["params"]) == 3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_a_step(name):
    net = model()
    before = net[0].weight.clone()
    optimizer = build_optimizer(net, OptimizerSettings(name=name, lr=0.1))
    net(torch.ones(2, 1, 5, 5)).pow(2).sum().backward()
    optimizer.step()
    assert not torch.equal(net[0].weight, before)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_cosine_schedule_with_warm_up():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.4)
    schedule = build_schedule(optimizer, ScheduleSettings(final_lr=0.04, warmup_epochs=2), 0.4, 6, 2)
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert rates[4:] == pytest.approx([0.04 + 0.36 * (1 + math.cos(math.pi * t / 8)) / 2 for t in range(9)])
    assert rates[-1] == pytest.approx(0.04)
