"""Ways to train: accumulation, clipping, attaching, averaging of weights, and optimizers around optimizers."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint

import backpass
from battery.loop import Loop, net
from battery.rows import Criterion, Method, Row
from works_with.case import Case, Way
from works_with.rows import PGT, SGS, both, loop

SETTING = Loop()
Run = Callable[[Criterion, Callable[[nn.Module], Method]], Mapping[str, Tensor]]
sgd = partial(torch.optim.SGD, lr=0.5, momentum=0.9)


def compare(row: Row, run: Run) -> None:
    """Check that a run ends where the definition of the method does, and plain training elsewhere."""
    ours = run(row.loss.ours, row.ours)
    torch.testing.assert_close(ours, run(row.loss.definition, row.definition))
    for control in row.without_one_part():
        with pytest.raises(AssertionError):
            torch.testing.assert_close(ours, run(control.loss.ours, control.ours))


def steps() -> list[Case]:
    """Return the cases of one loop in different settings."""
    eval_mode = Loop(build=lambda: net().eval())  # batch statistics would depend on the parts
    return [
        loop("gradient accumulation", eval_mode.but(micro_batches=4)),
        loop("`clip_grad_norm_` after `scale_gradients`", Loop(clip="after")),
        both("adaptive gradient clipping (`AdaptiveGradientClipping`)", lambda row: compare(row, clipped)),
        loop("`zero_grad(set_to_none=False)`", Loop(steps=3, set_to_none=False)),
        loop("`sgs.attach(optimizer)`, no call in the loop", Loop(how="attached")),
        loop("`channels_last`", Loop(memory_format=torch.channels_last)),
        loop("activation checkpointing", eval_mode.but(wrap=Checkpointed)),
        Case(
            "an optimizer for each parameter, stepped in the backward pass",
            [
                Way("", lambda: in_backward(SGS, attached=False)),
                Way("`sgs.attach(optimizer)` for each", lambda: in_backward(SGS)),
            ],
            [Way("", lambda: in_backward(PGT))],
        ),
        Case("`torch.func.grad`", [Way("", functional_sgs)], [Way("", functional_pgt)]),
    ]


class Checkpointed(nn.Module):
    """Computes activations again in the backward pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.inner, x, use_reentrant=False)


def trained(criterion: Criterion, make: Callable[[nn.Module], Method], after: Callable[..., object]) -> nn.Module:
    """Train two steps, and call ``after(model, optimizer)`` where the optimizer would step."""
    model = SETTING.new_model()
    method = make(model)
    method.measure([SETTING.batch(100)[0]])
    optimizer = sgd(model.parameters())
    for seed in range(2):
        x, y = SETTING.batch(seed)
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        method.scale()
        after(model, optimizer)
    return model


def clipped(criterion: Criterion, make: Callable[[nn.Module], Method]) -> Mapping[str, Tensor]:
    """Train with AGC between the method and the step."""

    def clip_and_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        backpass.adaptive_clip_grad_(model, clip_factor=0.2)
        optimizer.step()

    return trained(criterion, make, clip_and_step).state_dict()


def in_backward(row: Row, *, attached: bool = True) -> None:
    """Compare with the plain loop a training whose hooks on parameters step as soon as a gradient is there."""
    sgd = partial(torch.optim.SGD, lr=0.5)
    model = SETTING.new_model()
    method = row.ours(model)
    method.measure([SETTING.batch(100)[0]])
    optimizers = {name: sgd([parameter]) for name, parameter in model.named_parameters()}

    def step(optimizer: torch.optim.Optimizer, _: Tensor) -> None:
        optimizer.step()
        optimizer.zero_grad()

    for name, parameter in model.named_parameters():
        if attached and parameter.ndim == 4:
            method.attach(optimizers[name])
        parameter.register_post_accumulate_grad_hook(partial(step, optimizers[name]))
    for seed in range(2):
        x, y = SETTING.batch(seed)
        row.loss.ours(model(x), y).backward()
        if not attached:
            method.scale()
    setting = SETTING.but(optimizer=sgd)
    torch.testing.assert_close(model.state_dict(), setting.run(row.loss.definition, row.definition).state)


