"""Joint histograms of a feature map and itself displaced by a few pixels.

The first stage of SGS: pixel pairs in, integer counts out. Everything that decides *which pairs* are counted
and *in which bin* stands here.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "bin_indices",
    "framed_shape",
    "half_offsets",
    "joint_histograms",
    "number_of_bins",
    "number_of_pairs",
    "pixel_pairs",
    "tap_offsets",
]

_INT16_MAX = 32767
_LANES = 3  # sets of counters that neighbouring pixels take turns with, see _apart
_PIXELS_A_COUNTER = 8  # as many in each channel, and further lanes cost less than they gain
_ELEMENTS_AT_ONCE = 1 << 19  # keeps the float64 and int16 temporaries of one slice in the CPU's cache

Offset = tuple[int, ...]
Zeros = Sequence[tuple[int, int]]
"""How many zeros stand before and after each spatial axis of a map, without being part of it."""


def tap_offsets(kernel_size: Sequence[int]) -> list[Offset]:
    """Return the offset of every tap from the centre tap ``(k - 1) // 2``, in row-major order.

    >>> tap_offsets((1, 3))
    [(0, -1), (0, 0), (0, 1)]
    """
    return list(product(*(range(-((k - 1) // 2), k - (k - 1) // 2) for k in kernel_size)))


def half_offsets(kernel_size: Sequence[int]) -> list[Offset]:
    """Return one offset of each pair ``±offset`` that the kernel's taps need, the centre left out.

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
    """Return the shape of a ``(N, C, *spatial)`` map together with the zeros around it.

    >>> framed_shape((2, 7, 5, 5), [(1, 1), (0, 2)])
    (2, 7, 7, 7)
    """
    framed = [before + size + after for size, (before, after) in zip(shape[2:], zeros, strict=True)]
    return (*shape[:2], *framed)


def number_of_pairs(shape: Sequence[int], displacement: Offset) -> int:
    """Return how many pixel pairs one channel of a ``(N, C, *spatial)`` map holds at ``displacement``.

    >>> number_of_pairs((2, 7, 5, 5), (1, -1))
    32
    """
    extents = (max(size - abs(d), 0) for size, d in zip(shape[2:], displacement, strict=True))
    return shape[0] * math.prod(extents)


