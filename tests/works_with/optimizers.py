"""Optimizers: each that a plain loop can train with, made from parameters and a learning rate."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer

from battery.loop import Loop, examine
from battery.rows import Row
from sgs.movement import left_of_ten
from works_with.case import CancelledError, Case, Way, strictly
from works_with.rows import PGT, PLAIN, SGS, SGS_UPDATE

Make = Callable[..., Optimizer]
LR = 1e-4  # small, so that what is left of a scaling does not depend on it
ENOUGH = 9.0  # of 10
STEPS = 8  # RAdam moves nothing in its first five
_CLOSURE = "`scale_gradients()` at the end of the closure"


def case(name: str, make: Make) -> Case | None:
    """Return the case of an optimizer; ``None`` where a plain loop cannot train with it."""
    make = partial(_ready, make)
    how = next((how for how in ("called", "in a closure") if _trains(_setting(make, how))), None)
    if how is None:
        return None
    setting = _setting(make, how)

    def sgs(row: Row, apply: Any) -> None:
        examine(row, setting)
        left = left_of_ten(make, apply, closure=how == "in a closure")
        if left < ENOUGH:
            raise CancelledError(f"{left:.1f} of 10 left")

    ways = [
        Way("" if how == "called" else _CLOSURE, lambda: sgs(SGS, "gradient")),
        Way('`apply="update"`', lambda: sgs(SGS_UPDATE, "update")),
    ]
    return Case(name, ways, [Way("", lambda: examine(PGT, setting))])


def _setting(make: Make, how: Any) -> Loop:
    return Loop(optimizer=make, how=how, steps=STEPS)


def _ready(make: Make, parameters: Any) -> Optimizer:
    optimizer = make(parameters)
    if callable(train := getattr(optimizer, "train", None)):
        train()  # schedule-free optimizers refuse a step before it
    return optimizer


def _trains(setting: Loop) -> bool:
    start = setting.new_model()
    try:
        with strictly():
            outcome = setting.run(PLAIN.loss.ours, PLAIN.ours)
    except Exception:
        return False
    return any(not torch.equal(value, outcome.state[name]) for name, value in start.named_parameters())


def cases(makes: Mapping[str, Make]) -> list[Case]:
    """Return the cases of the optimizers that a plain loop can train with."""
    return [made for name, make in makes.items() if (made := case(name, make)) is not None]


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
    return {name: partial(kind, lr=LR) for name, kind in sorted(kinds.items())}


def _is_optimizer(kind: Any) -> bool:
    return (
        isinstance(kind, type)
        and issubclass(kind, Optimizer)
        and kind is not Optimizer
        and not inspect.isabstract(kind)
    )
