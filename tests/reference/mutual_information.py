"""Slow, obvious float64 reference of Spatial Gradient Scaling, from a convolution's input to its mean-1 scaling.

Plain loops over pixels, taps and bins; nothing here is shared with the library.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

Index = tuple[int, ...]


def sides(kernel_size: Sequence[int], dilation: Sequence[int], padding: Sequence[int] | str) -> list[tuple[int, int]]:
    """Return the pixels added before and after each axis."""
    if padding == "valid":
        return [(0, 0) for _ in kernel_size]
    if padding == "same":  # the odd pixel goes behind
        totals = [d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(p, p) for p in padding]


def padded(x: np.ndarray, around: Sequence[tuple[int, int]], mode: str = "zeros") -> np.ndarray:
    """Return ``(N, C, *spatial)`` with ``around`` pixels added on each axis, filled as ``mode`` says."""
    extent = [size + sum(side) for size, side in zip(x.shape[2:], around, strict=True)]
    out = np.zeros((*x.shape[:2], *extent))
    for n, c in np.ndindex(*x.shape[:2]):
        for position in np.ndindex(*extent):
            source = [
                _source(i - before, size, mode)
                for i, (before, _), size in zip(position, around, x.shape[2:], strict=True)
            ]
            if None not in source:
                out[(n, c, *position)] = x[(n, c, *source)]
    return out


def _source(i: int, size: int, mode: str) -> int | None:
    if 0 <= i < size:
        return i
    if mode == "zeros":
        return None
    if mode == "replicate":
        return 0 if i < 0 else size - 1
    if mode == "circular":
        return i % size
    assert mode == "reflect"
    return -i if i < 0 else 2 * (size - 1) - i


def tap_displacements(kernel_size: Sequence[int], dilation: Sequence[int]) -> Iterator[tuple[Index, Index]]:
    """Yield each tap and its displacement ``(t - c) * d`` with centre ``c = (k - 1) // 2``."""
    for tap in product(*(range(k) for k in kernel_size)):
        yield tap, tuple((t - (k - 1) // 2) * d for t, k, d in zip(tap, kernel_size, dilation, strict=True))


def pixel_pairs(maps: Sequence[np.ndarray], channel: int, displacement: Index) -> list[tuple[float, float]]:
    """Return every (pixel, neighbour) of one channel over all maps."""
    found = []
    for feature_map in maps:
        spatial = feature_map.shape[2:]
        for n in range(feature_map.shape[0]):
            for position in np.ndindex(*spatial):
                neighbour = tuple(p + d for p, d in zip(position, displacement, strict=True))
                if all(0 <= p < size for p, size in zip(neighbour, spatial, strict=True)):
                    found.append(
                        (float(feature_map[(n, channel, *position)]), float(feature_map[(n, channel, *neighbour)]))
                    )
    return found


def sturges(pairs: int) -> int:
    return 1 + math.ceil(math.log2(pairs)) if pairs > 0 else 2


def bin_of(value: float, low: float, high: float, bins: int) -> int:
    if high == low:
        return 0
    return min(math.floor((value - low) * (bins / (high - low))), bins - 1)


def entropy(counts: Sequence[int]) -> float:
    total = sum(counts)
    return -sum(n / total * math.log(n / total) for n in counts if n > 0)


Range = tuple[float, float]


def joint_histogram(
    pairs: Sequence[tuple[float, float]], of_pixels: Range, of_neighbours: Range, bins: int
) -> np.ndarray:
    joint = np.zeros((bins, bins), dtype=int)
    for p, q in pairs:
        joint[bin_of(p, *of_pixels, bins), bin_of(q, *of_neighbours, bins)] += 1
    return joint


def without_near_equal(pairs: Sequence[tuple[float, float]]) -> np.ndarray:
    """Return the joint histogram of the pairs without zeros, in bins and ranges of their own, its diagonal emptied."""
    kept = [(p, q) for p, q in pairs if p != 0 and q != 0]
    if not kept:
        return np.zeros((1, 1), dtype=int)
    of_pixels, of_neighbours = ((min(side), max(side)) for side in zip(*kept, strict=True))
    joint = joint_histogram(kept, of_pixels, of_neighbours, sturges(len(kept)))
    for i in range(len(joint)):
        joint[i, i] = 0
    return joint


def normalized_mutual_information(joint: np.ndarray) -> float:
    """Return ``(H(P) + H(Q) - H(P, Q)) / H(P, Q)``, NaN where ``H(P, Q)`` is zero."""
    h_joint = entropy(joint.ravel().tolist())
    if h_joint == 0:
        return math.nan
    return (entropy(joint.sum(1).tolist()) + entropy(joint.sum(0).tolist()) - h_joint) / h_joint


def correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Return Pearson's correlation, NaN where a side does not vary."""
    mean_p = sum(p for p, _ in pairs) / len(pairs)
    mean_q = sum(q for _, q in pairs) / len(pairs)
    if len({p for p, _ in pairs}) == 1 or len({q for _, q in pairs}) == 1:
        return math.nan
    covariance = sum((p - mean_p) * (q - mean_q) for p, q in pairs)
    return covariance / math.sqrt(sum((p - mean_p) ** 2 for p, _ in pairs) * sum((q - mean_q) ** 2 for _, q in pairs))


def dependence(
    maps: Sequence[np.ndarray],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    *,
    measure: str = "mutual_information",
    drop_near_equal: bool = False,
) -> np.ndarray:
    """Return S ``(C, *kernel_size)`` of padded maps ``(N, C, *spatial)``, one for each call of the layer."""
    channels = maps[0].shape[1]
    s = np.ones((channels, *kernel_size))
    for c in range(channels):
        low = min(float(m[:, c].min()) for m in maps)
        high = max(float(m[:, c].max()) for m in maps)
        for tap, displacement in tap_displacements(kernel_size, dilation):
            if any(displacement):
                pairs = pixel_pairs(maps, c, displacement)
                if measure == "autocorrelation":
                    s[(c, *tap)] = correlation(pairs)
                elif drop_near_equal:
                    s[(c, *tap)] = normalized_mutual_information(without_near_equal(pairs))
                else:
                    joint = joint_histogram(pairs, (low, high), (low, high), sturges(len(pairs)))
                    s[(c, *tap)] = normalized_mutual_information(joint)
    return s


def scaling(s: np.ndarray, k: float, undefined_as_zero: bool = False) -> np.ndarray:
    """Return the k transform of each channel, averaged over channels, divided by its mean.

    The average is over the channels where S is defined, or, with ``undefined_as_zero``, over all.
    """
    g = np.zeros(s.shape[1:])
    undefined_taps = [tap for tap in np.ndindex(*g.shape) if all(math.isnan(v) for v in s[(slice(None), *tap)])]
    if len(undefined_taps) >= (g.size - 1 if undefined_as_zero else 1):
        return np.ones(g.shape)
    for tap in np.ndindex(*g.shape):
        values = [0.0 if undefined_as_zero and math.isnan(v) else float(v) for v in s[(slice(None), *tap)]]
        defined = [max(v, 0.0) for v in values if not math.isnan(v)]
        g[tap] = sum(k * v / ((k - 1) * v + 1) for v in defined) / len(defined)
    g = np.maximum(g, 1e-6 * g.max())
    return g / g.mean()


def conv_scaling(
    inputs: Sequence[np.ndarray],
    kernel_size: Sequence[int],
    *,
    padding: Sequence[int] | str,
    padding_mode: str = "zeros",
    dilation: Sequence[int],
    k: float = 5.0,
    measure: str = "mutual_information",
    drop_near_equal: bool = False,
) -> np.ndarray:
    """Return the scaling of a convolution that sees ``inputs``, each ``(N, C, *spatial)``."""
    around = sides(kernel_size, dilation, padding)
    maps = [padded(x.astype(np.float64), around, padding_mode) for x in inputs]
    s = dependence(maps, kernel_size, dilation, measure=measure, drop_near_equal=drop_near_equal)
    return scaling(s, k, undefined_as_zero=drop_near_equal)
