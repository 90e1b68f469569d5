import math

import pytest
import torch
from torch import nn

from backpass.training.optimization import OPTIMIZERS, build_optimizer, build_schedule, parameter_groups
from backpass.training.recipe import OptimizerSettings, ScheduleSettings


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def rates(settings: ScheduleSettings, *, lr: float = 0.4, epochs: int = 6, steps_per_epoch: int = 2) -> list[float]:
    """The rate of every step of the training, and the one that would follow."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = build_schedule(optimizer, settings, lr, epochs, steps_per_epoch)
    seen = [optimizer.param_groups[0]["lr"]]
    for _ in range(epochs * steps_per_epoch):
        optimizer.step()
        schedule.step()
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


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
    optimizer = build_optimizer(net, OptimizerSettings(name=name, lr=0.1, weight_decay=0.03))
    net(torch.ones(2, 1, 5, 5)).pow(2).sum().backward()
    optimizer.step()
    assert type(optimizer).__name__.lower() == name
    assert not torch.equal(net[0].weight, before)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert optimizer.param_groups[0]["weight_decay"] == 0.03


@pytest.mark.parametrize(("name", "first_step"), [("adagrad", 0.1), ("adam", 0.1), ("adamax", 0.1), ("sgd", 0.05)])
def test_first_steps_by_hand(name, first_step):
    """A gradient of 0.5 at rate 0.1: the adaptive optimizers divide it by its own size, SGD does not."""
    net = nn.Linear(1, 1, bias=False)
    optimizer = build_optimizer(net, OptimizerSettings(name=name, lr=0.1, weight_decay=0.0))
    before = net.weight.item()
    net.weight.grad = torch.full((1, 1), 0.5)
    optimizer.step()
    assert before - net.weight.item() == pytest.approx(first_step, rel=1e-5)


@pytest.mark.parametrize(
    ("momentum", "nesterov", "second_step"), [(0.0, False, 0.05), (0.9, False, 0.095), (0.9, True, 0.1355)]
)
def test_momentum_is_that_of_the_recipe(momentum, nesterov, second_step):
    net = nn.Linear(1, 1, bias=False)
    settings = OptimizerSettings(lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=0.0)
    optimizer = build_optimizer(net, settings)
    for _ in range(2):
        before = net.weight.item()
        net.weight.grad = torch.full((1, 1), 0.5)
        optimizer.step()
    assert before - net.weight.item() == pytest.approx(second_step, rel=1e-5)


def test_cosine_schedule_with_warm_up():
    seen = rates(ScheduleSettings(final_lr=0.04, warmup_epochs=2))
    assert seen[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert seen[4:] == pytest.approx([0.04 + 0.36 * (1 + math.cos(math.pi * t / 8)) / 2 for t in range(9)])
    assert seen[-1] == pytest.approx(0.04)


def test_cosine_ends_where_the_cool_down_starts():
    seen = rates(ScheduleSettings(final_lr=0.04, warmup_epochs=1, cooldown_epochs=2))
    assert seen[:2] == pytest.approx([0.2, 0.4])
    assert seen[2:8] == pytest.approx([0.04 + 0.36 * (1 + math.cos(math.pi * t / 6)) / 2 for t in range(6)])
    assert seen[8:] == pytest.approx([0.04] * 5)


def test_cosine_is_torchs():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12, eta_min=0.04)
    expected = [0.4]
    for _ in range(12):
        optimizer.step()
        oracle.step()
        expected.append(optimizer.param_groups[0]["lr"])
    assert rates(ScheduleSettings(final_lr=0.04)) == pytest.approx(expected)


def test_steps_are_torchs():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    oracle = torch.optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.5)
    expected = [0.4]
    for _ in range(12):
        optimizer.step()
        oracle.step()
        expected.append(optimizer.param_groups[0]["lr"])
    assert rates(ScheduleSettings("step", step_epochs=2, step_factor=0.5)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "oracle"),
    [
        (
            ScheduleSettings("poly", poly_power=0.9),
            lambda optimizer: torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=12, power=0.9),
        ),
        (
            ScheduleSettings("step", milestones=(2, 4), step_factor=0.1),
            lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[4, 8], gamma=0.1),
        ),
    ],
    ids=["poly", "milestones"],
)
def test_powers_and_milestones_are_torchs(settings, oracle):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    schedule = oracle(optimizer)
    expected = [0.4]
    for _ in range(12):
        optimizer.step()
        schedule.step()
        expected.append(optimizer.param_groups[0]["lr"])
    assert rates(settings) == pytest.approx(expected)


def test_steps_count_from_the_start_and_stop_in_the_cool_down():
    settings = ScheduleSettings("step", warmup_epochs=1, cooldown_epochs=3, step_epochs=1.5, step_factor=0.1)
    seen = rates(settings, epochs=6, steps_per_epoch=2)
    assert seen == pytest.approx([0.2, 0.4, 0.4, 0.04, 0.04, 0.04, *[0.004] * 7])
