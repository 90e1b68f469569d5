import copy
import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from backpass.errors import NoEffectWarning
from backpass.sgs import SpatialGradientScaling
from backpass.sgs.optimizers import normalizes_gradients, undoes_updates
from backpass.sgs.weight_decay import decay_factor

LR, DECAY = 0.1, 0.3
G = torch.tensor([[0.5, 1.0, 1.5], [0.25, 2.0, 1.75], [0.6, 0.9, 0.5]])


def conv(seed: int = 0) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(2, 3, 3).double()


def backward(model: nn.Module, seed: int = 0) -> None:
    x = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(seed)).double()
    model(x).square().sum().backward()


def in_context(sgs: SpatialGradientScaling, optimizer: Optimizer) -> None:
    with sgs.scaled_update():
        optimizer.step()


def in_context_with_zero_grad(sgs: SpatialGradientScaling, optimizer: Optimizer) -> None:
    with sgs.scaled_update():
        optimizer.step()
        optimizer.zero_grad()


def attached(sgs: SpatialGradientScaling, optimizer: Optimizer) -> None:
    with sgs.attach(optimizer):
        optimizer.step()


STEPS = [in_context, in_context_with_zero_grad, attached]
Step = Callable[[SpatialGradientScaling, Optimizer], None]


@pytest.mark.parametrize("step", STEPS)
def test_one_adamw_step_by_hand(step: Step) -> None:
    """The first step of Adam moves each weight by lr * grad / (abs(grad) + eps); the decay is lr * wd * w."""
    model = conv()
    w = model.weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY)
    sgs = SpatialGradientScaling(model, apply="update", scaling=G)
    backward(model)
    gradient = model.weight.grad.clone()
    step(sgs, optimizer)
    rest = LR * gradient / (gradient.abs() + 1e-8)
    expected = w - LR * DECAY * w - G.double() * rest
    torch.testing.assert_close(model.weight.detach(), expected, rtol=1e-12, atol=1e-12)
    decay_scaled = w - G.double() * (LR * DECAY * w + rest)
    assert (model.weight.detach() - decay_scaled).abs().max() > 1e-3


DECOUPLED = {
    "adamw": partial(torch.optim.AdamW),
    "adamw, amsgrad": partial(torch.optim.AdamW, amsgrad=True),
    "nadam": partial(torch.optim.NAdam, decoupled_weight_decay=True),
    "radam": partial(torch.optim.RAdam, decoupled_weight_decay=True),
    "adafactor": partial(torch.optim.Adafactor),
}
if "decoupled_weight_decay" in inspect.signature(torch.optim.Adam).parameters:  # from torch 2.7 on
    DECOUPLED["adam"] = partial(torch.optim.Adam, decoupled_weight_decay=True)
