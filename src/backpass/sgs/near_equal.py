"""Mutual information without pairs of near-equal pixels, as in the ImageNet recipes of the SGS paper."""

from collections.abc import Sequence

import torch
from torch import Tensor

from backpass.sgs.dependence import MutualInformation
from backpass.sgs.fast_counting import count_cells, slices
from backpass.sgs.histogram import Zeros, bin_indices, number_of_bins, pixel_pairs

__all__ = ["MutualInformationWithoutNearEqual"]


class MutualInformationWithoutNearEqual(MutualInformation):
    """Normalised mutual information of the pairs that hold no zero and share no bin.

    For each channel and displacement, pairs with a zero on either side are removed first. The pairs that are left give
    their number n, ``B = 1 + ceil(log2 n)`` bins, and two ranges, one of the pixels and one of their neighbours. Then
    pairs with equal bin indices are removed. This is the rule of the published estimator; zeros after ReLU, and the
    zeros around a map, would otherwise outnumber the rest.

    Attributes:
        pair_low: float32 ``(D, 2, C)``, smallest pixel and smallest neighbour of the pairs without zeros.
        pair_high: float32 ``(D, 2, C)``, largest.
        kept: int64 ``(D, C)``, number of pairs without zeros.
        pair_bins: int64 ``(D, C)``, number of bins.
        totals: one int64 histogram ``(C, B, B)`` for each displacement, B the largest of its channels.
    """

    undefined_as_zero = True  # as the published estimator does; channels without any pair are common here

    def __init__(self, kernel_size: Sequence[int], channels: int, *, device: torch.device | None = None) -> None:
        super().__init__(kernel_size, channels, device=device)
        shape = (len(self.offsets), 2, channels)
        self.pair_low = torch.full(shape, torch.inf, dtype=torch.float32, device=self.low.device)
        self.pair_high = torch.full(shape, -torch.inf, dtype=torch.float32, device=self.low.device)
        self.kept = torch.zeros(len(self.offsets), channels, dtype=torch.int64, device=self.low.device)
        self.minima.append(self.pair_low)
        self.maxima.append(self.pair_high)
        self.sums.append(self.kept)

    def observe(self, feature_map: Tensor, dilation: Sequence[int], zeros: Zeros | None = None) -> None:
        """First pass: widen the ranges of the pairs without zeros and add up their number."""
        super().observe(feature_map, dilation, zeros)
        axes = [axis for axis in range(feature_map.ndim) if axis != 1]
        for part, values in slices(feature_map, 1):
            for d, displacement in enumerate(self.displacements(dilation)):
                pixels, neighbours = pixel_pairs(values, displacement)
                if pixels.numel() == 0:
                    continue
                keep = (pixels != 0) & (neighbours != 0)
                for side, x in enumerate((pixels, neighbours)):
                    low, high = self.pair_low[d, side, part], self.pair_high[d, side, part]
                    low.copy_(torch.minimum(low, torch.where(keep, x, torch.inf).amin(axes)))
                    high.copy_(torch.maximum(high, torch.where(keep, x, -torch.inf).amax(axes)))
                self.kept[d, part] += keep.sum(axes)

    def start_counting(self) -> None:
        """Set the numbers of bins and create an empty histogram for each displacement."""
        device = self.kept.device
        self.pair_bins = torch.tensor([[number_of_bins(n) for n in kept] for kept in self.kept.tolist()], device=device)
        largest = self.pair_bins.amax(1).tolist() if self.offsets else []
        self.totals = [torch.zeros(self.kept.shape[1], b, b, dtype=torch.int64, device=device) for b in largest]

    def count(self, feature_map: Tensor, dilation: Sequence[int], zeros: Zeros | None = None) -> None:
        """Second pass: add the joint histograms of one map."""
        # A level above the last bin takes the zeros and is cut off at the end.
        levels = [total.shape[1] + 1 for total in self.totals]
        for part, values in slices(feature_map, max(levels, default=1) ** 2):
            for d, displacement in enumerate(self.displacements(dilation)):
                rows, columns = (
                    bin_indices(x, low[part], high[part], self.pair_bins[d, part]).masked_fill_(x == 0, levels[d] - 1)
                    for x, low, high in zip(
                        pixel_pairs(values, displacement), self.pair_low[d], self.pair_high[d], strict=True
                    )
                )
                joint = count_cells(rows, columns, levels[d])[:, :-1, :-1]
                joint.diagonal(dim1=1, dim2=2).zero_()
                self.totals[d][part] += joint
