"""Feature maps of whole batches, kept so that the second pass need not run the model on them again.

Only there for speed: with nothing kept, the result is the same bit for bit.
"""

from collections.abc import Iterator

from backpass.sgs.feature_maps import FeatureMap, FeatureMapVisitor

__all__ = ["KeptMaps"]

KEPT_BYTES = 192 << 20  # all maps of VGG-16 on two batches of 128 CIFAR images, as the published recipes measure


class KeptMaps:
    """Copies of all feature maps of the first batches, as long as they fit into ``KEPT_BYTES`` together."""

    def __init__(self) -> None:
        self._maps: dict[int, list[FeatureMap]] = {}
        self._bytes = 0
        self._full = False

    def keeping(self, number: int, visit: FeatureMapVisitor) -> FeatureMapVisitor:
        """Return a visitor that calls ``visit`` and keeps the map for batch ``number``, while there is room."""
        if self._full:
            return visit
        kept = self._maps[number] = []

        def visit_and_keep(feature_map: FeatureMap) -> None:
            visit(feature_map)
            self._bytes += feature_map.values.nbytes
            self._full = self._full or self._bytes > KEPT_BYTES
            if self._full:
                self._maps.pop(number, None)
                kept.clear()
            else:
                kept.append(feature_map.copy())

        return visit_and_keep

    def __contains__(self, number: int) -> bool:
        return number in self._maps

    def take(self, number: int) -> Iterator[FeatureMap]:
        """Yield the maps of a batch, and free each once it has been used."""
        maps = self._maps.pop(number)
        maps.reverse()
        while maps:
            yield maps.pop()

    def clear(self) -> None:
        """Free all maps and keep no more."""
        self._maps.clear()
        self._full = True