IN_THE_GRADIENT = {
    "sgd": partial(torch.optim.SGD, momentum=0.9),
    "adam": partial(torch.optim.Adam),
    "nadam": partial(torch.optim.NAdam),
    "radam": partial(torch.optim.RAdam),
    "rmsprop": partial(torch.optim.RMSprop),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", DECOUPLED)
def test_decoupled_decay_is_not_scaled(name: str, step: Step) -> None:
    """Step by step, with learning rates that change, against the plain optimizer from the same weights."""
    assert_steps(DECOUPLED[name], step, lambda w, stepped, lr: (1 - lr * DECAY) * w)


@pytest.mark.parametrize("name", IN_THE_GRADIENT)
def test_decay_in_the_gradient_is_part_of_the_update(name: str) -> None:
    assert_steps(IN_THE_GRADIENT[name], in_context, lambda w, stepped, lr: w)


def assert_steps(make: Any, step: Step, start_of: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    model = conv()
    optimizer = make(model.parameters(), lr=LR, weight_decay=DECAY)
    sgs = SpatialGradientScaling(model, apply="update", scaling=G)
    for number in range(3):
        lr = LR / (number + 1)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        backward(model, number)
        w = model.weight.detach().clone()
        twin = copy.deepcopy(model)
        twin_optimizer = make(twin.parameters(), lr=lr, weight_decay=DECAY)
        twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            theirs.grad = ours.grad.clone()
        twin_optimizer.step()
        step(sgs, optimizer)
        stepped = twin.weight.detach()
        start = start_of(w, stepped, lr)
        expected = start + G.double() * (stepped - start)
        torch.testing.assert_close(model.weight.detach(), expected, rtol=1e-7, atol=1e-9)  # NAdam's state is float32
        assert (model.weight.detach() - stepped).abs().max() > 1e-4
        torch.testing.assert_close(model.bias, twin.bias)


def test_groups_decay_by_their_own_settings_and_kernels_without_gradients_not_at_all() -> None:
    model = nn.Sequential(conv(0), nn.Conv2d(3, 3, 3).double(), conv(2))
    groups = [
        {"params": model[0].parameters(), "weight_decay": 0.0},
        {"params": model[1].parameters(), "weight_decay": 0.5},
        {"params": model[2].parameters(), "weight_decay": 0.7},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR)
    sgs = SpatialGradientScaling(model, apply="update", scaling=G)
    backward(model[:2])
    start = [layer.weight.detach().clone() for layer in model]
    in_context(sgs, optimizer)
    for layer, w, decay in zip(model[:2], start, (0.0, 0.5), strict=False):
        expected = (1 - LR * decay) * w - G.double() * LR * layer.weight.grad / (layer.weight.grad.abs() + 1e-8)
        torch.testing.assert_close(layer.weight.detach(), expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(model[2].weight, start[2])


class Around(Optimizer):
    """An optimizer around another one, whose steps both call hooks."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer.param_groups, {})
        self.optimizer = optimizer

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


class CallsSuper(torch.optim.AdamW):
    """A subclass whose step calls that of AdamW, which calls the hooks too once an AdamW has been made."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


@pytest.mark.parametrize("step", STEPS)
def test_a_subclass_of_adamw_that_calls_its_step_decays_once(step: Step) -> None:
    model, twin = conv(), conv()
    for net, kind in ((twin, torch.optim.AdamW), (model, CallsSuper)):
        optimizer = kind(net.parameters(), lr=LR, weight_decay=DECAY)
        backward(net)
        step(SpatialGradientScaling(net, apply="update", scaling=G), optimizer)
    torch.testing.assert_close(model.weight, twin.weight, rtol=0, atol=0)


@pytest.mark.parametrize("step", STEPS)
def test_an_optimizer_around_adamw_decays_once(step: Step) -> None:
    model, twin = conv(), conv()
    for net, wrap in ((model, Around), (twin, lambda optimizer: optimizer)):
        optimizer = wrap(torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=DECAY))
        backward(net)
        step(SpatialGradientScaling(net, apply="update", scaling=G), optimizer)
    torch.testing.assert_close(model.weight, twin.weight, rtol=0, atol=0)


class AlsoSteps(Optimizer):
    """An optimizer in whose step another one steps parameters of its own."""

    def __init__(self, parameters: Any, other: Optimizer) -> None:
        super().__init__(parameters, {})
        self.other = other

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter -= LR * parameter.grad
        self.other.step()


def test_attached_optimizers_that_step_inside_one_another_scale_their_own_kernels() -> None:
    model = nn.ModuleList([conv(0), conv(1)])
    sgs = SpatialGradientScaling(model, apply="update", scaling=G)
    inner = torch.optim.SGD(model[1].parameters(), lr=LR)
    outer = AlsoSteps(model[0].parameters(), inner)
    sgs.attach(outer)
    sgs.attach(inner)
    for layer in model:
        backward(layer)
    expected = [layer.weight.detach() - LR * G.double() * layer.weight.grad for layer in model]
    outer.step()
    for layer, weight in zip(model, expected, strict=True):
        torch.testing.assert_close(layer.weight.detach(), weight)


class Passes(AlsoSteps):
    """An optimizer that leaves its parameters to another one."""

    def step(self, closure: Any = None) -> None:
        self.other.step()


def test_a_kernel_of_two_attached_optimizers_that_step_inside_one_another_is_scaled_once() -> None:
    model = conv()
    sgs = SpatialGradientScaling(model, apply="update", scaling=G)
    inner = torch.optim.SGD(model.parameters(), lr=LR)
    outer = Passes(model.parameters(), inner)
    sgs.attach(outer)
    sgs.attach(inner)
    backward(model)
    expected = model.weight.detach() - LR * G.double() * model.weight.grad
    outer.step()
    torch.testing.assert_close(model.weight.detach(), expected)


@pytest.mark.parametrize("overflow", [0.0, 1.0])
def test_a_fused_step_that_a_grad_scaler_skips_does_not_decay(overflow: float) -> None:
    model = conv().float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY, fused=True)
    sgs = SpatialGradientScaling(model, apply="update", scaling=G)
    model(torch.ones(1, 2, 6, 6)).sum().backward()
    w = model.weight.detach().clone()
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(overflow)  # type: ignore[attr-defined]
    in_context(sgs, optimizer)
    moved = (model.weight - w).abs().max().item()
    assert (moved == 0) if overflow else (moved > 0.01)


def test_an_error_in_an_attached_step_leaves_the_next_step_right() -> None:
    model = conv()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    sgs = SpatialGradientScaling(model, apply="update", scaling=G)
    sgs.attach(optimizer)

    def fail() -> float:
        raise KeyError("closure")

    with pytest.raises(KeyError, match="closure"):
        optimizer.step(fail)
    backward(model)
    expected = model.weight.detach() - LR * G.double() * model.weight.grad
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), expected)


