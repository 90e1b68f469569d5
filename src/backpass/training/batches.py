"""Batches of any form: tensors, or tuples, lists and dictionaries of them, nested."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from backpass._internal.batches import describe, map_parts, map_tensors, tensors_in
from backpass.errors import InputError

__all__ = ["batch_size", "move", "split_batch"]


def batch_size(batch: Any) -> int:
    """Return the number of examples in a batch: the length of its first tensor.

    Raises:
        InputError: the batch holds no tensor with a batch axis.

    >>> batch_size({"boxes": torch.zeros(3, 4)})
    3
    """
    first = next((tensor for tensor in tensors_in(batch) if tensor.ndim), None)
    if first is None:
        raise InputError(
            f"expected a batch with a tensor whose first axis is the batch, got {describe(batch)}; "
            "return such batches from the data set"
        )
    return len(first)


def split_batch(batch: Any, parts: int) -> list[Any]:
    """Return a batch in ``parts`` consecutive pieces.

    Each tensor is cut along its first axis (``Tensor.tensor_split``), and each list without tensors that is as long as
    the batch likewise, such as the names of its examples. Other values are kept whole.

    Raises:
        InputError: the batch holds no tensor with a batch axis.

    >>> split_batch({"x": torch.arange(3), "name": ["a", "b", "c"]}, 2)
    [{'x': tensor([0, 1]), 'name': ['a', 'b']}, {'x': tensor([2]), 'name': ['c']}]
    """
    size = batch_size(batch)

    def chosen(part: Any) -> bool:
        values = isinstance(part, list) and len(part) == size and not any(True for _ in tensors_in(part))
        return values or isinstance(part, Tensor)

    return [map_parts(partial(_piece, parts=parts, number=number), batch, chosen) for number in range(parts)]


def move(batch: Any, device: torch.device, memory_format: torch.memory_format = torch.contiguous_format) -> Any:
    """Return a batch on a device; floating-point images get the memory format. Copies to a GPU are not waited for.

    Args:
        batch: of any form.
        device: of the result.
        memory_format: of floating-point tensors of shape ``(N, C, H, W)``.
    """

    def to(tensor: Tensor) -> Tensor:
        from_cpu = tensor.device.type == "cpu"  # a copy to the CPU could be read before it has arrived
        if tensor.ndim == 4 and tensor.is_floating_point():
            return tensor.to(device, non_blocking=from_cpu, memory_format=memory_format)
        return tensor.to(device, non_blocking=from_cpu)

    return map_tensors(to, batch)


def _piece(part: Tensor | list[Any], parts: int, number: int) -> Tensor | list[Any]:
    if isinstance(part, Tensor):
        return part.tensor_split(parts)[number]
    return [part[index] for index in torch.arange(len(part)).tensor_split(parts)[number].tolist()]
