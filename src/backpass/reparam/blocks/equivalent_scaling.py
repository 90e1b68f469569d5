"""The spatial gradient scaling that a branched block amounts to (SGS paper, Lemma 1)."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from backpass.errors import InputError
from backpass.reparam.blocks.algebra import embed_kernel
from backpass.reparam.blocks.batch_norm import scale_of
from backpass.reparam.blocks.block import Branch, ReparamBlock
from backpass.reparam.blocks.branches import ConvBranch, IdentityBranch

__all__ = ["branch_scales", "equivalent_scaling"]


def equivalent_scaling(
    block: ReparamBlock,
    scales: Mapping[str, float | Tensor] | None = None,
    *,
    optimizer: Literal["sgd", "adam"] = "sgd",
) -> Tensor:
    """Return the factor on the steps of the fused kernel that has the effect of training the block's branches.

    Take parallel convolutions of one input with kernels ``w_n``, constant factors ``s_n`` and masks ``M_n`` (one
    where the branch has a tap), so that the fused kernel is ``W = sum_n s_n * M_n * w_n``.

    ``optimizer="sgd"``: a step on every ``w_n`` moves ``W`` by ``-lr * G * dL/dW`` with ``G = sum_n s_n**2 * M_n``,
    the factor on the gradient of ``W``. It is exact with momentum, Nesterov momentum and dampening, and with weight
    decay if that is added after scaling, as the optimizer does; a penalty inside the loss would be scaled too. With
    ``s_n = 1`` this is the SGS paper's Lemma 1; with the ``s_n`` of normalisation layers, it is the gradient
    multiplier of RepOptimizers (Ding et al., ICLR 2023).

    ``optimizer="adam"``: Adam divides by the size of the gradient, so that ``s_n`` enters each branch's step by its
    sign alone, and a factor on the gradient of ``W`` would cancel. ``G = sum_n abs(s_n) * M_n`` is the factor on the
    update instead. It is exact up to Adam's epsilon, which acts on branch n as ``eps / abs(s_n)``, and with AdamW's
    decay if that is left unscaled (``W_new = (1 - lr * decay) * W + G * update``). With a decay that Adam adds to the
    gradient no such factor exists.

    Either is exact for branches without normalisation or with frozen ones in eval mode; batch statistics and the
    training of gamma are not in it. An identity branch has no kernel: it adds nothing to ``G``, and is no part of the
    ``W`` that decays.

    Args:
        block: a block whose branches are single convolutions or the identity (``acb``, ``repvgg``).
        scales: the constant factor of each branch by name, numbers or tensors of shape ``(C_out,)``; branches left
            out have factor one. :func:`branch_scales` reads them from the normalisations. Default: all one.
        optimizer: what trains the branches; ``"sgd"`` for those that are linear in the gradient, ``"adam"`` for Adam
            and AdamW.

    Returns:
        Shape ``(k_h, k_w)``, or ``(C_out, 1, k_h, k_w)`` where a factor is a tensor; float64 on the CPU. Its mean
        is not one: divide by it to keep the learning rate.

    Raises:
        InputError: a branch chains two layers or holds a block, so that no elementwise factor describes it; a name in
            ``scales`` is no branch; a factor has another shape; or ``optimizer`` is neither of the two.

    >>> from torch import nn
    >>> from backpass.reparam import ACBlock
    >>> equivalent_scaling(ACBlock(nn.Conv2d(8, 8, 3, padding=1))).tolist()
    [[1.0, 2.0, 1.0], [2.0, 3.0, 2.0], [1.0, 2.0, 1.0]]
    """
    if optimizer not in ("sgd", "adam"):
        raise InputError(f'expected optimizer to be "sgd" or "adam", got {optimizer!r}; choose one of them')
    power = 2 if optimizer == "sgd" else 1
    scales = scales or {}
    if unknown := sorted(scales.keys() - set(block.branches)):
        raise InputError(
            f"expected scales of the branches {', '.join(block.branches)}, got {', '.join(unknown)}; "
            "leave the others out"
        )
    others = [n for n, branch in block.items() if not _is_single(branch)]
    if others:
        raise InputError(
            f"expected branches of one convolution each, got a {block.name} block whose branches {', '.join(others)} "
            "chain two layers or hold a block; Lemma 1 covers parallel convolutions alone: use acb, repvgg, or "
            "dbb_dyrep with branches from 1x1, kxk, 1xk, kx1, id, in which no convolution has grown"
        )
    total = torch.zeros(block.geometry.kernel_size, dtype=torch.float64, device="cpu")
    for name, branch in block.items():
        if isinstance(branch, ConvBranch):
            support = torch.ones(1, 1, *branch.conv.kernel_size, dtype=torch.float64, device="cpu")
            mask = embed_kernel(support, block.geometry.kernel_size)[0, 0]
            scale = _factor(scales.get(name, 1.0), name, block.geometry.out_channels)
            total = total + scale.abs() ** power * mask
    return total


def branch_scales(block: ReparamBlock) -> dict[str, Tensor]:
    """Return ``gamma / sqrt(var + eps)`` of each branch's last normalisation, shape ``(C_out,)``, detached.

    These are the factors of the branches in eval mode, for :func:`equivalent_scaling`.
    """
    return {name: scale_of(branch.norm) for name, branch in block.items()}


def _is_single(branch: Branch) -> bool:
    if isinstance(branch, ConvBranch):
        return not isinstance(branch.conv, ReparamBlock)  # DyRep grows a convolution of a block into a block
    return isinstance(branch, IdentityBranch)


def _factor(scale: float | Tensor, name: str, channels: int) -> Tensor:
    """Return a branch's factor in float64, one number or one for each output channel of a kernel."""
    if not isinstance(scale, Tensor):
        return torch.tensor(scale, dtype=torch.float64, device="cpu")
    if scale.shape != (channels,):
        raise InputError(
            f"expected the factor of branch {name} to be a number or of shape ({channels},), got shape "
            f"{tuple(scale.shape)}; "
            "give a factor of such a shape"
        )
    return scale.detach().cpu().double().view(-1, 1, 1, 1)
