"""Batches in the forms that loaders yield: running a model on their input, mapping and describing them."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from backpass.errors import InputError

__all__ = ["Forward", "copied", "describe", "forward_on", "map_parts", "map_tensors", "tensors_in"]

Forward = Callable[[Any], Any]
"""Runs a model on a batch of any form."""


def forward_on(
    model: nn.Module, device: torch.device, name: str | None = None, *, kernels: Iterable[Tensor] | None = None
) -> Forward:
    """Return a function that runs ``model`` on a batch: a tensor, or a tuple or list that starts with one.

    With ``name``, batches are mappings, such as ``{"pixel_values": x, "labels": y}``, and the input is ``batch[name]``.
    The function moves the tensor to ``device``, and casts one of floating point whose dtype none of ``kernels``
    (default: all of the model's) has to that of the first, as autocast and the precisions of frameworks do in training.
    It raises an InputError for a batch of another form or an empty one.

    >>> forward = forward_on(nn.Linear(2, 1), torch.device("cpu"))
    >>> forward((torch.ones(3, 2), torch.tensor([0, 1, 0]))).shape
    torch.Size([3, 1])
    >>> forward_on(nn.Linear(2, 1), torch.device("cpu"), "pixels")({"pixels": torch.ones(3, 2)}).shape
    torch.Size([3, 1])
    """
    dtypes = _dtypes_of_kernels(model.parameters() if kernels is None else kernels)

    def forward(batch: Any) -> Any:
        if name is not None:
            x = batch.get(name) if isinstance(batch, Mapping) else None
        else:
            x = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if not isinstance(x, Tensor):
            form = "a tensor or a tuple that starts with one" if name is None else f"a mapping with a tensor {name!r}"
            raise InputError(
                f"expected a batch to be {form}, got {describe(batch)}; pass forward=... to run the model on batches "
                "of another form: a function of the batch, or the name of the input in a mapping"
            )
        if x.numel() == 0:
            raise InputError(f"expected a non-empty batch, got shape {tuple(x.shape)}; leave empty batches out")
        cast = x.is_floating_point() and dtypes and x.dtype not in dtypes
        waits = x.device.type != "cpu"  # a copy to the CPU could be read before it has arrived
        return model(x.to(device, dtypes[0] if cast else None, non_blocking=not waits))

    return forward


def copied(batch: Any) -> Any:
    """Return the batch with copies of its tensors (:func:`map_tensors`); other parts are shared with it.

    >>> batch = {"x": [torch.zeros(2)], "name": "a"}
    >>> copied(batch)["x"][0].add_(1), batch["x"][0]
    (tensor([1., 1.]), tensor([0., 0.]))
    """
    return map_tensors(Tensor.clone, batch)


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Iterate over the tensors in tuples, lists and mappings at any depth.

    >>> list(tensors_in({"a": torch.zeros(2), "b": [(torch.ones(1),), "name", None]}))
    [tensor([0., 0.]), tensor([1.])]
    """
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping | tuple | list):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from tensors_in(part)


def map_tensors(call: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """Return the batch with ``call`` applied to each tensor in tuples, lists and mappings at any depth.

    >>> map_tensors(lambda x: x + 1, {"a": torch.zeros(2), "b": (torch.ones(1), "name")})
    {'a': tensor([1., 1.]), 'b': (tensor([2.]), 'name')}
    """
    return map_parts(call, batch, lambda part: isinstance(part, Tensor))


def map_parts(call: Callable[[Any], Any], batch: Any, chosen: Callable[[Any], bool]) -> Any:
    """Return the batch with ``call`` applied to each part that is ``chosen``, the outer before the inner.

    Containers keep their types, such as a ``ModelOutput``, and their attributes; a mapping that cannot be written to
    becomes a dictionary.
    """

    def mapped(part: Any) -> Any:
        return map_parts(call, part, chosen)

    if chosen(batch):
        return call(batch)
    if isinstance(batch, MutableMapping):
        mapping = copy.copy(batch)
        for key, value in batch.items():
            mapping[key] = mapped(value)
        return mapping
    if isinstance(batch, Mapping):
        return {key: mapped(value) for key, value in batch.items()}
    if isinstance(batch, list):
        items = copy.copy(batch)
        items[:] = map(mapped, batch)
        return items
    if isinstance(batch, tuple):
        return _tuple_of(map(mapped, batch), batch)
    return batch


def _tuple_of(parts: Iterable[Any], like: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a tuple of the type of another, with its attributes."""
    kind = type(like)
    if kind.__new__ is not tuple.__new__ and not isinstance(kind.__new__, FunctionType):
        return kind(parts)  # a type of torch's own, such as torch.Size and those of torch.return_types
    made = tuple.__new__(kind, parts)  # since a constructor in Python may take other arguments
    if hasattr(like, "__dict__"):
        vars(made).update(vars(like))
    return made


def _dtypes_of_kernels(parameters: Iterable[Tensor]) -> list[torch.dtype]:
    kernels = (p for p in parameters if not is_lazy(p) and p.ndim > 1 and p.is_floating_point())
    return [p.dtype for p in kernels if p.dtype.itemsize > 1]  # kernels of 8 bits take other inputs


def describe(batch: object) -> str:
    """Return a description of the form of a batch, for errors.

    >>> describe((torch.ones(3, 2), "name"))
    'tuple of tensor of shape (3, 2), str'
    """
    if isinstance(batch, Tensor):
        return f"tensor of shape {tuple(batch.shape)}"
    if isinstance(batch, tuple | list):
        return f"{type(batch).__name__} of {', '.join(describe(item) for item in batch) or 'nothing'}"
    if isinstance(batch, Mapping):
        return f"{type(batch).__name__} with keys {', '.join(map(repr, batch)) or 'nothing'}"
    return type(batch).__name__
