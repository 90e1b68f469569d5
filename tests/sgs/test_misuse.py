"""Calls that would leave kernels plain: each is warned of once, and correct loops are not."""

import copy
import re
import warnings

import pytest
import torch
from torch import Tensor, nn

from backpass.errors import NoEffectWarning
from backpass.sgs import SpatialGradientScaling


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 1, 3))


def images() -> Tensor:
    return torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def train(model: nn.Module, sgs: SpatialGradientScaling, steps: int = 1) -> None:
    """Train with the call in the loop."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(steps):
        model(images()).square().mean().backward()
        sgs.scale_gradients()
        optimizer.step()
        optimizer.zero_grad()


# An update that is due


def test_a_fresh_controller_measures_at_the_first_epoch_after_the_warmup() -> None:
    sgs = SpatialGradientScaling(net(), warmup=1, every=5)
    assert [epoch for epoch in (0, 1, 7, 8) if sgs.due(epoch)] == [1, 7, 8]
    sgs.update([images()])
    assert [epoch for epoch in range(12) if sgs.due(epoch)] == [1, 5, 10]


def test_loaded_scalings_count_as_measured_if_they_were() -> None:
    sgs = SpatialGradientScaling(net())
    resumed = SpatialGradientScaling(net())
    resumed.load_state_dict(sgs.state_dict())
    assert resumed.due(7)
    sgs.update([images()])
    resumed.load_state_dict(sgs.state_dict())
    assert not resumed.due(7)


def test_an_update_that_is_due_and_never_called_is_warned_of_once() -> None:
    model = net()
    sgs = SpatialGradientScaling(model)
    assert not sgs.due(0)
    train(model, sgs)
    assert sgs.due(1)
    message = re.escape("due(1) was true, but update() was not called before the next step")
    with pytest.warns(NoEffectWarning, match=message) as warned:
        train(model, sgs)
    assert warned[0].filename == __file__
    sgs.due(2)
    train(model, sgs)


@pytest.mark.parametrize("apply", ["gradient", "update"])
def test_it_is_warned_of_when_attached(apply: str) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sgs = SpatialGradientScaling(model, apply=apply)  # type: ignore[arg-type]
    sgs.attach(optimizer)
    sgs.due(1)
    with pytest.warns(NoEffectWarning, match=r"due\(1\) was true"):
        optimizer.step()


def test_a_loop_that_neither_measures_nor_asks_is_warned_of_once() -> None:
    model = net()
    sgs = SpatialGradientScaling(model)
    train(model, sgs, steps=99)
    with pytest.warns(NoEffectWarning, match=r"100 steps were scaled by ones, .* call update\(batches\)"):
        train(model, sgs)
    train(model, sgs, steps=101)


def test_correct_loops_are_not_warned_of() -> None:
    model = net()
    measured, fixed = SpatialGradientScaling(model), SpatialGradientScaling(model, scaling=torch.ones(3, 3))
    for epoch in range(7):
        if measured.due(epoch):
            measured.update([images()])
        train(model, measured, steps=20)
    train(model, fixed, steps=101)
    copied = copy.deepcopy(measured)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, copied, steps=101)
