"""Feature maps kept from one pass for the next, so that the next need not compute them again."""

from collections import deque
from collections.abc import Iterator

from backpass.sgs.feature_maps import FeatureMap

__all__ = ["HeldMaps"]


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
