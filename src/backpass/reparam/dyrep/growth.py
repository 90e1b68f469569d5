"""Growing a convolution into a block without changing what the model computes (Huang et al., "DyRep", CVPR 2022)."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from backpass.errors import InputError
from backpass.reparam.blocks.batch_norm import BatchNorm
from backpass.reparam.blocks.block import MAIN, ReparamBlock
from backpass.reparam.blocks.dbb_dyrep import DYREP_BRANCHES, DyRepBlock
from backpass.reparam.blocks.geometry import ConvGeometry
from backpass.reparam.conversion.module_replacement import replace
from backpass.reparam.conversion.obstacles import obstacles

__all__ = ["eligible_convs", "grow", "set_function", "untouched_rng"]

MAX_DEPTH = 2
"""Blocks nest at most this deep."""

_NEW_GAMMA = 0.01


def eligible_convs(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the convolutions that may grow, by qualified name.

    Plain ``nn.Conv2d`` with a square odd kernel above 1 and zero padding, inside at most one block: the 7x7 stem,
    depthwise convolutions and the k x k convolutions of a block among them. Frozen convolutions may not, nor those
    with hooks or with shared parameters (:func:`~backpass.reparam.conversion.obstacles.obstacles`).
    """
    convs: dict[str, nn.Conv2d] = {}
    fixed = obstacles(model)
    seen: set[nn.Module] = set()

    def visit(module: nn.Module, name: str, depth: int) -> None:
        if module in seen:
            return
        seen.add(module)
        if name and type(module) is nn.Conv2d and depth < MAX_DEPTH and module not in fixed and _can_grow(module):
            convs[name] = module
        depth += isinstance(module, ReparamBlock)
        for key, child in module.named_children():
            visit(child, f"{name}.{key}" if name else key, depth)

    visit(model, "", 0)
    return convs


@torch.no_grad()
def grow(
    model: nn.Module,
    name: str,
    *,
    generator: torch.Generator,
    prepare: Callable[[ReparamBlock], None],
) -> DyRepBlock:
    """Replace the convolution ``name`` of ``model`` by a block of all branches that fit it, and return the block.

    1. Every new kernel is drawn from N(0, sqrt(2 / (k_h * k_w * C_out))); the last gamma of a new branch is 0.01.
    2. The ``kxk`` branch holds the old kernel while ``prepare`` sets the statistics of the block's normalisations;
       then its own are reset (mean 0, variance 1).
    3. The ``kxk`` kernel and bias become the old ones minus what the other branches amount to, times
       ``sqrt(1 + eps)``.

    In eval mode the model computes the same as before. In train mode the branches normalise with the statistics of
    their batch, and only a normalisation that follows hides the difference. (The published code leaves out the
    factor of step 3 and so is off by ``eps / 2``, relative.)

    Args:
        model: contains the convolution; the old bias parameter is reused, the ``kxk`` kernel is a new one.
        name: its qualified name.
        generator: a CPU generator; torch's global ones are left as they are.
        prepare: called with the block once it is part of the model. If it fails, the convolution is unchanged and
            can be put back.
    """
    conv = cast(nn.Conv2d, model.get_submodule(name))
    with untouched_rng(conv.weight.device):
        block = DyRepBlock(conv, branches=DYREP_BRANCHES)
    kernel = conv.weight.detach().clone()
    bias = torch.zeros_like(kernel[:, 0, 0, 0]) if conv.bias is None else conv.bias.detach().clone()
    layer = cast(nn.Conv2d, block.main.conv)
    layer.weight = nn.Parameter(kernel.clone())
    cast(Tensor, layer.bias).copy_(bias)
    for branch_name, branch in block.items():
        if branch_name != MAIN:
            _draw(branch, generator)
            nn.init.constant_(branch.norm.weight, _NEW_GAMMA)
    replace(model, conv, block)
    prepare(block)
    set_function(block, kernel, bias)
    return block


def set_function(layer: nn.Module, kernel: Tensor, bias: Tensor) -> None:
    """Make a convolution or a block equal ``kernel`` and ``bias`` in eval mode, changing its ``kxk`` branch alone."""
    if not isinstance(layer, ReparamBlock):
        conv = cast(nn.Conv2d, layer)
        conv.weight.copy_(kernel)
        cast(Tensor, conv.bias).copy_(bias)
        return
    norm: BatchNorm = layer.main.norm
    norm.reset_parameters()
    other_kernel, other_bias = layer.fused_kernel_bias(without=[MAIN], dtype=torch.float64)
    factor = math.sqrt(1.0 + norm.eps)
    target = ((kernel.to(other_kernel) - other_kernel) * factor, (bias.to(other_bias) - other_bias) * factor)
    set_function(cast(nn.Module, layer.main.conv), *target)


@contextmanager
def untouched_rng(device: torch.device) -> Iterator[None]:
    """Restore torch's global generators of the CPU and of ``device`` on leaving."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _can_grow(conv: nn.Conv2d) -> bool:
    try:
        return conv.weight.requires_grad and DyRepBlock.unsuitable(ConvGeometry.of(conv)) is None
    except InputError:
        return False


def _draw(branch: nn.Module, generator: torch.Generator) -> None:
    for layer in branch.modules():
        if isinstance(layer, nn.Conv2d):
            taps = layer.kernel_size[0] * layer.kernel_size[1]
            std = math.sqrt(2.0 / (taps * layer.out_channels))
            layer.weight.copy_(std * torch.randn(layer.weight.shape, generator=generator, device="cpu"))
