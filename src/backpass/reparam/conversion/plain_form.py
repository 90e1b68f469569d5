"""From a model with blocks back to the plain network, convolutions and normalisations."""

import math
from typing import cast

import torch
from torch import Tensor, nn

from backpass.errors import InputError
from backpass.reparam.blocks.batch_norm import BatchNorm
from backpass.reparam.conversion.batch_norm_act import rejoin
from backpass.reparam.conversion.fusion import fuse
from backpass.reparam.conversion.module_replacement import copied, outermost_blocks, replace

__all__ = ["to_plain"]


def to_plain(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` in plain form, of the same function in eval mode.

    Each block becomes the ``nn.Conv2d`` that it replaced, with the fused kernel, and the normalisation that it
    took over is restored, neutral: ``mean`` 0, ``var`` 1, ``gamma`` ``sqrt(1 + eps)`` and ``beta`` the
    fused bias. The result's state dict loads into the network that :func:`~backpass.reparam.reparameterize`
    was given. Use it for evaluation: its statistics are no start for further training.

    Raises:
        InputError: a block took over no normalisation of the model and replaced a convolution without bias, as DyRep's
            do, so that the plain form has no parameter for the fused bias.
        StateError: as :func:`~backpass.reparam.fuse`.
    """
    fused = fuse(model)
    places = {id(module): name for name, module in model.named_modules()}
    for name, block in outermost_blocks(model).items():
        conv = cast(nn.Conv2d, fused.get_submodule(name))
        bias = cast(nn.Parameter, conv.bias)
        if block.absorbed:
            norm = copied(block.main.norm)
            _neutralise(norm, bias)
            rest = fused.get_submodule(places[id(block.absorbed[0])])
            replace(fused, rest, rejoin(norm, rest))
            conv.bias = nn.Parameter(torch.zeros_like(bias)) if block.had_bias else None
        elif not block.had_bias:
            raise InputError(
                "expected blocks that replaced a convolution with a bias or a normalisation of the model, got "
                f"{name!r} with neither, so that the plain form has no parameter for its bias; use fuse(model)"
            )
    return fused


@torch.no_grad()
def _neutralise(norm: BatchNorm, bias: Tensor) -> None:
    """Make ``norm`` add ``bias`` and do nothing else in eval mode."""
    cast(Tensor, norm.running_mean).zero_()
    cast(Tensor, norm.running_var).fill_(1.0)
    norm.weight.fill_(math.sqrt(1.0 + norm.eps))
    norm.bias.copy_(bias)
