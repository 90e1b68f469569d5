"""Cutting weak branches of a block without changing what the model computes."""

import math
from collections.abc import Sequence

import torch

from backpass.reparam.blocks.block import MAIN, ReparamBlock
from backpass.reparam.blocks.dbb_dyrep import DyRepBlock
from backpass.reparam.dyrep.growth import set_function

__all__ = ["branch_weights", "prune", "weak_branches"]

_CUT_BELOW = 0.1
_CUT_SPREAD = 0.02


def branch_weights(block: ReparamBlock) -> dict[str, float]:
    """Return the mean absolute last gamma of each branch but ``kxk``, relative to that of ``kxk``."""
    unit = block.main.norm.weight.detach().abs().mean().item()
    return {
        name: branch.norm.weight.detach().abs().mean().item() / unit if unit else math.inf
        for name, branch in block.items()
        if name != MAIN
    }


def weak_branches(weights: dict[str, float]) -> list[str]:
    """Return the branches to cut: below the mean and below 0.1, if the weights spread by more than 0.02 at all.

    The spread is the unbiased standard deviation; a single branch has none and stays. So the strongest branch always
    stays: a block that has grown keeps at least one branch other than ``kxk``.

    >>> weak_branches({"1x1": 0.01, "1xk": 0.3, "kx1": 0.09})
    ['1x1', 'kx1']
    >>> weak_branches({"1x1": 0.01, "1xk": 0.03})
    []
    """
    values = torch.tensor(list(weights.values()), dtype=torch.float64, device="cpu")
    if len(values) < 2 or not values.std().item() > _CUT_SPREAD:
        return []
    mean = values.mean().item()
    return [name for name, value in weights.items() if value < mean and value < _CUT_BELOW]


@torch.no_grad()
def prune(block: DyRepBlock, names: Sequence[str]) -> None:
    """Cut the branches ``names`` of ``block``, ``kxk`` not among them; in eval mode it computes the same as before.

    The ``kxk`` normalisation is reset, and its kernel and bias take over what the cut branches added.
    """
    kernel, bias = block.fused_kernel_bias(dtype=torch.float64)
    for name in names:
        del block.branches[name]
    set_function(block, kernel, bias)
