"""Several processes: reduce statistics instead of sending feature maps, and scale the local part of sharded tensors.

After the reduction every process holds bitwise the same statistics, those of one process on the union of the batches.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from backpass._internal.several_processes import ProcessGroup, several_processes
from backpass.errors import InputError, StateError
from backpass.sgs.dependence import Dependence

__all__ = [
    "ProcessGroup",
    "computing_device",
    "failing_together",
    "largest_of_processes",
    "local_part",
    "reduce_ranges",
    "reduce_totals",
    "resharded",
    "sharded_modules",
]

_INT32_MAX = 2**31 - 1


def reduce_ranges(dependences: Sequence[Dependence], group: ProcessGroup = None) -> None:
    """Give every process the smallest minima, the largest maxima and the sums of all processes.

    Two collectives for all layers together: floats (maxima and negated minima) and int64 sums.
    """
    if not several_processes(group):
        return
    minima = [low for d in dependences for low in d.minima]
    maxima = [high for d in dependences for high in d.maxima]
    sums = [number for d in dependences for number in d.sums]
    ranges = _flat([*(-low for low in minima), *maxima])
    ranges = ranges.nan_to_num(torch.inf, torch.inf, -torch.inf)  # a maximum may lose NaN; infinity says as much
    dist.all_reduce(ranges, dist.ReduceOp.MAX, group)
    total = _flat(sums)
    dist.all_reduce(total, dist.ReduceOp.SUM, group)
    _unflatten(ranges, [*minima, *maxima])
    _unflatten(total, sums)
    for low in minima:
        low.neg_()


def reduce_totals(dependences: Sequence[Dependence], group: ProcessGroup = None) -> None:
    """Give every process the sum of the totals of all processes; one collective for all layers together.

    Counts travel as int32 where no sum can exceed it, which halves what is sent.
    """
    if not several_processes(group) or not dependences:
        return
    totals = [total for d in dependences for total in d.totals]
    flat = _flat(totals)
    largest = max(int(d.pairs.max()) for d in dependences)
    if not flat.is_floating_point() and largest <= _INT32_MAX:
        flat = flat.int()
    dist.all_reduce(flat, dist.ReduceOp.SUM, group)
    _unflatten(flat, totals)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    device = tensors[0].device  # a model may be spread over several
    return torch.cat([tensor.flatten().to(device) for tensor in tensors])


def _unflatten(flat: Tensor, into: Sequence[Tensor]) -> None:
    """Write a flattened sequence of tensors back into the tensors."""
    for tensor, part in zip(into, torch.split(flat, [tensor.numel() for tensor in into]), strict=True):
        tensor.copy_(part.view_as(tensor))


@contextmanager
def failing_together(device: torch.device, group: ProcessGroup = None) -> Iterator[None]:
    """Raise what the code inside raises, and StateError on the processes where it raises nothing.

    Every process must enter. None is left waiting in the next collective for one that has failed.
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    if largest_of_processes(int(failure is not None), device, group):
        raise failure or StateError("measuring failed on another process; see the error there")


def largest_of_processes(number: int, device: torch.device, group: ProcessGroup = None) -> int:
    """Return the largest ``number`` of all processes."""
    if not several_processes(group):
        return number
    value: Tensor = torch.tensor(number, device=device)
    dist.all_reduce(value, dist.ReduceOp.MAX, group)
    return int(value)


def sharded_modules(model: nn.Module) -> list[Any]:
    """Return the modules under FSDP2 (``fully_shard``); with some, running the model is a collective operation."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # without it no module can be of its classes
    return [] if fsdp is None else [module for module in model.modules() if isinstance(module, fsdp.FSDPModule)]


@contextmanager
def resharded(model: nn.Module) -> Iterator[None]:
    """Free, at the end, the gathered parameters that FSDP2 keeps after a forward pass without a backward pass."""
    try:
        yield
    finally:
        for module in sharded_modules(model):
            module.reshard()


def computing_device(parameter: Tensor) -> torch.device:
    """Return the device on which the model computes with a parameter.

    Its own, or that of its mesh where FSDP2 keeps the shards on the CPU (``CPUOffloadPolicy``).
    """
    module = sys.modules.get("torch.distributed.tensor")
    if module is not None and isinstance(parameter, module.DTensor):
        kind = parameter.device_mesh.device_type
        if kind != parameter.device.type:
            return torch.device(kind)
    return parameter.device


def local_part(tensor: Tensor, name: str) -> Tensor:
    """Return the local part of a kernel or its gradient, sharing memory with it.

    Args:
        tensor: a plain tensor, which is returned, or a DTensor, replicated or sharded on dim 0 (output channels).
        name: of the parameter, for the error.

    Raises:
        InputError: it is sharded on input channels or kernel taps, or holds partial sums.
    """
    module = sys.modules.get("torch.distributed.tensor")
    if module is None or not isinstance(tensor, module.DTensor):
        return tensor
    placements = tensor.placements
    if not all(placement.is_replicate() or placement.is_shard(0) for placement in placements):
        raise InputError(
            f"expected {name} to be replicated or sharded on dim 0, got {placements}; its taps cannot be scaled in "
            "parts: shard this parameter on dim 0"
        )
    local: Tensor = tensor.to_local()
    return local
