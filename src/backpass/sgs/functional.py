"""The first stages of SGS as functions of one tensor: a feature map in, its dependence S at each kernel tap out."""

from collections.abc import Sequence

from torch import Tensor

from backpass.errors import InputError
from backpass.sgs.dependence import Autocorrelation, Dependence, MutualInformation
from backpass.sgs.near_equal import MutualInformationWithoutNearEqual

__all__ = ["autocorrelation", "mutual_information"]


def mutual_information(
    feature_map: Tensor,
    kernel_size: Sequence[int],
    *,
    padding: Sequence[int] | int = 0,
    dilation: Sequence[int] | int = 1,
    drop_near_equal: bool = False,
) -> Tensor:
    """Return the normalised mutual information of pixels and their neighbours at each tap of a kernel.

    For the tap at offset ``o`` from the centre ``(k - 1) // 2``, pixels P and their neighbours Q at ``o * dilation``
    are counted in ``B = 1 + ceil(log2 n)`` bins of equal width between the channel's minimum and maximum, ``n`` the
    number of pairs, and ``S = (H(P) + H(Q) - H(P, Q)) / H(P, Q)``. A ratio, so it has no unit.

    Args:
        feature_map: ``(N, C, *spatial)``, any floating dtype (measured in float32), finite.
        kernel_size: taps on each spatial axis.
        padding: zeros added on both sides of each axis before measuring, as the convolution would.
        dilation: pixels between taps.
        drop_near_equal: remove pairs with a zero on either side, then, with bins and ranges of the pairs that are left,
            pairs that share a bin (ImageNet recipes).

    Returns:
        float64 ``(C, *kernel_size)``, 1 at the centre, NaN where S is undefined (a constant channel, no pair left).

    Raises:
        InputError: the map is empty, not finite, not floating, or it, the padding or the dilation does not fit the
            kernel's number of axes; a size or dilation below 1, or a padding below 0.

    Source: SGS paper, section 3.3. Equal to the published estimator where that one is defined, dilation is 1, and the
    zeros reach as far as the taps (``padding >= k // 2``), as in the published recipes. With less padding the published
    bins span each displaced crop, and here the whole map.

    >>> import torch
    >>> ramp = torch.arange(6.0).expand(1, 1, 6, 6)
    >>> mutual_information(ramp, (1, 3)).round(decimals=3)
    tensor([[[1., 1., 1.]]], dtype=torch.float64)
    """
    measure = MutualInformationWithoutNearEqual if drop_near_equal else MutualInformation
    return _measure(measure, feature_map, kernel_size, padding, dilation)


def autocorrelation(
    feature_map: Tensor,
    kernel_size: Sequence[int],
    *,
    padding: Sequence[int] | int = 0,
    dilation: Sequence[int] | int = 1,
) -> Tensor:
    """Return Pearson's correlation of pixels and their neighbours at each tap of a kernel.

    Same pairs, arguments, shapes and errors as :func:`mutual_information`.

    Returns:
        float64 ``(C, *kernel_size)`` in ``[-1, 1]``, 1 at the centre, NaN where a side of the pairs is constant.

    >>> import torch
    >>> stripes = torch.tensor([0.0, 1.0]).repeat(4).expand(1, 1, 8, 8)
    >>> autocorrelation(stripes, (1, 3)).round(decimals=3)
    tensor([[[-1.,  1., -1.]]], dtype=torch.float64)
    """
    return _measure(Autocorrelation, feature_map, kernel_size, padding, dilation)


def _measure(
    measure: type[Dependence],
    feature_map: Tensor,
    kernel_size: Sequence[int],
    padding: Sequence[int] | int,
    dilation: Sequence[int] | int,
) -> Tensor:
    kernel_size = _checked("kernel_size", kernel_size, 1)
    axes = len(kernel_size)
    if feature_map.ndim != axes + 2 or not feature_map.is_floating_point() or feature_map.numel() == 0:
        raise InputError(
            f"expected a non-empty floating point map (N, C) with {axes} spatial axes for kernel size "
            f"{tuple(kernel_size)}, got shape {tuple(feature_map.shape)} of {feature_map.dtype}; "
            "pass a map of this form"
        )
    pads, steps = _per_axis("padding", padding, axes, 0), _per_axis("dilation", dilation, axes, 1)
    zeros = [(pad, pad) for pad in pads]
    values = feature_map.detach().float()
    dependence = measure(kernel_size, values.shape[1], device=values.device)
    values = values.to(dependence.low.device)
    dependence.observe(values, steps, zeros)
    if not dependence.finite:
        raise InputError("expected finite values in the feature map, got NaN or infinity; remove them before measuring")
    dependence.start_counting()
    dependence.count(values, steps, zeros)
    return dependence.result()


def _checked(name: str, value: Sequence[int], least: int) -> list[int]:
    numbers = list(value) if isinstance(value, Sequence) else []
    if not numbers or any(isinstance(n, bool) or not isinstance(n, int) or n < least for n in numbers):
        raise InputError(
            f"expected {name} to be integers >= {least}, one for each spatial axis, got {value!r}; give such numbers"
        )
    return numbers


def _per_axis(name: str, value: Sequence[int] | int, axes: int, least: int) -> list[int]:
    values = _checked(name, [value] * axes if isinstance(value, int) else value, least)
    if len(values) != axes:
        raise InputError(
            f"expected {name} to be one number or {axes}, one for each spatial axis, got {value!r}; "
            "give as many numbers"
        )
    return values