def functional_sgs() -> None:
    """Take gradients without ``.grad``."""
    model = SETTING.new_model()
    _functional_gradients(model, nn.functional.cross_entropy)
    backpass.SpatialGradientScaling(model).scale_gradients()


def functional_pgt() -> None:
    """Compare gradients of ``torch.func`` with the definition."""

    def run(criterion: Criterion, _: Callable[[nn.Module], Method]) -> Mapping[str, Tensor]:
        return _functional_gradients(SETTING.new_model(), criterion)

    compare(PGT, run)


def _functional_gradients(model: nn.Module, criterion: Criterion) -> dict[str, Tensor]:
    x, y = SETTING.batch(0)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return criterion(torch.func.functional_call(model.eval(), parameters, (x,)), y)

    gradients: dict[str, Tensor] = torch.func.grad(loss)({n: p.detach() for n, p in model.named_parameters()})
    return gradients


# Averages of weights, and optimizers around optimizers


def averages() -> list[Case]:
    """Return the cases of averaged weights."""

    def averaged(kind: str, criterion: Criterion, make: Callable[[nn.Module], Method]) -> Mapping[str, Tensor]:
        averages: list[Any] = []

        def step_and_average(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
            if not averages:
                averages.append(_average(kind, model))
            optimizer.step()
            update = averages[0].update if kind == "timm" else averages[0].update_parameters
            update(model)

        trained(criterion, make, step_and_average)
        if kind == "swa":
            update_bn([SETTING.batch(3)[0]], averages[0])
        return dict(averages[0].module.state_dict())

    names = {
        "swa": "SWA (`swa_utils.AveragedModel`, `update_bn`)",
        "ema": "EMA (`swa_utils.get_ema_multi_avg_fn`)",
        "timm": "EMA (`timm.utils.ModelEmaV3`)",
    }
    return [both(name, partial(_compare_run, run=partial(averaged, kind))) for kind, name in names.items()]


def _compare_run(row: Row, run: Run) -> None:
    compare(row, run)


def _average(kind: str, model: nn.Module) -> Any:
    if kind == "swa":
        return AveragedModel(model)
    if kind == "ema":
        return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    from timm.utils import ModelEmaV3

    return ModelEmaV3(model, decay=0.5)


def around_optimizers() -> list[Case]:
    """Return the cases of optimizers that hold others."""

    def lookahead(parameters: Any) -> Any:
        from timm.optim import Lookahead

        return Lookahead(sgd(parameters), k=2)

    def schedule_free(parameters: Any) -> Any:
        from schedulefree import ScheduleFreeWrapper

        optimizer = ScheduleFreeWrapper(sgd(parameters), momentum=0.9)
        optimizer.train()
        return optimizer

    cases = []
    for name, make in (("Lookahead of timm", lookahead), ("`ScheduleFreeWrapper`", schedule_free)):
        cases.append(loop(f"{name}, called in the loop", Loop(optimizer=make, steps=3)))
        cases.append(loop(f"{name}, attached", Loop(optimizer=make, how="attached", steps=3)))
    return [
        *cases,
        both("SAM of pytorch_optimizer, `first_step` and `second_step`", lambda row: compare(row, sam), _SECOND),
    ]


_SECOND = "`scale_gradients()` before `second_step()`"


def sam(criterion: Criterion, make: Callable[[nn.Module], Method]) -> Mapping[str, Tensor]:
    """Train with sharpness-aware minimisation in two calls."""
    from pytorch_optimizer import SAM

    model = Loop(build=lambda: net().eval()).new_model()
    method = make(model)
    method.measure([SETTING.batch(100)[0]])
    optimizer = SAM(model.parameters(), base_optimizer=torch.optim.SGD, lr=0.5)
    for seed in range(2):
        x, y = SETTING.batch(seed)
        criterion(model(x), y).backward()
        optimizer.first_step(zero_grad=True)
        criterion(model(x), y).backward()
        method.scale()
        optimizer.second_step(zero_grad=True)
    return model.state_dict()
