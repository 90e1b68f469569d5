"""Growing a convolution into branches, and cutting branches, without changing what the model computes.

The operations of Huang et al., "DyRep", CVPR 2022, as its published code does them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from backpass.errors import InputError
from backpass.reparam.block import MAIN, ReparamBlock
from backpass.reparam.dbb import DYREP_BRANCHES, DyRepBlock
from backpass.reparam.geometry import BatchNorm, ConvGeometry
from backpass.reparam.obstacles import obstacles
from backpass.reparam.surgery import replace

__all__ = [
    "METRICS",
    "branch_weights",
    "conv_score",
    "eligible_convs",
    "grow",
    "prune",
    "untouched_rng",
    "weak_branches",
]

METRICS = ("synflow", "snip", "grad_norm", "random")
"""What a convolution's claim to grow can be measured by."""

MAX_DEPTH = 2
"""Blocks nest at most this deep."""

_NEW_GAMMA = 0.01
_CUT_BELOW = 0.1
_CUT_SPREAD = 0.02


def conv_score(weight: Tensor, gradient: Tensor, metric: str) -> Tensor:
    """Return the claim of a convolution to grow, a scalar in float32 or wider.

    ``synflow``: ``sum(g * w)``, signed. ``snip``: ``sum(abs(g * w))``. ``grad_norm``: the L2 norm of ``g``.

    A convolution that feeds a normalisation in train mode leaves the loss unchanged when its kernel is scaled,
    so that its ``synflow`` is exactly zero but for the normalisation's epsilon (``sum_c eps / sigma_c**2 * gamma_c *
    dL/dgamma_c``) and, in float32, for rounding of about the same size: it favours small variance before the
    normalisation, changes with epsilon, and in 16-bit arithmetic is noise. ``snip`` does not vanish.

    Args:
        weight: the kernel.
        gradient: its gradient, unscaled if a loss scale is used; the shape of ``weight``.
        metric: ``"synflow"``, ``"snip"`` or ``"grad_norm"``.

    >>> w, g = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0])
    >>> [conv_score(w, g, metric).item() for metric in ("synflow", "snip", "grad_norm")]
    [-5.0, 11.0, 5.0]

    Raises:
        InputError: another metric.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    weight, gradient = weight.detach().to(dtype), gradient.detach().to(dtype)
    match metric:
        case "synflow":
            return (gradient * weight).sum()
        case "snip":
            return (gradient * weight).abs().sum()
        case "grad_norm":
            return gradient.square().sum().sqrt()
    raise InputError(f"metric must be synflow, snip or grad_norm to be computed from a gradient, got {metric!r}.")


def eligible_convs(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the convolutions that may grow, by qualified name.

    Plain ``nn.Conv2d`` with a square odd kernel above 1 and zero padding, inside at most one block: the 7x7 stem,
    depthwise convolutions and the k x k convolutions of a block among them. Convolutions with hooks or with shared
    parameters may not (:func:`~backpass.reparam.obstacles.obstacles`).
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
    recalibrate: Callable[[ReparamBlock], None],
) -> DyRepBlock:
    """Replace the convolution ``name`` of ``model`` by a block of all branches that fit it, and return the block.

    1. Every new kernel is drawn from N(0, sqrt(2 / (k_h * k_w * C_out))); the last gamma of a new branch is 0.01.
    2. The ``kxk`` branch holds the old kernel while ``recalibrate`` sets the statistics of the block's
       normalisations; then its own are reset (mean 0, variance 1).
    3. The ``kxk`` kernel and bias become the old ones minus what the other branches amount to, times
       ``sqrt(1 + eps)``.

    In eval mode the model computes the same as before. In train mode the branches normalise with the statistics of
    their batch, and only a normalisation that follows hides the difference. (The published code leaves out the
    factor of step 3 and so is off by ``eps / 2``, relative.)

    Args:
        model: contains the convolution; the old bias parameter is reused, the ``kxk`` kernel is a new one.
        name: its qualified name.
        generator: a CPU generator; torch's global ones are left as they are.
        recalibrate: called with the block in its place.
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
    recalibrate(block)
    _set_function(block, kernel, bias)
    return block


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
    stays: a block that has grown keeps at least one branch beside ``kxk``.

    >>> weak_branches({"1x1": 0.01, "1xk": 0.3, "kx1": 0.09})
    ['1x1', 'kx1']
    >>> weak_branches({"1x1": 0.01, "1xk": 0.03})
    []
    """
    values = torch.tensor(list(weights.values()), dtype=torch.float64)
    if len(values) < 2 or not values.std().item() > _CUT_SPREAD:
        return []
    mean = values.mean().item()
    return [name for name, value in weights.items() if value < mean and value < _CUT_BELOW]


@torch.no_grad()
def prune(model: nn.Module, block: DyRepBlock, names: Sequence[str]) -> nn.Conv2d | None:
    """Cut the branches ``names`` of ``block`` in ``model``; in eval mode the model computes the same as before.

    The ``kxk`` normalisation is reset and its kernel and bias take over what the others no longer do.

    Returns:
        The plain convolution (with bias) that replaces the block if only ``kxk`` is left, else ``None``.
    """
    kernel, bias = block.fused_kernel_bias(dtype=torch.float64)
    if set(block.branches) - set(names) == {MAIN}:
        conv = block.to_conv()
        replace(model, block, conv)
        return conv
    for name in names:
        del block.branches[name]
    _set_function(block, kernel, bias)
    return None


@contextmanager
def untouched_rng(device: torch.device) -> Iterator[None]:
    """Restore torch's global generators of the CPU and of ``device`` on leaving."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _can_grow(conv: nn.Conv2d) -> bool:
    try:
        return DyRepBlock.unsuitable(ConvGeometry.of(conv)) is None
    except InputError:
        return False


def _draw(branch: nn.Module, generator: torch.Generator) -> None:
    for layer in _convs(branch):
        taps = layer.kernel_size[0] * layer.kernel_size[1]
        std = math.sqrt(2.0 / (taps * layer.out_channels))
        layer.weight.copy_(std * torch.randn(layer.weight.shape, generator=generator))


def _convs(module: nn.Module) -> Iterator[nn.Conv2d]:
    return (layer for layer in module.modules() if isinstance(layer, nn.Conv2d))


def _set_function(layer: nn.Module, kernel: Tensor, bias: Tensor) -> None:
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
    _set_function(cast(nn.Module, layer.main.conv), *target)
