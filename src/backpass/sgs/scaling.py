"""From dependence S to the scaling G of a kernel's gradient: functions of tensors of the kernel's spatial shape."""

from collections.abc import Sequence

import torch
from torch import Tensor

from backpass._internal.settings import POSITIVE, check_number
from backpass.errors import InputError

__all__ = [
    "alpha_beta_scaling",
    "check_k",
    "k_transform",
    "laid_out",
    "normalize",
    "scaling_from_branches",
    "scaling_from_dependence",
]

_SMALLEST = 1e-6  # keeps every tap learning; the paper asks for strictly positive scalings


def check_k(k: float) -> float:
    """Return ``k`` as a float, or raise an InputError if it is not a finite number above 0."""
    check_number("k", k, float, POSITIVE)
    return float(k)


def k_transform(s: Tensor, k: float) -> Tensor:
    """Return ``G = k * S / ((k - 1) * S + 1)``, where ``k`` sets the strength (SGS paper, section 3.3).

    Maps 0 to 0 and 1 to 1. ``k = 1`` is the identity; a larger ``k`` raises small dependences and flattens the scaling.
    Negative ``s`` (autocorrelation only) counts as 0.

    Args:
        s: dependence, any shape, at most 1; NaN stays NaN.
        k: finite, above 0; 5 in the paper.

    Returns:
        Tensor of the shape and dtype of ``s``, in ``[0, 1]``.

    Raises:
        InputError: ``k`` is not a finite number above 0.

    >>> k_transform(torch.tensor([0.0, 0.2, 1.0]), k=5)
    tensor([0.0000, 0.5556, 1.0000])
    """
    check_k(k)
    s = s.clamp(min=0)
    return k * s / ((k - 1) * s + 1)


def normalize(g: Tensor) -> Tensor:
    """Return ``g`` divided by its mean over taps, strictly positive: the mean scaling is 1 (SGS paper, section 3.1).

    Args:
        g: non-negative scaling of the kernel's spatial shape.

    Raises:
        InputError: an entry is negative, not finite, or all are zero.

    >>> normalize(torch.tensor([1.0, 2.0, 1.0]))
    tensor([0.7500, 1.5000, 0.7500])
    """
    if not bool(g.isfinite().all()) or bool((g < 0).any()) or not bool((g > 0).any()):
        raise InputError(
            f"expected a finite, non-negative scaling that is not all zero, got {g.tolist()}; pass another scaling"
        )
    positive = g.clamp(min=_SMALLEST * float(g.max()))
    return positive / positive.mean()


def scaling_from_dependence(s: Tensor, k: float, *, undefined_as_zero: bool = False) -> Tensor:
    """Return the mean-1 scaling of a layer from the dependence of its channels.

    The k transform of each channel, then the mean over channels, then division by the mean over taps.

    Args:
        s: ``(C, *kernel_size)``, NaN where undefined.
        k: see :func:`k_transform`.
        undefined_as_zero: count an undefined S as 0 in the mean over channels, as the published estimator does where
            it removes near-equal pairs. Default: the mean is over the channels where S is defined.

    Returns:
        float32 tensor of shape ``kernel_size``. All ones where a tap is defined in no channel, or, with
        ``undefined_as_zero``, where no tap but the centre is defined in any: the layer's input holds no signal.
    """
    g = k_transform(s.double(), k)
    undefined_taps = g.isnan().all(0)
    if undefined_as_zero and int(undefined_taps.sum()) < undefined_taps.numel() - 1:
        return normalize(g.nan_to_num(0.0).mean(0)).float()
    if bool(undefined_taps.any()):
        return torch.ones_like(undefined_taps, dtype=torch.float32)
    return normalize(g.nanmean(0)).float()


def scaling_from_branches(branches: Sequence[str], kernel_size: Sequence[int] | None = None) -> Tensor:
    """Return the scaling that is equivalent to training these parallel branches and adding them up, not normalised.

    Lemma 1 (SGS paper, appendix A.8): with the branches centred in one kernel and no normalisation between them,
    gradient descent on the branches equals gradient descent on their sum whose gradient is multiplied, tap by tap, by
    the number of branches that cover the tap.

    Args:
        branches: kernel sizes such as ``"3x3"``, ``"1x3"``, ``"3"`` (1-D) or ``"3x3x3"``.
        kernel_size: the fused kernel; default: the largest extent on each axis.

    Returns:
        float32 tensor of shape ``kernel_size``; :func:`normalize` gives the mean-1 form.

    Raises:
        InputError: no branch, a malformed size, or a branch that cannot be centred in the kernel.

    >>> scaling_from_branches(["3x3", "1x3", "3x1"])
    tensor([[1., 2., 1.],
            [2., 3., 2.],
            [1., 2., 1.]])
    """
    sizes = [_parse_size(branch) for branch in branches]
    if not sizes or len({len(size) for size in sizes}) != 1:
        raise InputError(
            f"expected one or more branches with the same number of axes, such as ['3x3', '1x3'], got {branches!r}; "
            "correct the branches"
        )
    kernel = tuple(kernel_size) if kernel_size is not None else tuple(map(max, zip(*sizes, strict=True)))
    scaling = torch.zeros(kernel)
    for branch, size in zip(branches, sizes, strict=True):
        if len(size) != len(kernel) or any(s > k or (k - s) % 2 for s, k in zip(size, kernel, strict=True)):
            raise InputError(
                f"branch {branch!r} cannot be centred in a kernel of size {kernel}; "
                "give kernel sizes that differ by an even number of taps"
            )
        scaling[tuple(slice((k - s) // 2, (k + s) // 2) for s, k in zip(size, kernel, strict=True))] += 1
    return scaling


def alpha_beta_scaling(alpha: float, beta: float) -> Tensor:
    """Return the mean-1 scaling of a 3x3 kernel with centre 1, edges ``1 / alpha`` and corners ``1 / beta``.

    All multiplied by ``9 / (1 + 4 / alpha + 4 / beta)``, so that the mean is 1 (SGS paper, Figure 7). The paper
    searches this family by hand; ``alpha = beta = 1`` is plain training, and larger values weaken edges and corners.

    Returns:
        float32 tensor of shape ``(3, 3)``.

    Raises:
        InputError: a parameter is not a finite number above 0.

    >>> alpha_beta_scaling(5, 10)
    tensor([[0.4091, 0.8182, 0.4091],
            [0.8182, 4.0909, 0.8182],
            [0.4091, 0.8182, 0.4091]])
    """
    check_number("alpha", alpha, float, POSITIVE)
    check_number("beta", beta, float, POSITIVE)
    edge, corner = 1 / alpha, 1 / beta
    factor = 9 / (1 + 4 * edge + 4 * corner)
    return factor * torch.tensor([[corner, edge, corner], [edge, 1.0, edge], [corner, edge, corner]])


def laid_out(scaling: Tensor, like: Tensor) -> Tensor:
    """Return the scaling in the form in which it multiplies a tensor ``(C_out, C_in, *kernel)`` fastest.

    That is ``(1, C_in, *kernel)``, contiguous: with rows that long the product runs in vector instructions.
    """
    rows = scaling.to(like.device).expand(1, like.shape[1], *scaling.shape)
    return rows.clone(memory_format=torch.contiguous_format)


def _parse_size(branch: str) -> tuple[int, ...]:
    parts = branch.split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"expected a branch's kernel size such as '3x3' or '1x3', got {branch!r}; write it so")
    return tuple(map(int, parts))
