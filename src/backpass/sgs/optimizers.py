"""What SGS has to know of an optimizer: whether it undoes a scaling, and what it does for weight decay."""

import re
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from backpass._internal.inner_optimizer import inner_optimizer
from backpass.errors import NoEffectWarning

__all__ = ["decay_factor", "normalizes_gradients", "undoes_updates", "warn_if_undone"]

# By name, so that one pattern serves the classes of torch, their subclasses and third-party ones. What was measured of
# each is on docs/works-with.md.
_NORMALIZING = re.compile(
    "ada(m|n|grad|delta|factor|belief|hessian|bound|gc|lite|pnm|tam)|ademamix|adopt|rmsprop|rprop|lamb|lion|yogi|laprop"
    "|diffgrad|signsgd|galore|prodigy|spam|emo(fact|lynx|navi)"
    "|^(aida|alice|ano|apollo|bcos|conda|dash|fira|focus|ftrl|grams|gravity|kate|mars|nero|ranger|sm3|splus|srmm|swats|tiger)$",
    re.I,
)
_KEEPS_POINTS = re.compile("madgrad|^nero$|(adamw|radam)schedulefree(?!reference)|schedulefree(adamw|radam)", re.I)
_DECOUPLED = re.compile("adamw|adafactor", re.I)


def normalizes_gradients(optimizer: Optimizer) -> bool:
    """Return whether the optimizer divides each element of the gradient by a measure of its own size.

    Under such an optimizer a constant scaling of the gradient cancels: Adam, AdamW, NAdam, RAdam, Adamax, Adadelta,
    Adagrad, RMSprop, Adafactor and others alike. Recognised by the names of the optimizer's class and its base classes,
    so that third-party classes such as ``FusedAdam`` or ``PagedLion`` count as well. One whose name says nothing of it
    is not recognised. Wrappers are looked through.

    >>> import torch
    >>> parameters = [torch.nn.Parameter(torch.ones(1))]
    >>> [normalizes_gradients(kind(parameters)) for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop)]
    [False, True, True]
    """
    return _is_called(optimizer, _NORMALIZING)


def undoes_updates(optimizer: Optimizer) -> bool:
    """Return whether the optimizer undoes a scaling of the gradient and one of the update.

    MADGRAD and the schedule-free forms of AdamW and RAdam step from points that they keep, and Nero rescales each
    kernel after its step, so that what is written to the kernel between two steps is lost. Recognised by name, as in
    :func:`normalizes_gradients`.
    """
    return _is_called(optimizer, _KEEPS_POINTS)


def warn_if_undone(optimizer: Optimizer, apply: str, stacklevel: int) -> bool:
    """Warn that the optimizer undoes the scaling that ``apply`` names, if it does; return whether it does.

    Warns:
        NoEffectWarning: it does.
    """
    name = type(_stepping(optimizer)).__name__
    if undoes_updates(optimizer):
        message = (
            f"{name} undoes a scaling, of the gradient and of the update alike, since it steps from points of its own; "
            "train with SGD, SGDScheduleFree, or AdamW and apply='update'"
        )
    elif apply == "gradient" and normalizes_gradients(optimizer):
        message = (
            f"{name} divides each element of the gradient by its own size, which cancels a scaling of the gradient; "
            "pass apply='update' to scale the update instead"
        )
    else:
        return False
    warnings.warn(message, NoEffectWarning, stacklevel=stacklevel + 1)
    return True


def decay_factor(optimizer: Optimizer, group: Mapping[str, Any]) -> float | Tensor:
    """Return what one step's decoupled weight decay multiplies the parameters of ``group`` with.

    ``1 - lr * weight_decay`` where the decay is decoupled from the gradient: in groups with ``decoupled_weight_decay``
    (Adam, NAdam, RAdam), and under AdamW and Adafactor, recognised by the names of the optimizer's class and its base
    classes. Otherwise 1: a decay that the optimizer adds to the gradient is part of the rest of its update.

    >>> import torch
    >>> optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=0.5, weight_decay=0.1)
    >>> decay_factor(optimizer, optimizer.param_groups[0])
    0.95
    """
    weight_decay = group.get("weight_decay", 0)
    if not (group.get("decoupled_weight_decay") or _is_called(optimizer, _DECOUPLED)):
        return 1.0
    # A GradScaler lets fused optimizers skip a step themselves, and tells them to by this attribute.
    overflow: Tensor | None = getattr(optimizer, "found_inf", None)
    taken = 1 if overflow is None else (overflow == 0).to(overflow.dtype)
    factor: float | Tensor = 1 - group["lr"] * weight_decay * taken
    return factor


def _is_called(optimizer: Optimizer, name: re.Pattern[str]) -> bool:
    return any(name.search(kind.__name__) for kind in type(_stepping(optimizer)).__mro__)


def _stepping(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer whose class says how the kernels are stepped."""
    optimizer = inner_optimizer(optimizer)
    local = vars(optimizer).get("optim")  # ZeroRedundancyOptimizer: it has the groups, and this the arithmetic
    return local if isinstance(local, Optimizer) else optimizer
