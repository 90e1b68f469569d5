"""Calls that would leave kernels plain: each is warned of once, and correct loops are not."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from backpass.errors import BackpassWarning, NoEffectWarning, StateError
from backpass.reparam import reparameterize
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
    model(images()).square().mean().backward()
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
    model, copied = copy.deepcopy((model, measured))
    train(model, copied, steps=101)


# Kernels that are trained and not scaled


def test_no_gradient_on_any_kernel_is_warned_of_once() -> None:
    model = net()
    sgs = SpatialGradientScaling(model, scaling=torch.ones(3, 3))
    with pytest.warns(NoEffectWarning, match=r"no gradient on any kernel to scale \(0\.weight, 2\.weight\)"):
        sgs.scale_gradients()
    sgs.scale_gradients()


class SamInTwoCalls(torch.optim.Optimizer):
    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.01})
        self.sgd = torch.optim.SGD(self.param_groups, lr=0.01)

    def step(self, closure: Any = None) -> None:
        raise AssertionError("the loop calls second_step")

    def second_step(self) -> None:
        self.sgd.step()


def epochs(sgs: SpatialGradientScaling, model: nn.Module, step: Callable[[], object], count: int) -> None:
    for epoch in range(count):
        if sgs.due(epoch):
            sgs.update([images()])
        model(images()).square().mean().backward()
        step()
        model.zero_grad()


@pytest.mark.parametrize("how", ["never called", "SAM in two calls", "a rebuilt optimizer"])
def test_kernels_that_were_trained_without_scaling_are_named_at_the_next_update(how: str) -> None:
    model = net()
    sgs = SpatialGradientScaling(model, warmup=0 if how == "never called" else 1, every=1)
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.01)
    step = optimizer.step
    if how == "SAM in two calls":
        optimizer = SamInTwoCalls(model.parameters())
        sgs.attach(optimizer)
        step = optimizer.second_step
    elif how == "a rebuilt optimizer":
        sgs.attach(optimizer)
        step = torch.optim.SGD(model.parameters(), lr=0.01).step
    with pytest.warns(
        NoEffectWarning, match=r"^0\.weight, 2\.weight changed since .* attach to the optimizer"
    ) as warned:
        epochs(sgs, model, step, 2)
    assert len(warned) == 1


def test_a_resumed_run_is_not_taken_for_one_without_scaling() -> None:
    model, weights = net(), net().state_dict()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sgs = SpatialGradientScaling(model)
    sgs.attach(optimizer)
    model.load_state_dict(weights)
    epochs(sgs, model, optimizer.step, 8)


def test_attaching_after_the_warmup_is_not_taken_for_training_without_scaling() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sgs = SpatialGradientScaling(model)
    epochs(sgs, model, optimizer.step, 1)
    sgs.attach(optimizer)
    for epoch in range(1, 7):
        if sgs.due(epoch):
            sgs.update([images()])
        model(images()).square().mean().backward()
        optimizer.step()


# Layers that change


def replace_first(model: nn.Sequential) -> None:
    model[0] = nn.Conv2d(1, 2, 5, padding=2)


def add_one(model: nn.Sequential) -> None:
    model.append(nn.Conv2d(1, 1, 3))


@pytest.mark.parametrize(("change", "names"), [(replace_first, "0.weight"), (add_one, "3.weight")])
def test_changed_layers_are_named_at_the_next_update(change: Callable[[nn.Module], None], names: str) -> None:
    model = net()
    sgs = SpatialGradientScaling(model)
    sgs.update([images()])
    change(model)
    with pytest.warns(BackpassWarning) as warned:
        sgs.update([images()])
    assert [str(w.message) for w in warned if re.match(f"{names} was replaced, .* call set_model", str(w.message))]
    kept = sgs.scalings["2.weight"].clone()
    sgs.set_model(model)
    assert torch.equal(sgs.scalings["2.weight"], kept)
    assert torch.equal(sgs.scalings[names], torch.ones_like(sgs.scalings[names]))
    sgs.update([images()])
    train(model, sgs)
    assert not torch.equal(sgs.scalings[names], torch.ones_like(sgs.scalings[names]))


def test_a_layer_that_was_parametrised_since_is_refused() -> None:
    model = net()
    sgs = SpatialGradientScaling(model)
    parametrizations.weight_norm(model[0])
    with pytest.raises(StateError, match=r"0\.weight to be a parameter, .* call set_model\(model\)"):
        train(model, sgs)
    sgs.set_model(model)
    train(model, sgs)
    assert list(sgs.scalings) == ["0.parametrizations.weight.original1", "2.weight"]


def test_grown_branches_are_named() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 3))
    sgs = SpatialGradientScaling(model)
    reparameterize(model, "acb", inplace=True)
    with pytest.warns(BackpassWarning) as warned:
        sgs.update([images()])
    assert [str(w.message) for w in warned if re.search(r"0\.weight.* call set_model\(model\)", str(w.message))]


# Calls in the wrong place


def test_a_step_outside_its_scaled_update_is_warned_of_at_the_next_update() -> None:
    model = net()
    sgs, optimizer = SpatialGradientScaling(model, apply="update"), torch.optim.SGD(model.parameters(), lr=0.01)
    sgs.update([images()])
    model(images()).square().mean().backward()
    with sgs.scaled_update():
        pass
    optimizer.step()
    with pytest.warns(NoEffectWarning, match=r"^0\.weight, 2\.weight changed since the last update"):
        sgs.update([images()])


def test_kernels_that_are_stepped_by_hand_in_a_scaled_update_are_scaled_without_a_warning() -> None:
    model = net()
    sgs = SpatialGradientScaling(model, apply="update")
    sgs.update([images()])
    model(images()).square().mean().backward()
    with sgs.scaled_update(), torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.01 * parameter.grad
    sgs.update([images()])


def test_an_optimizer_that_holds_none_of_the_kernels_is_warned_of() -> None:
    model = nn.Sequential(net(), nn.Flatten(), nn.Linear(16, 2))
    model(images()).square().mean().backward()
    sgs = SpatialGradientScaling(model, scaling=torch.ones(3, 3))
    with pytest.warns(NoEffectWarning, match=r"^SGD holds no parameter that this alters; pass the optimizer"):
        sgs.scale_gradients(torch.optim.SGD(model[2].parameters(), lr=0.1))
