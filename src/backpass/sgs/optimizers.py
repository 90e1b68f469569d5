"""Which optimizers undo a scaling."""

import re
import warnings

from torch.optim import Optimizer

from backpass._internal.inner_optimizer import inner_optimizer
from backpass.errors import NoEffectWarning

__all__ = ["is_called", "normalizes_gradients", "stepping_optimizer", "undoes_updates", "warn_if_undone"]

# By name, so that one pattern serves the classes of torch, their subclasses and third-party ones. What was measured of
# each is on docs/works-with.md.
_NORMALIZING = re.compile(
    "ada(m|n|grad|delta|factor|belief|hessian|bound|gc|lite|pnm|tam)|ademamix|adopt|rmsprop|rprop|lamb|lion|yogi|laprop"
    "|diffgrad|signsgd|galore|prodigy|spam|emo(fact|lynx|navi)"
    "|^(aida|alice|ano|apollo|bcos|conda|dash|fira|focus|ftrl|grams|gravity|kate|mars|nero|ranger|sm3|splus|srmm|swats|tiger)$",
    re.I,
)
_KEEPS_POINTS = re.compile("madgrad|^nero$|(adamw|radam)schedulefree(?!reference)|schedulefree(adamw|radam)", re.I)


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
    return is_called(optimizer, _NORMALIZING)


def undoes_updates(optimizer: Optimizer) -> bool:
    """Return whether the optimizer undoes a scaling of the gradient and one of the update.

    MADGRAD and the schedule-free forms of AdamW and RAdam step from points that they keep, and Nero rescales each
    kernel after its step, so that what is written to the kernel between two steps is lost. Recognised by name, as in
    :func:`normalizes_gradients`.
    """
    return is_called(optimizer, _KEEPS_POINTS)


def warn_if_undone(optimizer: Optimizer, apply: str, stacklevel: int) -> bool:
    """Warn that the optimizer undoes the scaling that ``apply`` names, if it does; return whether it does.

    Warns:
        NoEffectWarning: it does.
    """
    name = type(stepping_optimizer(optimizer)).__name__
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


def is_called(optimizer: Optimizer, name: re.Pattern[str]) -> bool:
    """Return whether the optimizer's class or a base class has such a name; wrappers are looked through."""
    return any(name.search(kind.__name__) for kind in type(stepping_optimizer(optimizer)).__mro__)


def stepping_optimizer(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer whose class says how the kernels are stepped."""
    optimizer = inner_optimizer(optimizer)
    local = vars(optimizer).get("optim")  # ZeroRedundancyOptimizer: it has the groups, and this the arithmetic
    return local if isinstance(local, Optimizer) else optimizer
