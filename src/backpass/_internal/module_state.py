"""Restoring what a forward pass changes in a model besides its parameters: buffers, and attributes of its modules."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["keeping_attributes", "keeping_buffers"]


@contextmanager
def keeping_buffers(model: nn.Module) -> Iterator[Callable[[], bool]]:
    """Restore the buffers of ``model`` at the end, also after an exception.

    They keep their identity; those that the model adds are removed. Those without values (lazy ones, and those on the
    meta device) have none to restore. The context returns a function that returns whether
    they are unchanged so far.

    >>> norm = nn.BatchNorm1d(2)
    >>> with keeping_buffers(norm) as unchanged:
    ...     before, _ = unchanged(), norm(torch.randn(4, 2))
    ...     before, unchanged()
    (True, False)
    >>> norm.running_mean
    tensor([0., 0.])
    """
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    tensors = [b for _, held in buffers for b in held.values() if b is not None]
    values = [(b, b.detach().clone()) for b in tensors if not (is_lazy(b) or b.is_meta)]

    def unchanged() -> bool:
        return all(_same_objects(module._buffers, held) for module, held in buffers) and all(
            b.shape == value.shape and b.dtype == value.dtype and torch.equal(b, value) for b, value in values
        )

    try:
        yield unchanged
    finally:
        for module, held in buffers:
            module._buffers.clear()
            module._buffers.update(held)
        for buffer, value in values:
            if buffer.shape != value.shape or buffer.dtype != value.dtype:
                buffer.data = value
            elif not torch.equal(buffer, value):  # an untouched buffer keeps its version for autograd
                buffer.data.copy_(value)


@contextmanager
def keeping_attributes(model: nn.Module) -> Iterator[None]:
    """Restore the attributes of the modules of ``model`` at the end, also after an exception.

    Lists, sets and dictionaries in them, also nested ones, keep their identity and get their content back; other
    objects, and the values of tensors, stay as the ``with`` block leaves them.

    >>> layer = nn.ReLU()
    >>> layer.seen = []
    >>> with keeping_attributes(layer):
    ...     layer.seen.append(1)
    ...     layer.last = 1
    >>> layer.seen, hasattr(layer, "last")
    ([], False)
    """
    kept: dict[int, tuple[Any, Any]] = {}  # by id: a container, and a shallow copy of it
    for module in model.modules():
        _keep(vars(module), kept)
    try:
        yield
    finally:
        for container, before in kept.values():
            if isinstance(container, list):
                container[:] = before
            else:
                container.clear()
                container.update(before)


def _keep(value: Any, kept: dict[int, tuple[Any, Any]]) -> None:
    if not isinstance(value, dict | list | set) or id(value) in kept:
        return
    kept[id(value)] = (value, value.copy())
    for item in value.values() if isinstance(value, dict) else value:
        _keep(item, kept)


def _same_objects(buffers: Mapping[str, Tensor | None], held: Mapping[str, Tensor | None]) -> bool:
    return buffers.keys() == held.keys() and all(buffers[name] is held[name] for name in held)
