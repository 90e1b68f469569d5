"""Running a model in train or eval mode."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from torch import nn

__all__ = ["eval_mode", "flagged", "set_mode"]


def eval_mode(model: nn.Module) -> AbstractContextManager[None]:
    """Set the model to eval mode in a ``with`` block (:func:`set_mode`)."""
    return set_mode(model, training=False)


@contextmanager
def set_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Set the model to train or eval mode in a ``with`` block, then restore the mode of every module.

    >>> model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
    >>> with set_mode(model, training=False):
    ...     [module.training for module in model.modules()]
    [False, False, False]
    >>> [module.training for module in model.modules()]
    [True, True, False]
    """
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, before in modes:
            if module.training != before:
                module.train(before)  # a module may do more than set the flag, such as unmerge a low-rank update
        for module, before in modes:
            module.training = before


@contextmanager
def flagged(modes: Mapping[nn.Module, bool]) -> Iterator[None]:
    """Give each module its ``training`` flag in a ``with`` block, without a call of ``train()``, then restore it.

    >>> model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
    >>> modes = {module: module.training for module in model.modules()}
    >>> with eval_mode(model), flagged(modes):
    ...     [module.training for module in model.modules()]
    [True, True, False]
    """
    before = {module: module.training for module in modes}
    try:
        for module, training in modes.items():
            module.training = training
        yield
    finally:
        for module, training in before.items():
            module.training = training
