"""The batch normalisations that a block can take over, their scale, and folding one into a convolution."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from backpass.reparam.blocks.algebra import KernelBias, fold_batch_norm

__all__ = ["BatchNorm", "fold", "norms_like", "scale_of", "unsuitable_norm", "wide"]

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


def norms_like(norm: BatchNorm | None, device: torch.device, dtype: torch.dtype) -> Callable[[int], BatchNorm]:
    """Return a function that makes a normalisation for a number of channels, gamma 1 and beta 0.

    Args:
        norm: the normalisation to imitate: type, epsilon, momentum, device, dtype and, of a synchronised one, process
            group. ``None``: ``nn.BatchNorm2d`` with PyTorch's defaults.
        device: device of the parameters if ``norm`` is ``None``.
        dtype: likewise.
    """
    if norm is None:
        return lambda channels: nn.BatchNorm2d(channels, device=device, dtype=dtype)
    arguments: dict[str, Any] = {"eps": norm.eps, "momentum": norm.momentum}
    arguments |= {"device": norm.weight.device, "dtype": norm.weight.dtype}
    if isinstance(norm, nn.SyncBatchNorm):
        arguments["process_group"] = norm.process_group
    kind = type(norm)
    return lambda channels: kind(channels, **arguments)


def fold(norm: BatchNorm, kernel: Tensor, bias: Tensor | None = None) -> KernelBias:
    """Return ``kernel`` and ``bias`` with ``norm`` and its running statistics folded in (T1), in float64."""
    mean, var, gamma, beta = (
        wide(cast(Tensor, tensor)) for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    bias = torch.zeros_like(mean) if bias is None else bias
    return fold_batch_norm(kernel, bias, mean, var, gamma, beta, norm.eps)


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
