"""How much a convolution would gain from growing: DyRep's score and its alternatives."""

import torch
from torch import Tensor

from backpass.errors import InputError

__all__ = ["METRICS", "conv_score"]

METRICS = ("synflow", "snip", "grad_norm", "random")
"""The scores by which DyRep can choose the convolution that grows."""


def conv_score(weight: Tensor, gradient: Tensor, metric: str) -> Tensor:
    """Return the score of a convolution, a scalar in float32 or wider; the one with the largest score grows.

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
    raise InputError(
        f"expected a metric computed from a gradient (synflow, snip or grad_norm), got {metric!r}; choose one of them"
    )
