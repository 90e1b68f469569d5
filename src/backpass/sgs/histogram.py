"""What is counted: which pixel pairs of a feature map, and in which bin each pixel falls.

How they are counted is the subject of ``fast_counting``.
"""

import math
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

__all__ = [
    "Offset",
    "Zeros",
    "bin_indices",
    "canonical",
    "framed_shape",
    "half_offsets",
    "number_of_bins",
    "number_of_pairs",
    "pixel_pairs",
    "tap_offsets",
]

Offset = tuple[int, ...]
Zeros = Sequence[tuple[int, int]]
"""Number of zeros that a convolution adds before and after each spatial axis of its input."""


def tap_offsets(kernel_size: Sequence[int]) -> list[Offset]:
    """Return the offset of every tap from the centre tap ``(k - 1) // 2``, in row-major order.

    >>> tap_offsets((1, 3))
    [(0, -1), (0, 0), (0, 1)]
    """
    return list(product(*(range(-((k - 1) // 2), k - (k - 1) // 2) for k in kernel_size)))


def half_offsets(kernel_size: Sequence[int]) -> list[Offset]:
    """Return one offset of each pair ``±offset`` that the kernel's taps need, without the centre.

    Dependence is symmetric, ``S(-d) = S(d)``, so half of the displacements are measured.

    >>> half_offsets((3, 3))
    [(0, 1), (1, -1), (1, 0), (1, 1)]
    """
    return sorted({canonical(offset) for offset in tap_offsets(kernel_size) if any(offset)})


def canonical(offset: Offset) -> Offset:
    """Return ``offset`` or its negative, whichever has a positive first non-zero entry.

    >>> canonical((-1, 1))
    (1, -1)
    """
    first = next((o for o in offset if o != 0), 0)
    return tuple(-o for o in offset) if first < 0 else offset


def framed_shape(shape: Sequence[int], zeros: Zeros) -> tuple[int, ...]:
    """Return the shape of a ``(N, C, *spatial)`` map with the zeros around it.

    >>> framed_shape((2, 7, 5, 5), [(1, 1), (0, 2)])
    (2, 7, 7, 7)
    """
    framed = [before + size + after for size, (before, after) in zip(shape[2:], zeros, strict=True)]
    return (*shape[:2], *framed)


def number_of_pairs(shape: Sequence[int], displacement: Offset) -> int:
    """Return the number of pixel pairs at ``displacement`` in one channel of a ``(N, C, *spatial)`` map.

    >>> number_of_pairs((2, 7, 5, 5), (1, -1))
    32
    """
    extents = (max(size - abs(d), 0) for size, d in zip(shape[2:], displacement, strict=True))
    return shape[0] * math.prod(extents)


def number_of_bins(pairs: int) -> int:
    """Return Sturges' number of bins ``1 + ceil(log2(pairs))``, as in the published estimator of SGS.

    >>> [number_of_bins(n) for n in (1, 2, 1024, 1025)]
    [1, 2, 11, 12]
    """
    return 1 + (pairs - 1).bit_length()


def pixel_pairs(feature_map: Tensor, displacement: Offset) -> tuple[Tensor, Tensor]:
    """Return two views of a ``(N, C, *spatial)`` map: every pixel that has a neighbour, and that neighbour.

    Entry ``i`` of the second view lies at ``displacement`` from entry ``i`` of the first.
    """
    first: list[slice] = [slice(None), slice(None)]
    second = list(first)
    for size, d in zip(feature_map.shape[2:], displacement, strict=True):
        first.append(slice(max(-d, 0), max(size - max(d, 0), 0)))
        second.append(slice(max(d, 0), max(size - max(-d, 0), 0)))
    return feature_map[tuple(first)], feature_map[tuple(second)]


def bin_indices(feature_map: Tensor, low: Tensor, high: Tensor, bins: int | Tensor) -> Tensor:
    """Return the bin of each pixel, ``floor((x - low) * (bins / (high - low)))``, as int16.

    Bins have equal width between the channel's ``low`` and ``high``; the maximum belongs to the last bin. Computed in
    float64, because 8-bit image values lie on bin edges, where float32 rounding moves them.

    Args:
        feature_map: ``(N, C, *spatial)``, floating point.
        low: ``(C,)``, lower edge of the first bin of each channel.
        high: ``(C,)``, upper edge of the last bin.
        bins: number of bins, one for all channels or ``(C,)``. A constant channel falls into bin 0.

    Returns:
        int16 tensor of the map's shape, values in ``[0, bins)``, also for pixels outside ``[low, high]``.
    """
    span = high.double() - low.double()
    per_unit = torch.where(span > 0, bins / span, 0.0)
    shape = (1, -1, *[1] * (feature_map.ndim - 2))
    position = feature_map.double().sub_(low.double().view(shape)).mul_(per_unit.view(shape)).to(torch.int16)
    if isinstance(bins, int):
        return position.clamp_(0, bins - 1)
    last = (bins - 1).to(torch.int16).view(shape)
    return position.clamp_(torch.zeros_like(last), last)
