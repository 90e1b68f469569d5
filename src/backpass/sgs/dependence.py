"""How much a pixel of a feature map says about its neighbour: the dependence S at each kernel tap.

The second stage of SGS. Two measures of dependence, each an accumulator that sees the maps of a layer twice (ranges
first, then statistics) and never keeps one, so that memory does not grow with the number of batches:

- :class:`MutualInformation`, the paper's measure;
- :class:`Autocorrelation`, the simpler measure that the paper compares it with.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from backpass.errors import InputError
from backpass.sgs.histogram import (
    Offset,
    Zeros,
    canonical,
    framed_shape,
    half_offsets,
    joint_histograms,
    number_of_bins,
    number_of_pairs,
    pixel_pairs,
    tap_offsets,
)

__all__ = [
    "MEASURES",
    "Autocorrelation",
    "Dependence",
    "MutualInformation",
    "autocorrelation",
    "correlation_of_moments",
    "entropy",
    "mutual_information",
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
    """Return the mutual information of each joint histogram as a share of its joint entropy.

    ``S = (H(P) + H(Q) - H(P, Q)) / H(P, Q)``: 0 for independent pixels, 1 where each determines the other. This is
    scikit-image's ``normalized_mutual_information`` minus 1.

    Args:
        joint: counts ``(C, B, B)``.

    Returns:
        float64 ``(C,)`` in ``[0, 1]``; NaN where it is undefined: ``H(P, Q) = 0``, as for a constant channel.
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
    """The dependence of neighbouring pixels in the input of one convolution, gathered map by map.

    Call :meth:`observe` on every map, :meth:`start_counting` once, :meth:`count` on every map again, then
    :meth:`result`. Between the two passes ``low``, ``high`` and ``pairs``, and after the second ``totals``, may be
    reduced over processes: minimum, maximum, sum and sum.

    Attributes:
        low: float32 ``(C,)``, smallest value of each channel so far; ``+inf`` before the first map.
        high: float32 ``(C,)``, largest value; ``-inf`` before the first map.
        pairs: int64 ``(D,)``, pixel pairs of one channel for each of the ``D`` measured displacements.
        totals: what :meth:`count` adds to, one tensor for each displacement.
    """

    def __init__(
        self,
        kernel_size: Sequence[int],
        channels: int,
        *,
        drop_near_equal: bool = False,
        device: torch.device | None = None,
    ) -> None:
        self.kernel_size = tuple(kernel_size)
        self.offsets: list[Offset] = half_offsets(self.kernel_size)
        self.drop_near_equal = drop_near_equal
        self.low = torch.full((channels,), torch.inf, device=device)
        self.high = torch.full((channels,), -torch.inf, device=device)
        self.pairs = torch.zeros(len(self.offsets), dtype=torch.int64, device=device)
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
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        pairs = [number_of_pairs(shape, displacement) for displacement in self._displacements(dilation)]
        self.pairs += torch.tensor(pairs).to(self.pairs.device)

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

    def _displacements(self, dilation: Sequence[int]) -> list[Offset]:
        return [tuple(o * d for o, d in zip(offset, dilation, strict=True)) for offset in self.offsets]


