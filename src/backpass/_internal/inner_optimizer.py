"""Optimizers inside wrappers."""

from torch.optim import Optimizer

from backpass.errors import InputError

__all__ = ["inner_optimizer"]

# Accelerate, pytorch_optimizer; Lightning; SAM; timm's Lookahead; schedule-free.
_WRAPPED_AS = ("optimizer", "_optimizer", "base_optimizer", "_base_optimizer", "base")


def inner_optimizer(optimizer: object) -> Optimizer:
    """Return the optimizer inside wrappers, whose ``step`` is the one that writes to the parameters.

    Looks through the wrappers of Accelerate, Lightning, Lookahead, SAM, schedule-free and torch's
    ``PostLocalSGDOptimizer``: objects that hold an optimizer as one of their attributes.

    Raises:
        InputError: there is none.

    >>> import torch
    >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
    >>> class Wrapper:
    ...     def __init__(self, optimizer): self.base_optimizer = optimizer
    ...     def step(self): self.base_optimizer.step()
    >>> inner_optimizer(Wrapper(Wrapper(sgd))) is inner_optimizer(sgd) is sgd
    True
    """
    while (inner := _held_by(optimizer)) is not None:
        optimizer = inner
    if not isinstance(optimizer, Optimizer):
        raise InputError(
            f"expected a torch.optim.Optimizer, or a wrapper that holds one as {', '.join(_WRAPPED_AS)} or optim, got "
            f"{type(optimizer).__name__}; pass the optimizer that it steps"
        )
    return optimizer


def _held_by(wrapper: object) -> object | None:
    attributes = getattr(wrapper, "__dict__", {})
    values = [attributes.get(name) for name in _WRAPPED_AS]
    if "_optimizer_step_pre_hooks" not in attributes:
        values.append(attributes.get("optim"))  # PostLocalSGDOptimizer; ZeRO's has hooks, and others in its `optim`
    return next((v for v in values if isinstance(v, Optimizer) or callable(getattr(v, "step", None))), None)