def number_of_bins(pairs: int) -> int:
    """Return Sturges' number of bins ``1 + ceil(log2(pairs))`` (SGS's published estimator uses the same).

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


def bin_indices(feature_map: Tensor, low: Tensor, high: Tensor, bins: int) -> Tensor:
    """Return the bin of each pixel, ``floor((x - low) * (bins / (high - low)))``, as int16.

    Bins have equal width between the channel's ``low`` and ``high``; the maximum belongs to the last bin. The
    arithmetic is float64, because 8-bit image values sit on bin edges where float32 rounding moves them.

    Args:
        feature_map: ``(N, C, *spatial)``, floating point.
        low: ``(C,)``, the smallest value of each channel over all batches.
        high: ``(C,)``, the largest.
        bins: number of bins. A constant channel falls into bin 0.

    Returns:
        int16 tensor of the map's shape, values in ``[0, bins)``.
    """
    span = high.double() - low.double()
    per_unit = torch.where(span > 0, bins / span, 0.0)
    shape = (1, -1, *[1] * (feature_map.ndim - 2))
    position = feature_map.double().sub_(low.double().view(shape)).mul_(per_unit.view(shape))
    return position.to(torch.int16).clamp_(0, bins - 1)


def joint_histograms(
    feature_map: Tensor,
    displacements: Sequence[Offset],
    low: Tensor,
    high: Tensor,
    bins: Sequence[int],
    *,
    zeros: Zeros | None = None,
    drop_near_equal: bool = False,
) -> list[Tensor]:
    """Return for each displacement the joint histogram of pixels and their neighbours, channel by channel.

    Counting is integer, hence independent of threads, order and of how a set of maps is split in batches:
    histograms of parts add up to the histogram of the whole, bit for bit.

    Args:
        feature_map: ``(N, C, *spatial)``, floating point.
        displacements: pixel displacements, one entry per spatial axis each.
        low: ``(C,)``, lower edge of the first bin of each channel.
        high: ``(C,)``, upper edge of the last bin.
        bins: number of bins for each displacement (:func:`number_of_bins`).
        zeros: zeros that the convolution adds around the map, counted like pixels of it; default none.
        drop_near_equal: leave out pairs with a zero on either side and pairs whose values share a bin (SGS
            paper, ImageNet recipes: zeros after ReLU would otherwise crowd out the rest).

    Returns:
        One int64 tensor ``(C, B, B)`` per displacement, rows for the pixel, columns for its neighbour.
    """
    if zeros is not None and not _surround(zeros, displacements):
        feature_map, zeros = F.pad(feature_map, [count for sides in reversed(zeros) for count in sides]), None
    channels, device = feature_map.shape[1], feature_map.device
    levels = {b: b + drop_near_equal for b in bins}  # one level more for the exact zeros that are to be dropped
    joints = [torch.zeros(channels, levels[b], levels[b], dtype=torch.int64, device=device) for b in bins]
    singles = {b: torch.zeros(channels, level, dtype=torch.int64, device=device) for b, level in levels.items()}
    cells = max(levels.values(), default=1) ** 2
    pixels = feature_map.numel() // channels
    in_turn = feature_map.stride(1) == 1  # channels_last: neighbours in memory are different channels
    lanes = _LANES if device.type == "cpu" and not in_turn and pixels >= _PIXELS_A_COUNTER * cells else 1
    for part, values in _slices(feature_map, lanes * cells):
        columns = {b: _levels(values, low[part], high[part], b, drop_near_equal) for b in levels}
        rows = {b: _apart(column * levels[b], levels[b] ** 2, lanes) for b, column in columns.items()}
        for joint, displacement, b in zip(joints, displacements, bins, strict=True):
            pairs = pixel_pairs(rows[b], displacement)[0] + pixel_pairs(columns[b], displacement)[1]
            joint[part] += _counts(pairs, joint[part], lanes)
        if zeros is not None:
            for b, single in singles.items():
                single[part] += _counts(_apart(columns[b], levels[b], lanes), single[part], lanes)
    if zeros is not None:
        zero = feature_map.new_zeros(1, channels)
        for joint, displacement, b in zip(joints, displacements, bins, strict=True):
            all_pairs = number_of_pairs(framed_shape(feature_map.shape, zeros), displacement)
            _add_pairs_with_zeros(joint, singles[b], _levels(zero, low, high, b, drop_near_equal)[0], all_pairs)
    return [_without_near_equal(joint) for joint in joints] if drop_near_equal else joints


def _surround(zeros: Zeros, displacements: Sequence[Offset]) -> bool:
    """Return whether every pixel has a neighbour at every displacement, both ways, in the map or in its zeros."""
    return all(
        min(sides) >= abs(d) for displacement in displacements for sides, d in zip(zeros, displacement, strict=True)
    )


def _add_pairs_with_zeros(joint: Tensor, single: Tensor, zero: Tensor, pairs: int) -> None:
    """Add to the pairs within a map, in place, those with the zeros that surround it.

    Every pixel is once the first and once the second of a pair, so what ``joint`` lacks of ``single`` has a zero on the
    other side, and what then is missing of all ``pairs`` of a channel has zeros on both.
    """
    channel = torch.arange(joint.shape[0], device=joint.device)
    firsts, seconds = single - joint.sum(2), single - joint.sum(1)
    zero = zero.long()
    joint[channel, :, zero] += firsts
    joint[channel, zero, :] += seconds
    joint[channel, zero, zero] += pairs - joint.sum((1, 2))


def _levels(feature_map: Tensor, low: Tensor, high: Tensor, bins: int, drop_near_equal: bool) -> Tensor:
    """Return bin indices; where near equal pairs are to be dropped, zeros have the further index ``bins``."""
    indices = bin_indices(feature_map, low, high, bins)
    return indices.masked_fill_(feature_map == 0, bins) if drop_near_equal else indices


def _apart(indices: Tensor, cells: int, lanes: int) -> Tensor:
    """Return indices below ``cells`` with an own block of so many for each channel in each lane, in int16.

    Pixels take turns with the lanes. A processor that adds to one counter twice in a row must wait for the first sum,
    and the zeros that ReLU leaves side by side all add to the same; with lanes it counts twice as fast.
    """
    channels, spatial, device = indices.shape[1], indices.shape[2:], indices.device
    channel = torch.arange(channels, dtype=torch.int16, device=device).view(1, -1, *[1] * len(spatial))
    lane = torch.arange(math.prod(spatial), device=device).view(1, 1, *spatial) % lanes
    return indices + (channel + lane.short() * channels) * cells


def _counts(cells: Tensor, like: Tensor, lanes: int) -> Tensor:
    """Return how often each cell occurs in all lanes together, in the shape of ``like``."""
    in_memory_order = cells.movedim(1, -1) if cells.stride(1) == 1 else cells
    counts = torch.bincount(in_memory_order.flatten(), minlength=lanes * like.numel())
    return counts.view(lanes, *like.shape).sum(0)


def _without_near_equal(joint: Tensor) -> Tensor:
    """Drop the last level, which holds the exact zeros, and empty the diagonal."""
    joint = joint[:, :-1, :-1].contiguous()
    joint.diagonal(dim1=1, dim2=2).zero_()
    return joint


def _slices(feature_map: Tensor, cells: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of the map small enough for int16 cell numbers and, on the CPU, for the cache."""
    batch, channels = feature_map.shape[:2]
    channel_step = max(min(_INT16_MAX // cells, channels), 1)
    batch_step = max(batch, 1)
    if feature_map.device.type == "cpu":
        pixels = max(math.prod(feature_map.shape[2:]), 1)
        channel_step = max(min(channel_step, _ELEMENTS_AT_ONCE // pixels), 1)
        batch_step = max(_ELEMENTS_AT_ONCE // (pixels * channel_step), 1)
    for c in range(0, channels, channel_step):
        for n in range(0, batch, batch_step):
            yield slice(c, c + channel_step), feature_map[n : n + batch_step, c : c + channel_step]
