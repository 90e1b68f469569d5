"""The batch normalisations that a block can take over, their scale, and folding one into a convolution."""

from typing import cast

import torch
from torch import Tensor, nn

from backpass.reparam.blocks.algebra import KernelBias

__all__ = ["BatchNorm", "fold", "scale_of", "unsuitable_norm", "wide"]

BatchNorm = nn.BatchNorm2d | nn.SyncBatchNorm


def unsuitable_norm(norm: nn.Module) -> str | None:
    """Return why no block can take over ``norm``; ``None`` if one can."""
    if type(norm) not in (nn.BatchNorm2d, nn.SyncBatchNorm):
        return f"it is a {type(norm).__name__}, which may do more than batch normalisation"
    if not norm.affine:
        return "it has no gamma and beta (affine=False)"
    if not norm.track_running_stats:
        return "it keeps no running statistics, so it cannot be folded into a convolution"
    return None


def fold(norm: BatchNorm, kernel: Tensor, bias: Tensor | None = None) -> KernelBias:
    """Return the convolution that equals one followed by ``norm`` in eval mode (T1), in float64.

    With ``s = gamma / sqrt(var + eps)``: kernel ``W * s`` (per output channel), bias ``beta + (bias - mean) * s``.

    Args:
        norm: the normalisation, with its running statistics.
        kernel: float64, shape ``(C_out, C_in/groups, k_h, k_w)``.
        bias: float64, the convolution's bias, shape ``(C_out,)``; default: it has none.

    >>> norm = nn.BatchNorm2d(1, eps=0.0)
    >>> norm.running_mean.fill_(3.0), norm.running_var.fill_(4.0), norm.bias.data.fill_(5.0)
    (tensor([3.]), tensor([4.]), tensor([5.]))
    >>> kernel, bias = fold(norm, torch.full((1, 1, 1, 1), 4.0).double(), torch.ones(1).double())
    >>> kernel.item(), bias.item()
    (2.0, 4.0)
    """
    mean, var, gamma, beta = (
        wide(cast(Tensor, tensor)) for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    scale = gamma / torch.sqrt(var + norm.eps)
    centred = -mean if bias is None else bias - mean
    return kernel * scale[:, None, None, None], beta + centred * scale


def scale_of(norm: BatchNorm) -> Tensor:
    """Return ``gamma / sqrt(var + eps)``, the factor of each channel in eval mode: shape ``(C,)``, detached.

    >>> norm = nn.BatchNorm2d(1, eps=0.0)
    >>> norm.running_var.fill_(4.0)
    tensor([4.])
    >>> scale_of(norm)
    tensor([0.5000])
    """
    return (norm.weight / torch.sqrt(cast(Tensor, norm.running_var) + norm.eps)).detach()


def wide(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in float64, on the CPU if its device has no float64 (MPS)."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
