"""From a model with blocks back to the plain network, convolutions and normalisations."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from backpass._internal.batches import Forward, forward_on
from backpass._internal.eager import eagerly
from backpass._internal.first_batches import reading
from backpass._internal.modes import eval_mode
from backpass._internal.random_state import keeping_global_states
from backpass.errors import BackpassWarning, InputError
from backpass.reparam.blocks.batch_norm import BatchNorm
from backpass.reparam.blocks.block import ReparamBlock
from backpass.reparam.conversion.batch_norm_act import rejoin
from backpass.reparam.conversion.fusion import fuse
from backpass.reparam.conversion.module_replacement import copied, outermost_blocks, replace

__all__ = ["to_plain"]


def to_plain(model: nn.Module, batches: Iterable[Any] | None = None, *, forward: Forward | None = None) -> nn.Module:
    """Return a copy of ``model`` in plain form, of the same function in eval mode.

    Each block becomes the ``nn.Conv2d`` that it replaced, with the fused kernel, and the normalisation that it
    took over is restored. The result's state dict loads into the network that
    :func:`~backpass.reparam.reparameterize` was given.

    With ``batches`` the restored normalisations have the mean ``m`` and the variance ``v`` of the block's output on
    these: ``mean`` is ``m`` less the fused bias, ``var`` is ``v``, ``gamma`` is ``sqrt(v + eps)`` and ``beta`` is
    ``m``. In train mode the network then computes about the same, and can be trained further. Without ``batches``,
    ``m`` is the fused bias and ``v`` is 1: use that for evaluation alone, since batch statistics would give every
    channel unit variance.

    Args:
        model: a model in eval mode.
        batches: a few training batches: input tensors, or tuples that start with one, such as ``(input, target)``;
            all are read. Reading a loader changes neither the order nor the augmentation of what is read next.
        forward: runs ``model`` on a batch of any other form. Default: ``model(input)``, on the model's device.

    Raises:
        InputError: a block took over no normalisation of the model and replaced a convolution without bias, as DyRep's
            do, so that the plain form has no parameter for the fused bias; the placeholder of a normalisation is no
            longer in the model; or ``batches`` is a tensor, or a batch does
            not start with one.
        StateError: as :func:`~backpass.reparam.fuse`.

    Warns:
        BackpassWarning: the batches do not reach all blocks, or with one value a channel alone; normalisations of these
            are as without batches.
    """
    fused = fuse(model)
    blocks = outermost_blocks(model)
    statistics = {} if batches is None else _output_statistics(model, blocks, batches, forward)
    places = {id(module): name for name, module in model.named_modules()}
    for name, block in blocks.items():
        conv = cast(nn.Conv2d, fused.get_submodule(name))
        bias = cast(nn.Parameter, conv.bias)
        if block.absorbed:
            norm = copied(block.main.norm)
            _restore(norm, bias, *statistics.get(name, (bias, torch.ones_like(bias))))
            place = places.get(id(block.absorbed[0]))
            if place is None:
                raise InputError(
                    f"expected the placeholder of the normalisation that {name!r} took over in the model, got a model "
                    "without it; keep the Identity that reparameterize() put in its place, or use fuse(model)"
                )
            rest = fused.get_submodule(place)
            replace(fused, rest, rejoin(norm, rest))
            conv.bias = nn.Parameter(torch.zeros_like(bias)) if block.had_bias else None
        elif not block.had_bias:
            raise InputError(
                "expected blocks that replaced a convolution with a bias or a normalisation of the model, got "
                f"{name!r} with neither, so that the plain form has no parameter for its bias; use fuse(model)"
            )
    return fused


def _output_statistics(
    model: nn.Module, blocks: Mapping[str, ReparamBlock], batches: Iterable[Any], forward: Forward | None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return mean and variance of the output of each block in eval mode, averaged over the batches that reach it."""
    device = next(model.parameters()).device
    run = forward_on(model, device) if forward is None else forward
    meters = {name: _meter(block) for name, block in blocks.items()}
    hooks = [block.register_forward_hook(_recording(meters[name])) for name, block in blocks.items()]
    try:
        devices = [device] if device.type == "cuda" else []
        with torch.no_grad(), keeping_global_states(devices), eagerly(), eval_mode(model), reading(batches):
            for batch in batches:
                run(batch)
    finally:
        for hook in hooks:
            hook.remove()
    unreached = [name for name, meter in meters.items() if not meter.num_batches_tracked]
    if unreached:
        warnings.warn(
            f"expected batches that reach every block, got some that leave out {unreached[0]!r} ({len(unreached)} such "
            "blocks), whose normalisation has no statistics to train further from; pass at least one batch, and "
            "forward=, a function that runs the model so that it uses all blocks in eval mode",
            BackpassWarning,
            stacklevel=3,
        )
    return {
        name: (cast(Tensor, meter.running_mean), cast(Tensor, meter.running_var))
        for name, meter in meters.items()
        if name not in unreached
    }


def _meter(block: ReparamBlock) -> nn.BatchNorm2d:
    device = next(block.parameters()).device
    return nn.BatchNorm2d(block.geometry.out_channels, momentum=None, affine=False, device=device)


def _recording(meter: nn.BatchNorm2d) -> Callable[[nn.Module, Any, Tensor], None]:
    """Return a forward hook that adds the statistics of an output to the running ones of ``meter``."""

    def record(_: nn.Module, __: Any, output: Tensor) -> None:
        if output.numel() > output.shape[1]:  # one value a channel has no variance
            meter(output.float())

    return record


@torch.no_grad()
def _restore(norm: BatchNorm, bias: Tensor, mean: Tensor, var: Tensor) -> None:
    """Make ``norm`` add ``bias`` and do nothing else in eval mode, where its output has this mean and variance."""
    running_mean, running_var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    running_mean.copy_(mean - bias)
    running_var.copy_(var)
    norm.weight.copy_((running_var + norm.eps).sqrt())
    norm.bias.copy_(mean)
