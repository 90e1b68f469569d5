"""How pixel pairs are counted fast, on the CPU above all.

Nothing here decides what is counted (``histogram`` does). Four measures, none of which changes a count:

- Cells of the joint histogram are numbered in int16, in slices of a few channels that stay in the CPU's cache.
- Each pixel's bin is computed once for all displacements.
- Pairs with the zeros around a map are not enumerated: their number follows from the counts of single pixels.
- Neighbouring pixels of a channel are added to different counters (*lanes*), see :func:`_apart`.
"""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from backpass.sgs.histogram import Offset, Zeros, bin_indices, framed_shape, number_of_pairs, pixel_pairs

__all__ = ["count_cells", "joint_histograms", "slices"]

_INT16_MAX = 32767
_LANES = 3
_PIXELS_A_COUNTER = 8  # with fewer pixels in each channel, further lanes cost more than they gain
_ELEMENTS_AT_ONCE = 1 << 19  # keeps the float64 and int16 temporaries of one slice in the CPU's cache


def joint_histograms(
    feature_map: Tensor,
    displacements: Sequence[Offset],
    low: Tensor,
    high: Tensor,
    bins: Sequence[int],
    *,
    zeros: Zeros | None = None,
) -> list[Tensor]:
    """Return for each displacement the joint histogram of pixels and their neighbours, channel by channel.

    Counts are integers, so they depend neither on threads nor on order, and the histograms of the parts of a set of
    maps add up to the histogram of the set, bit for bit.

    Args:
        feature_map: ``(N, C, *spatial)``, floating point.
        displacements: pixel displacements, one number for each spatial axis.
        low: ``(C,)``, lower edge of the first bin of each channel.
        high: ``(C,)``, upper edge of the last bin.
        bins: number of bins for each displacement (:func:`backpass.sgs.histogram.number_of_bins`).
        zeros: zeros that the convolution adds around the map, counted like its pixels; default none.

    Returns:
        One int64 tensor ``(C, B, B)`` for each displacement: rows for the pixel, columns for its neighbour.
    """
    if zeros is not None and not _surround(zeros, displacements):
        feature_map, zeros = F.pad(feature_map, [count for sides in reversed(zeros) for count in sides]), None
    channels, device = feature_map.shape[1], feature_map.device
    joints = [torch.zeros(channels, b, b, dtype=torch.int64, device=device) for b in bins]
    singles = {b: torch.zeros(channels, b, dtype=torch.int64, device=device) for b in bins}
    cells = max(bins, default=1) ** 2
    lanes = _number_of_lanes(feature_map, cells)
    for part, values in slices(feature_map, lanes * cells):
        columns = {b: bin_indices(values, low[part], high[part], b) for b in singles}
        rows = {b: _apart(column * b, b * b, lanes) for b, column in columns.items()}
        for joint, displacement, b in zip(joints, displacements, bins, strict=True):
            pairs = pixel_pairs(rows[b], displacement)[0] + pixel_pairs(columns[b], displacement)[1]
            joint[part] += _counts(pairs, joint[part], lanes)
        if zeros is not None:
            for b, single in singles.items():
                single[part] += _counts(_apart(columns[b], b, lanes), single[part], lanes)
    if zeros is not None:
        zero = feature_map.new_zeros(1, channels)
        for joint, displacement, b in zip(joints, displacements, bins, strict=True):
            all_pairs = number_of_pairs(framed_shape(feature_map.shape, zeros), displacement)
            _add_pairs_with_zeros(joint, singles[b], bin_indices(zero, low, high, b)[0], all_pairs)
    return joints


def count_cells(rows: Tensor, columns: Tensor, levels: int) -> Tensor:
    """Return the number of pairs in each cell ``(row, column)`` of each channel.

    Args:
        rows: int16 ``(N, C, *spatial)``, level of each pixel, below ``levels``.
        columns: the same for its neighbour.
        levels: with ``C * levels**2`` at most 32767, which :func:`slices` provides for.

    Returns:
        int64 ``(C, levels, levels)``.
    """
    like = rows.new_empty(rows.shape[1], levels, levels)
    return _counts(_apart(rows * levels + columns, levels * levels, 1), like, 1)


def slices(feature_map: Tensor, cells: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of channels, and the map there, small enough for int16 cell numbers and the CPU's cache.

    Args:
        feature_map: ``(N, C, *spatial)``.
        cells: number of cells for each channel.
    """
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


def _surround(zeros: Zeros, displacements: Sequence[Offset]) -> bool:
    """Return whether every pixel has a neighbour at every displacement, both ways, in the map or in its zeros."""
    return all(
        min(sides) >= abs(d) for displacement in displacements for sides, d in zip(zeros, displacement, strict=True)
    )


def _add_pairs_with_zeros(joint: Tensor, single: Tensor, zero: Tensor, pairs: int) -> None:
    """Add the pairs with the surrounding zeros to ``joint``, which holds the pairs within the map.

    Every pixel is the first of one pair and the second of another, so what ``joint`` lacks of ``single`` has a zero on
    the other side, and what is then missing of all ``pairs`` of a channel has zeros on both.
    """
    channel = torch.arange(joint.shape[0], device=joint.device)
    firsts, seconds = single - joint.sum(2), single - joint.sum(1)
    zero = zero.long()
    joint[channel, :, zero] += firsts
    joint[channel, zero, :] += seconds
    joint[channel, zero, zero] += pairs - joint.sum((1, 2))


def _number_of_lanes(feature_map: Tensor, cells: int) -> int:
    in_turn = feature_map.stride(1) == 1  # channels_last: neighbours in memory are different channels
    pixels = feature_map.numel() // feature_map.shape[1]
    worth_it = feature_map.device.type == "cpu" and not in_turn and pixels >= _PIXELS_A_COUNTER * cells
    return _LANES if worth_it else 1


def _apart(indices: Tensor, cells: int, lanes: int) -> Tensor:
    """Return indices below ``cells`` with a block of numbers of its own for each channel in each lane, in int16.

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
