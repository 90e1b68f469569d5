"""Reading the first batches of a loader without a trace."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from backpass._internal.batches import describe
from backpass._internal.random_state import keeping_random_state
from backpass.errors import InputError

__all__ = ["first_batches", "reading"]


@contextmanager
def reading(loader: Iterable[Any]) -> Iterator[None]:
    """Read the first batches of a loader in a ``with`` block; at its end random states are restored.

    Raises:
        InputError: a tensor instead of batches.
    """
    if isinstance(loader, Tensor):
        raise InputError(f"expected an iterable of batches, got one {describe(loader)}; pass [batch]")
    before = _times_read(loader)
    try:
        with keeping_random_state(loader), _own_workers(loader):
            yield
    finally:
        if _times_read(loader) > before:
            loader.end()  # type: ignore[attr-defined]  # Accelerate's


def first_batches(loader: Iterable[Any], count: int | None = None) -> Sequence[Any]:
    """Return the first ``count`` batches of a loader, or all; no more are read, and random states are restored.

    A sequence that is read whole is returned as it is.

    >>> first_batches(iter(range(10)), 2)
    [0, 1]

    Raises:
        InputError: a tensor instead of batches, a count below 1, or no batch.
    """
    if count is not None and count < 1:
        raise InputError(f"expected to read at least one batch, got batches={count}; leave it out to read all")
    batches: Sequence[Any]
    if count is None and isinstance(loader, Sequence):
        batches = loader
    else:
        with reading(loader):
            batches = list(islice(loader, count))
    if len(batches) == 0:
        raise InputError("expected at least one measuring batch, got none; pass a loader that is not exhausted")
    return batches


def _times_read(loader: Iterable[Any]) -> int:
    """Return how often Accelerate takes the loader for being read, which decides when gradients are synchronised."""
    state = getattr(loader, "gradient_state", None)
    return sum(other is loader for other in getattr(state, "dataloader_references", ()))


@contextmanager
def _own_workers(loader: Iterable[Any]) -> Iterator[None]:
    """Read a ``DataLoader`` with workers of its own, where they persist: it has one iterator then, perhaps in use."""
    loader = getattr(loader, "base_dataloader", loader)  # inside Accelerate's
    if not (isinstance(loader, DataLoader) and loader.persistent_workers):
        yield
        return
    in_use, loader._iterator = loader._iterator, None
    try:
        yield
    finally:
        loader._iterator = in_use  # the last reference to the other one, which ends its workers