class MutualInformation(Dependence):
    """Normalised mutual information of equal-width histograms (SGS paper, section 3.2).

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
            self._displacements(dilation),
            self.low,
            self.high,
            self.bins,
            zeros=zeros,
            drop_near_equal=self.drop_near_equal,
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
        for total, displacement in zip(self.totals, self._displacements(dilation), strict=True):
            p, q = pixel_pairs(centred, displacement)
            total += torch.stack([x.sum(axes) for x in (p, q, p * p, q * q, p * q)])

    def _per_displacement(self) -> list[Tensor]:
        pairs = self.pairs.tolist()
        return [correlation_of_moments(n, moments) for n, moments in zip(pairs, self.totals, strict=True)]


MEASURES: dict[str, type[Dependence]] = {
    "mutual_information": MutualInformation,
    "autocorrelation": Autocorrelation,
}


def mutual_information(
    feature_map: Tensor,
    kernel_size: Sequence[int],
    *,
    padding: Sequence[int] | int = 0,
    dilation: Sequence[int] | int = 1,
    drop_near_equal: bool = False,
) -> Tensor:
    """Return how much each pixel shares with its neighbour at every tap of a kernel, channel by channel.

    For the tap at offset ``o`` from the centre ``(k - 1) // 2``, pixels P and their neighbours Q at ``o * dilation``
    are counted in ``B = 1 + ceil(log2 n)`` bins of equal width between the channel's minimum and maximum, ``n`` the
    number of pairs, and ``S = (H(P) + H(Q) - H(P, Q)) / H(P, Q)``. A ratio, so without unit.

    Args:
        feature_map: ``(N, C, *spatial)``, any floating dtype (measured in float32), finite.
        kernel_size: taps on each spatial axis.
        padding: zeros added on both sides of each axis before measuring, as the convolution would.
        dilation: pixels between taps.
        drop_near_equal: leave out pairs with a zero on either side and pairs that share a bin.

    Returns:
        float64 ``(C, *kernel_size)``, 1 at the centre, NaN where S is undefined (a constant channel).

    Raises:
        InputError: the map is empty, not finite, not floating, or it, the padding or the dilation does not fit the
            kernel's number of axes.

    Source: SGS paper, section 3.2 and the published estimator, which this reproduces where that one is defined.

    >>> ramp = torch.arange(6.0).expand(1, 1, 6, 6)
    >>> mutual_information(ramp, (1, 3)).round(decimals=3)
    tensor([[[1., 1., 1.]]], dtype=torch.float64)
    """
    return _measure(MutualInformation, feature_map, kernel_size, padding, dilation, drop_near_equal)


def autocorrelation(
    feature_map: Tensor,
    kernel_size: Sequence[int],
    *,
    padding: Sequence[int] | int = 0,
    dilation: Sequence[int] | int = 1,
) -> Tensor:
    """Return Pearson's correlation of a map with itself displaced to every tap of a kernel, channel by channel.

    Same pairs, arguments, shapes and errors as :func:`mutual_information`.

    Returns:
        float64 ``(C, *kernel_size)`` in ``[-1, 1]``, 1 at the centre, NaN where a side of the pairs is constant.

    >>> stripes = torch.tensor([0.0, 1.0]).repeat(4).expand(1, 1, 8, 8)
    >>> autocorrelation(stripes, (1, 3)).round(decimals=3)
    tensor([[[-1.,  1., -1.]]], dtype=torch.float64)
    """
    return _measure(Autocorrelation, feature_map, kernel_size, padding, dilation, False)


def _measure(
    measure: type[Dependence],
    feature_map: Tensor,
    kernel_size: Sequence[int],
    padding: Sequence[int] | int,
    dilation: Sequence[int] | int,
    drop_near_equal: bool,
) -> Tensor:
    axes = len(kernel_size)
    if feature_map.ndim != axes + 2 or not feature_map.is_floating_point() or feature_map.numel() == 0:
        raise InputError(
            f"expected a non-empty floating point map (N, C) with {axes} spatial axes for kernel size "
            f"{tuple(kernel_size)}, got shape {tuple(feature_map.shape)} of {feature_map.dtype}"
        )
    pads, steps = _per_axis("padding", padding, axes), _per_axis("dilation", dilation, axes)
    zeros = [(pad, pad) for pad in pads]
    values = feature_map.detach().float()
    dependence = measure(kernel_size, values.shape[1], drop_near_equal=drop_near_equal, device=values.device)
    dependence.observe(values, steps, zeros)
    if not dependence.finite:
        raise InputError("expected finite values in the feature map, got NaN or infinity")
    dependence.start_counting()
    dependence.count(values, steps, zeros)
    return dependence.result()


def _per_axis(name: str, value: Sequence[int] | int, axes: int) -> list[int]:
    values = [value] * axes if isinstance(value, int) else list(value)
    if len(values) != axes:
        raise InputError(f"expected {name} to be one number or {axes}, one for each spatial axis, got {value!r}")
    return values
