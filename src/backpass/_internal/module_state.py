"""Restoring what running a model changes in it: the values of its tensors, and the attributes of its modules."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["keeping_buffers", "keeping_state"]

_CONTAINERS = (dict, list, set, deque)


@contextmanager
def keeping_buffers(model: nn.Module) -> Iterator[Callable[[], bool]]:
    """Restore the buffers of ``model`` at the end, also after an exception.

    They keep their identity; those that the model adds are removed. Those without values (lazy ones, and those on the
    meta device) have none to restore. The context returns a function that returns whether they are unchanged so far.

    >>> norm = nn.BatchNorm1d(2)
    >>> with keeping_buffers(norm) as unchanged:
    ...     before, _ = unchanged(), norm(torch.randn(4, 2))
    ...     before, unchanged()
    (True, False)
    >>> norm.running_mean
    tensor([0., 0.])
    """
    buffers = [(module, dict(module._buffers)) for module in model.modules() if not _scripted(module)]
    values = _copies(model.buffers())

    def unchanged() -> bool:
        return all(_same_objects(module._buffers, held) for module, held in buffers) and all(
            _same(buffer, value) for buffer, value in values
        )

    try:
        yield unchanged
    finally:
        for module, held in buffers:
            module._buffers.clear()
            module._buffers.update(held)
        _restore(values)


@contextmanager
def keeping_state(model: nn.Module) -> Iterator[None]:
    """Restore parameters, buffers and attributes of the modules of ``model`` at the end, also after an exception.

    Of attributes, also the content of lists, dictionaries, sets and deques, and the values of tensors, at any depth;
    other objects stay as the ``with`` block leaves them. So do a lazy module that it initialises, and the attributes of
    a scripted one.

    >>> layer = nn.ReLU()
    >>> layer.seen = []
    >>> with keeping_state(layer):
    ...     layer.seen.append(1)
    ...     layer.last = 1
    >>> layer.seen, hasattr(layer, "last")
    ([], False)
    """
    kept: list[tuple[nn.Module, type, list[tuple[Any, Any]]]] = []
    tensors: dict[int, Tensor] = {}
    seen: set[int] = set()
    for module in model.modules():
        containers: list[tuple[Any, Any]] = []
        if not _scripted(module):
            _collect(vars(module), containers, tensors, seen)
        kept.append((module, type(module), containers))
    tensors |= {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    values = _copies(tensors.values())
    try:
        yield
    finally:
        for module, kind, containers in kept:
            for container, before in containers if type(module) is kind else []:  # a lazy one becomes another kind
                if not _same_content(container, before):
                    container.clear()
                    (container.extend if isinstance(container, list | deque) else container.update)(before)
        _restore(values)


def _scripted(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


def _collect(value: Any, containers: list[tuple[Any, Any]], tensors: dict[int, Tensor], seen: set[int]) -> None:
    """Add the tensors in ``value``, and each container with a copy of its content, as a dictionary or a list."""
    if isinstance(value, Tensor):
        tensors[id(value)] = value
    elif isinstance(value, (*_CONTAINERS, tuple)) and id(value) not in seen:
        seen.add(id(value))
        items = list(value.values() if isinstance(value, dict) else value)
        if not isinstance(value, tuple):
            containers.append((value, dict(zip(value, items, strict=True)) if isinstance(value, dict) else items))
        for item in items:
            _collect(item, containers, tensors, seen)


def _same_content(container: Any, before: Any) -> bool:
    if isinstance(container, dict):
        return list(container) == list(before) and _same_objects(container, before)
    if isinstance(container, set):
        return container == set(before)
    return len(container) == len(before) and all(map(lambda a, b: a is b, container, before))


def _same_objects(content: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    return content.keys() == before.keys() and all(content[name] is before[name] for name in before)


def _copies(tensors: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(t, t.detach().clone()) for t in tensors if not (is_lazy(t) or t.is_meta)]


def _same(tensor: Tensor, value: Tensor) -> bool:
    alike = (tensor.shape, tensor.dtype, tensor.layout) == (value.shape, value.dtype, torch.strided)
    return alike and torch.equal(tensor, value)


def _restore(values: Iterable[tuple[Tensor, Tensor]]) -> None:
    for tensor, value in values:
        if _same(tensor, value):  # an untouched one keeps its version for autograd
            continue
        if (tensor.shape, tensor.dtype) == (value.shape, value.dtype):
            tensor.data.copy_(value)
        else:
            tensor.data = value
