"""The formula of adaptive gradient clipping: the norm of each unit, and the factor on its gradient."""

import torch
from torch import Tensor

__all__ = ["clip_factors", "unitwise_norm"]

_MIN_GRADIENT_NORM = 1e-6


def clip_factors(weight_norm: Tensor, gradient_norm: Tensor, clip_factor: float, eps: float) -> Tensor:
    """Return the factor on the gradient of each unit, at most 1.

    ``min(1, clip_factor * max(|W_i|, eps) / max(|G_i|, 1e-6))`` for unit i (arXiv 2102.06171, section 4).

    Args:
        weight_norm: ``|W_i|``, from :func:`unitwise_norm`.
        gradient_norm: ``|G_i|``, likewise.
        clip_factor: the largest ratio of the two norms.
        eps: the floor of ``|W_i|``.

    >>> clip_factors(torch.tensor([5.0, 0.0]), torch.tensor([2.0, 2.0]), 0.1, 1e-3)
    tensor([2.5000e-01, 5.0000e-05])
    """
    limit = clip_factor * weight_norm.clamp(min=eps)
    return (limit / gradient_norm.clamp(min=_MIN_GRADIENT_NORM)).clamp(max=1.0)


def unitwise_norm(tensor: Tensor, *, transposed_groups: int | None = None) -> Tensor:
    """Return the Euclidean norm of each unit of a parameter or its gradient, in at least float32.

    ========================================  ===========================================================
    shape                                     units
    ========================================  ===========================================================
    one axis longer than 1, or none           the whole tensor: biases, gains such as (C,) or (C, 1, 1, 1)
    linear (out, in), embedding (rows, size)  rows
    conv (out, in / groups, taps...)          filters, one for each output channel
    transposed conv (in, out / groups, ...)   output channels: the inputs of the channel's group, all taps
    ========================================  ===========================================================

    Args:
        tensor: any shape, floating point.
        transposed_groups: the groups of the transposed convolution whose kernel this is; default: not such a kernel.

    Returns:
        Norms that broadcast against ``tensor``, with the same number of axes.

    >>> unitwise_norm(torch.tensor([[3.0, 4.0], [5.0, 12.0]])).flatten()
    tensor([ 5., 13.])
    >>> unitwise_norm(torch.tensor([3.0, 4.0]))
    tensor([5.])
    """
    whole = sum(size != 1 for size in tensor.shape) <= 1
    dims = tuple(range(0 if whole else 1, tensor.ndim))
    inputs = None
    if transposed_groups is not None and not whole:
        inputs = tensor.shape[0] // transposed_groups
        tensor = tensor.reshape(transposed_groups, inputs, *tensor.shape[1:])
        dims = (1, *range(3, tensor.ndim))
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(tensor, dim=dims, keepdim=True, dtype=dtype)
    return norm if inputs is None else norm.repeat_interleave(inputs, dim=1).flatten(0, 1)