# The warning

NORMALIZING = [
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.RMSprop,
    torch.optim.Rprop,
    torch.optim.Adafactor,
]


class MyAdam(torch.optim.Adam):
    pass


class Renamed(MyAdam):
    pass


class FusedLAMB(torch.optim.SGD):
    """Stands for a third-party class that derives from none of torch's."""


class Wrapper(Optimizer):
    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer


@pytest.mark.parametrize("kind", [*NORMALIZING, Renamed, FusedLAMB])
def test_attach_warns_once_of_optimizers_that_cancel_the_scaling(kind: Any) -> None:
    model = conv()
    sgs = SpatialGradientScaling(model)
    optimizer = kind(model.parameters())
    assert normalizes_gradients(optimizer)
    assert normalizes_gradients(Wrapper(optimizer))
    message = rf"^{kind.__name__} divides each element .* pass apply='update' to scale the update instead$"
    with pytest.warns(NoEffectWarning, match=message) as warned:
        sgs.attach(optimizer)
    assert warned[0].filename == __file__
    sgs.attach(kind(model.parameters()))
    sgs.check_optimizer(optimizer)
    with pytest.warns(NoEffectWarning, match=message):
        SpatialGradientScaling(model).check_optimizer(optimizer)
    SpatialGradientScaling(model, apply="update").attach(kind(model.parameters()))


def test_scale_gradients_warns_once_of_the_optimizer_that_it_receives() -> None:
    model = conv()
    sgs = SpatialGradientScaling(model, scaling=G)
    optimizer = torch.optim.Adam(model.parameters())
    backward(model)
    with pytest.warns(NoEffectWarning, match="^Adam divides each element of the gradient") as warned:
        sgs.scale_gradients(optimizer)
    assert [warning.filename for warning in warned] == [__file__]
    optimizer.zero_grad()
    backward(model)
    sgs.scale_gradients(optimizer)


def test_scale_gradients_scales_the_kernels_of_the_given_optimizer_alone() -> None:
    model = nn.ModuleList([conv(0), conv(1)])
    sgs = SpatialGradientScaling(model, scaling=G)
    for layer in model:
        backward(layer)
    first, second = (layer.weight.grad.clone() for layer in model)
    sgs.scale_gradients(torch.optim.SGD(model[0].parameters(), lr=LR))
    torch.testing.assert_close(model[0].weight.grad, first * G)
    assert torch.equal(model[1].weight.grad, second)
    sgs.scale_gradients(torch.optim.SGD(model[1].parameters(), lr=LR))
    torch.testing.assert_close(model[0].weight.grad, first * G)
    torch.testing.assert_close(model[1].weight.grad, second * G)


