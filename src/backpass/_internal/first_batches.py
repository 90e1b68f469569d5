"""Reading the first batches of a loader without a trace."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from backpass._internal.batches import describe
from backpass._internal.nested_loaders import nested_loaders
from backpass._internal.random_state import keeping_random_state
from backpass._internal.settings import COUNT, check_number
from backpass.errors import InputError

__all__ = ["first_batches", "reading"]


@contextmanager
def reading(loader: Iterable[Any]) -> Iterator[None]:
    """Read the first batches of a loader in a ``with`` block, and restore it and random states at the end.

    Raises:
        InputError: a tensor instead of batches.
    """
    if isinstance(loader, Tensor):
        raise InputError(f"expected an iterable of batches, got one {describe(loader)}; pass [batch]")
    with _keeping_gradient_state(loader), keeping_random_state(loader), _own_iterators(loader):
        yield


def first_batches(loader: Iterable[Any], count: int | None = None) -> Sequence[Any]:
    """Return the first ``count`` batches of a loader, or all; no more are read, and random states are restored.

    A sequence that is read whole is returned as it is.

    >>> first_batches(iter(range(10)), 2)
    [0, 1]

    Raises:
        InputError: a tensor instead of batches, a count below 1, or no batch.
    """
    if count is not None:
        check_number("batches", count, int, COUNT)
    batches: Sequence[Any]
    if count is None and isinstance(loader, Sequence):
        batches = loader
    else:
        with reading(loader):
            batches = list(islice(loader, count))
    if len(batches) == 0:
        raise InputError("expected at least one measuring batch, got none; pass a loader that is not exhausted")
    return batches


@contextmanager
def _keeping_gradient_state(loader: Iterable[Any]) -> Iterator[None]:
    """Restore what decides when Accelerate synchronises gradients: the loaders being read, and the end of this one."""
    state: Any = getattr(loader, "gradient_state", None)
    if not hasattr(state, "dataloader_references"):
        yield
        return
    being_read = list(state.dataloader_references)
    names = ("end_of_dataloader", "remainder", "_stop_iteration")  # the last of DataLoaderDispatcher
    progress = {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    try:
        yield
    finally:
        state.dataloader_references = being_read
        if "active_dataloader" in vars(state):  # follows from the references in newer versions
            state.active_dataloader = being_read[-1]
        for name, value in progress.items():
            setattr(loader, name, value)


@contextmanager
def _own_iterators(loader: Iterable[Any]) -> Iterator[None]:
    """Read with new iterators where a ``DataLoader`` keeps one, perhaps in use, and restore that at the end.

    ``_iterator`` is that of persistent workers; ``iterator`` that of subclasses that never end it, such as timm's
    ``MultiEpochsDataLoader``, whose older versions do not create one when they are read.
    """
    kept = [
        (inner, name, vars(inner)[name])
        for inner in nested_loaders(loader)
        for name in ("_iterator", "iterator")
        if isinstance(inner, DataLoader) and name in vars(inner)
    ]
    try:
        for inner, name, iterator in kept:
            setattr(inner, name, None if name == "_iterator" or iterator is None else inner._get_iterator())
        yield
    finally:
        for inner, name, iterator in kept:
            setattr(inner, name, iterator)  # the last reference to the new one, which ends its workers
