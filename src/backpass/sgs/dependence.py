"""The dependence S of a pixel and its neighbour at each kernel tap, accumulated over the maps of a layer.

Each measure sees every map twice (ranges, then statistics) and keeps none, so memory does not grow with the number of
batches:

- :class:`MutualInformation`, the paper's measure; ``near_equal`` holds its variant without near-equal pairs;
- :class:`Autocorrelation`, the simpler measure that the paper compares it with.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from backpass.sgs.fast_counting import joint_histograms
from backpass.sgs.histogram import (
    Offset,
    Zeros,
    canonical,
    framed_shape,
    half_offsets,
    number_of_bins,
    number_of_pairs,
    pixel_pairs,
    tap_offsets,
)

__all__ = [
    "Autocorrelation",
    "Dependence",
    "MutualInformation",
    "correlation_of_moments",
    "entropy",
    "normalized_mutual_information",
]

_ROUNDING = 1e-12  # relative error of a float64 sum over many pixels, with a margin


def entropy(counts: Tensor) -> Tensor:
    """Return the entropy, in nats, of the distribution that each row of counts describes.

    ``H = -Σ p log p`` with ``p = counts / Σ counts`` and ``0 log 0 = 0``; a row without counts has entropy 0.

    >>> entropy(torch.tensor([[1, 1, 0], [4, 0, 0], [0, 0, 0]]))
    tensor([0.6931, 0.0000, 0.0000], dtype=torch.float64)
    """
    p = counts.double() / counts.sum(-1, keepdim=True).clamp(min=1)
    h: Tensor = torch.special.entr(p).sum(-1)
    return h


def normalized_mutual_information(joint: Tensor) -> Tensor:
    """Return the mutual information of each joint histogram divided by its joint entropy.

    ``S = (H(P) + H(Q) - H(P, Q)) / H(P, Q)``: 0 for independent pixels, 1 where each determines the other. This is
    scikit-image's ``normalized_mutual_information`` minus 1.

    Args:
        joint: counts ``(C, B, B)``.

    Returns:
        float64 ``(C,)`` in ``[0, 1]``; NaN where it is undefined, ``H(P, Q) = 0``: a constant channel, or
        one without pairs.
    """
    h_joint = entropy(joint.flatten(-2))
    shared = entropy(joint.sum(-1)) + entropy(joint.sum(-2)) - h_joint
    return torch.where(h_joint > 0, (shared / h_joint).clamp(0, 1), torch.nan)


def correlation_of_moments(pairs: int, moments: Tensor) -> Tensor:
    """Return Pearson's correlation from the sums ``Σp, Σq, Σp², Σq², Σpq`` over ``pairs`` pairs.

    Args:
        pairs: number of pairs of each channel.
        moments: float64 ``(5, C)``.

    Returns:
        float64 ``(C,)`` in ``[-1, 1]``; NaN where a side does not vary, or by no more than the rounding of its sums.
    """
    p, q, pp, qq, pq = moments / max(pairs, 1)
    variance_p, variance_q = pp - p * p, qq - q * q
    correlation = (pq - p * q) / (variance_p * variance_q).sqrt()
    varies = (variance_p > _ROUNDING * pp) & (variance_q > _ROUNDING * qq)
    return torch.where(varies, correlation.clamp(-1, 1), torch.nan)


class Dependence(ABC):
    """The dependence of neighbouring pixels in the input of one convolution, accumulated map by map.

    Call :meth:`observe` on every map, :meth:`start_counting` once, :meth:`count` on every map again, then
    :meth:`result`. To measure over several processes, reduce ``minima``, ``maxima`` and ``sums`` between the two
    passes, and sum up ``totals`` after the second (``distributed``).

    Everything is on the given device, and the maps have to be there; on the CPU where the device has no float64 (MPS).

    Attributes:
        low: float32 ``(C,)``, smallest value of each channel so far; ``+inf`` before the first map.
        high: float32 ``(C,)``, largest value; ``-inf`` before the first map.
        pairs: int64 ``(D,)``, pixel pairs of one channel for each of the ``D`` measured displacements.
        minima: what the first pass lowers, float32: ``low``, and more in subclasses.
        maxima: what it raises, float32: ``high``.
        sums: what it adds to, int64: ``pairs``.
        totals: what :meth:`count` adds to, one tensor for each displacement.
        undefined_as_zero: whether channels where S is undefined count in the mean over channels, as 0.
    """

    undefined_as_zero = False

    def __init__(self, kernel_size: Sequence[int], channels: int, *, device: torch.device | None = None) -> None:
        self.kernel_size = tuple(kernel_size)
        self.offsets: list[Offset] = half_offsets(self.kernel_size)
        if device is not None and device.type == "mps":
            device = torch.device("cpu")
        self.low = torch.full((channels,), torch.inf, dtype=torch.float32, device=device)
        self.high = torch.full((channels,), -torch.inf, dtype=torch.float32, device=device)
        self.pairs = torch.zeros(len(self.offsets), dtype=torch.int64, device=device)
        self.minima, self.maxima, self.sums = [self.low], [self.high], [self.pairs]
        self.totals: list[Tensor] = []

    def observe(self, feature_map: Tensor, dilation: Sequence[int], zeros: Zeros | None = None) -> None:
        """First pass: widen the range of each channel and add up the pairs.

        Args:
            feature_map: float32 ``(N, C, *spatial)``.
            dilation: pixels between taps, for each spatial axis.
            zeros: zeros that the convolution adds before and after each spatial axis; default none.
        """
        axes = list(range(2, feature_map.ndim))  # then the batch: several times faster than all at once
        low, high = feature_map.amin(axes).amin(0), feature_map.amax(axes).amax(0)
        shape = tuple(feature_map.shape)
        if zeros is not None and any(map(any, zeros)):
            low, high = low.clamp(max=0), high.clamp(min=0)
            shape = framed_shape(shape, zeros)
        self.low.copy_(torch.minimum(self.low, low))
        self.high.copy_(torch.maximum(self.high, high))
        pairs = [number_of_pairs(shape, displacement) for displacement in self.displacements(dilation)]
        self.pairs += torch.tensor(pairs, device=self.pairs.device)

    @property
    def seen(self) -> bool:
        """Whether any map was observed."""
        return bool((self.pairs > 0).any())

    @property
    def finite(self) -> bool:
        """Whether every value observed so far is finite."""
        return bool((self.low.isfinite() & self.high.isfinite()).all())

    @abstractmethod
    def start_counting(self) -> None:
        """Lay out ``totals`` for the ranges and pairs observed."""

    @abstractmethod
    def count(self, feature_map: Tensor, dilation: Sequence[int], zeros: Zeros | None = None) -> None:
        """Second pass: add one map to ``totals``; arguments as in :meth:`observe`."""

    @abstractmethod
    def _per_displacement(self) -> list[Tensor]:
        """Return the dependence ``(C,)`` at each measured displacement, NaN where undefined."""

    def result(self) -> Tensor:
        """Return S, float64 ``(C, *kernel_size)``: 1 at the centre, NaN where undefined."""
        measured = dict(zip(self.offsets, self._per_displacement(), strict=True))
        centre = torch.ones_like(self.low, dtype=torch.float64)
        taps = [measured[canonical(o)] if any(o) else centre for o in tap_offsets(self.kernel_size)]
        return torch.stack(taps, dim=1).view(-1, *self.kernel_size)

    def displacements(self, dilation: Sequence[int]) -> list[Offset]:
        """Return the measured displacements in pixels, one for each offset."""
        return [tuple(o * d for o, d in zip(offset, dilation, strict=True)) for offset in self.offsets]


class MutualInformation(Dependence):
    """Normalised mutual information of equal-width histograms (SGS paper, section 3.3).

    ``totals`` holds one int64 histogram ``(C, B, B)`` for each displacement.
    """

    def start_counting(self) -> None:
        """Lay out an empty histogram for each displacement."""
        self.bins = [number_of_bins(n) for n in self.pairs.tolist()]
        size, device = self.low.shape[0], self.low.device
        self.totals = [torch.zeros(size, b, b, dtype=torch.int64, device=device) for b in self.bins]

    def count(self, feature_map: Tensor, dilation: Sequence[int], zeros: Zeros | None = None) -> None:
        """Add the joint histograms of one map."""
        joints = joint_histograms(
            feature_map,
            self.displacements(dilation),
            self.low,
            self.high,
            self.bins,
            zeros=zeros,
        )
        for total, joint in zip(self.totals, joints, strict=True):
            total += joint

    def _per_displacement(self) -> list[Tensor]:
        return [normalized_mutual_information(joint) for joint in self.totals]


class Autocorrelation(Dependence):
    """Pearson's correlation of the map with itself displaced (the SGS paper's comparison with autocorrelation).

    ``totals`` holds float64 moments ``(5, C)`` for each displacement, about the middle of each channel's range.
    """

    def start_counting(self) -> None:
        """Lay out empty moments for each displacement."""
        size, device = self.low.shape[0], self.low.device
        self.totals = [torch.zeros(5, size, dtype=torch.float64, device=device) for _ in self.offsets]

    def count(self, feature_map: Tensor, dilation: Sequence[int], zeros: Zeros | None = None) -> None:
        """Add the moments of one map."""
        if zeros is not None:
            feature_map = F.pad(feature_map, [count for sides in reversed(zeros) for count in sides])
        shape = (1, -1, *[1] * (feature_map.ndim - 2))
        centred = feature_map.double() - ((self.low.double() + self.high.double()) / 2).view(shape)
        axes = [axis for axis in range(feature_map.ndim) if axis != 1]
        for total, displacement in zip(self.totals, self.displacements(dilation), strict=True):
            p, q = pixel_pairs(centred, displacement)
            sums = [p.sum(axes), q.sum(axes)]
            sums += [(a * b).sum(axes) for a, b in ((p, p), (q, q), (p, q))]  # one product in memory at a time
            total += torch.stack(sums)

    def _per_displacement(self) -> list[Tensor]:
        pairs = self.pairs.tolist()
        return [correlation_of_moments(n, moments) for n, moments in zip(pairs, self.totals, strict=True)]
