"""Optimizers: each that a plain loop can train with, made from parameters and a learning rate."""

import inspect
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from backpass.sgs.optimizers import normalizes_gradients
from battery.loop import TOLERANCES, Loop, examine
from battery.rows import Row
from sgs.movement import left_of_ten
from works_with.case import CancelledError, Case, Way, strictly
from works_with.rows import PGT, PLAIN, SGS, SGS_UPDATE

Make = Callable[..., Optimizer]
LR = 1e-4  # small, so that what is left of a scaling does not depend on it
ENOUGH = 9.0  # of 10
STEPS = 8  # RAdam moves nothing in its first five
_FINDS_ITS_RATE = re.compile("DAdapt|Prodigy")
_NOT_TRAINED = "not run: given parameters and a learning rate, it does not train these kernels on a CPU"
_CLOSURE = "`scale_gradients()` at the end of the closure"


def case(name: str, make: Make) -> Case:
    """Return the case of an optimizer; one that a plain loop cannot judge says why."""
    make = partial(_ready, make)
    how = next((how for how in ("called", "in a closure") if _trains(_setting(make, how))), None)
    if how is None:
        return _left_out(name, _NOT_TRAINED)
    setting = _setting(make, how)
    if not _is_steady(setting):
        return _left_out(name, "not run: a difference of rounding in the loss moves it elsewhere")

    def sgs(row: Row, apply: Any) -> None:
        examine(row, setting)
        left = left_of_ten(make, apply, closure=how == "in a closure")
        if left < ENOUGH:
            raise CancelledError(f"{left:.1f} of 10 left")
        if apply == "gradient" and normalizes_gradients(make([nn.Parameter(torch.ones(2, 2, 3, 3))])):
            raise CancelledError(f"{left:.1f} of 10 left, fewer after more steps")  # RMSpropTF: its average starts at 1

    ways = [
        Way("" if how == "called" else _CLOSURE, lambda: sgs(SGS, "gradient")),
        Way('`apply="update"`', lambda: sgs(SGS_UPDATE, "update")),
    ]
    return Case(name, ways, [Way("", lambda: examine(PGT, setting))])


def _left_out(name: str, why: str) -> Case:
    def say_why() -> None:
        raise CancelledError(why)

    return Case(name, [Way("", say_why)], [Way("", say_why)])


def _setting(make: Make, how: Any) -> Loop:
    return Loop(optimizer=make, how=how, steps=STEPS)


def _ready(make: Make, parameters: Any) -> Optimizer:
    optimizer = make(parameters)
    if callable(train := getattr(optimizer, "train", None)):
        train()  # schedule-free optimizers refuse a step before it
    return optimizer


def _trains(setting: Loop) -> bool:
    """Return whether every kernel moves far enough for the comparison of two runs to see it."""
    start = setting.new_model()
    try:
        with strictly():
            outcome = setting.run(PLAIN.loss.ours, PLAIN.ours)
    except Exception:
        return False
    _, smallest = TOLERANCES[setting.dtype]
    kernels = ((outcome.state[name], value) for name, value in start.named_parameters() if value.ndim == 4)
    return all((moved - value).abs().max() > 10 * smallest for moved, value in kernels)


def _is_steady(setting: Loop) -> bool:
    """Return whether a run ends in the same place when the loss differs by its rounding."""
    outcome, other = (
        setting.run(lambda x, y, factor=factor: PLAIN.loss.ours(x, y) * factor, PLAIN.ours) for factor in (1, 1 + 1e-14)
    )
    try:
        setting.assert_same(outcome, other)
    except AssertionError:
        return False
    return True


def cases(makes: Mapping[str, Make]) -> list[Case]:
    """Return the cases of the optimizers."""
    return [case(name, make) for name, make in makes.items()]


def of_torch() -> dict[str, Make]:
    """Return the optimizers of torch by name."""
    kinds = {name: kind for name, kind in vars(torch.optim).items() if _is_optimizer(kind)}
    return {name: partial(kind, lr=LR) for name, kind in sorted(kinds.items())}


def of_timm() -> dict[str, Make]:
    """Return the optimizers of timm by name."""
    from timm.optim import create_optimizer_v2, list_optimizers

    return {name: partial(create_optimizer_v2, opt=name, lr=LR) for name in list_optimizers()}


def of_schedule_free() -> dict[str, Make]:
    """Return the optimizers of schedulefree by name."""
    import schedulefree

    kinds = {name: kind for name, kind in vars(schedulefree).items() if _is_optimizer(kind)}
    return {name: partial(kind, lr=LR) for name, kind in sorted(kinds.items())}


def of_pytorch_optimizer() -> dict[str, Make]:
    """Return the optimizers of pytorch_optimizer by name."""
    import pytorch_optimizer

    kinds = {kind.__name__: kind for kind in vars(pytorch_optimizer).values() if _is_optimizer(kind)}
    # Those that find the learning rate themselves multiply it with what they are given.
    return {name: partial(kind, lr=1.0 if _FINDS_ITS_RATE.match(name) else LR) for name, kind in sorted(kinds.items())}


def _is_optimizer(kind: Any) -> bool:
    return (
        isinstance(kind, type)
        and issubclass(kind, Optimizer)
        and kind is not Optimizer
        and not inspect.isabstract(kind)
    )