class MADGRAD(torch.optim.SGD):
    """Stands for timm's, as the next one for schedulefree's."""


class AdamWScheduleFree(torch.optim.SGD):
    pass


@pytest.mark.parametrize("kind", [MADGRAD, AdamWScheduleFree])
@pytest.mark.parametrize("apply", ["gradient", "update"])
def test_optimizers_that_undo_every_scaling_are_warned_of(kind: Any, apply: Any) -> None:
    model = conv()
    optimizer = kind(model.parameters())
    assert undoes_updates(optimizer)
    assert undoes_updates(Wrapper(optimizer))
    message = f"^{kind.__name__} undoes a scaling, of the gradient and of the update alike"
    sgs = SpatialGradientScaling(model, apply=apply)
    for call in (sgs.attach, SpatialGradientScaling(model, apply=apply).check_optimizer):
        with pytest.warns(NoEffectWarning, match=message) as warned:
            call(optimizer)
        assert [warning.filename for warning in warned] == [__file__]
    sgs.check_optimizer(optimizer)


def test_scaled_update_warns_of_the_optimizer_that_steps_the_kernels() -> None:
    model, other = conv(), conv()
    sgs = SpatialGradientScaling(model, apply="update", scaling=G)
    backward(model)
    with sgs.scaled_update():
        MADGRAD(other.parameters()).step()
        torch.optim.Adam(model.parameters()).step()
    with pytest.warns(NoEffectWarning, match="^MADGRAD undoes") as warned, sgs.scaled_update():
        MADGRAD(model.parameters()).step()
    assert [warning.filename for warning in warned] == [__file__]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.ASGD, torch.optim.LBFGS])
def test_other_optimizers_are_not_warned_of(kind: Any) -> None:
    model = conv()
    assert not normalizes_gradients(kind(model.parameters()))
    assert not undoes_updates(kind(model.parameters()))
    SpatialGradientScaling(model).attach(kind(model.parameters()))


def test_a_constant_scaling_of_the_gradient_cancels_under_adam_and_one_of_the_update_does_not() -> None:
    def moved(apply: str | None) -> Tensor:
        model = conv()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        sgs = SpatialGradientScaling(model, apply=apply, scaling=G) if apply else None  # type: ignore[arg-type]
        start = model.weight.detach().clone()
        for _ in range(50):
            optimizer.zero_grad()
            model(torch.ones(1, 2, 3, 3).double()).sum().backward()
            if sgs and apply == "gradient":
                sgs.scale_gradients()
            if sgs and apply == "update":
                in_context(sgs, optimizer)
            else:
                optimizer.step()
        return model.weight.detach() - start

    plain = moved(None)
    torch.testing.assert_close(moved("gradient"), plain, rtol=1e-6, atol=0)
    torch.testing.assert_close(moved("update"), plain * G.double(), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("optimizer", "factor"),
    [
        (partial(torch.optim.AdamW, weight_decay=0.2), 0.9),
        (partial(torch.optim.Adam, weight_decay=0.2), 1.0),
        (partial(torch.optim.SGD, weight_decay=0.2), 1.0),
        (partial(torch.optim.RMSprop, weight_decay=0.2), 1.0),
    ],
)
def test_decay_factor(optimizer: Any, factor: float) -> None:
    made = optimizer([nn.Parameter(torch.ones(1))], lr=0.5)
    assert math.isclose(decay_factor(made, made.param_groups[0]), factor)


@pytest.mark.parametrize(("name", "mode", "factor"), [("FusedAdam", 1, 0.9), ("FusedAdam", 0, 1), ("FusedLAMB", 1, 1)])
def test_an_optimizer_that_says_that_its_decay_is_decoupled(name: str, mode: int, factor: float) -> None:
    kind = type(name, (Optimizer,), {"adam_w_mode": mode})  # as in apex and DeepSpeed
    made = kind([nn.Parameter(torch.ones(1))], {"lr": 0.5, "weight_decay": 0.2})
    assert math.isclose(decay_factor(made, made.param_groups[0]), factor)
