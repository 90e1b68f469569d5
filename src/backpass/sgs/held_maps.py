"""Feature maps that are kept for a while: for the second pass, or until they are enough to be worth counting."""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import torch

from backpass.sgs.feature_maps import FeatureMap

__all__ = ["HeldMaps", "JoinedMaps"]


class HeldMaps:
    """The last feature maps of one batch, as many as fit into ``limit`` bytes.

    The last ones, because a pass that needs only the maps before them can stop early.

    Attributes:
        first: number of maps of this batch that were not kept, or no longer are; all of them precede the kept ones.
    """

    def __init__(self, limit: int) -> None:
        self.first = 0
        self._limit = limit
        self._bytes = 0
        self._maps: deque[FeatureMap] = deque()

    def append(self, feature_map: FeatureMap) -> None:
        """Keep a copy of the map, and drop the oldest until all fit."""
        size = feature_map.values.nbytes
        while self._maps and self._bytes + size > self._limit:
            self._bytes -= self._maps.popleft().values.nbytes
            self.first += 1
        if size > self._limit:
            self.first += 1
        else:
            self._maps.append(feature_map.copy())
            self._bytes += size

    def take(self) -> Iterator[FeatureMap]:
        """Yield the kept maps in order and free each once it has been used."""
        while self._maps:
            yield self._maps.popleft()


class JoinedMaps:
    """Small feature maps of a layer, joined along the batch until they have ``enough`` elements together.

    A histogram has as many cells as a small map has pixels, and filling it costs less than adding it up.
    """

    def __init__(self, enough: int) -> None:
        self._enough = enough
        self._parts: dict[tuple[object, ...], list[FeatureMap]] = {}

    def add(self, feature_map: FeatureMap) -> FeatureMap | None:
        """Take a map, or a copy of it; return all of its kind as one once they are enough."""
        if feature_map.values.numel() >= self._enough:
            return feature_map
        kind = (feature_map.layer.name, feature_map.values.shape[1:], feature_map.zeros, feature_map.dilation)
        parts = self._parts.setdefault(kind, [])
        parts.append(feature_map.copy())
        if sum(part.values.numel() for part in parts) < self._enough:
            return None
        return _joined(self._parts.pop(kind))

    def rest(self) -> Iterator[FeatureMap]:
        """Yield what was not enough, joined by kind, and forget it."""
        while self._parts:
            yield _joined(self._parts.popitem()[1])


def _joined(parts: list[FeatureMap]) -> FeatureMap:
    return replace(parts[0], values=torch.cat([part.values for part in parts]))
