"""Loaders that wrap other loaders."""

from collections.abc import Iterator
from typing import Any

__all__ = ["nested_loaders"]


def nested_loaders(loader: object) -> Iterator[Any]:
    """Yield a loader, then the loaders inside it.

    Accelerate keeps one as ``base_dataloader``, timm as ``loader``, Lightning Fabric as ``_dataloader``.

    >>> class Prefetcher:
    ...     loader = None
    >>> outer, outer.loader = Prefetcher(), [1, 2]
    >>> list(nested_loaders(outer)) == [outer, [1, 2]]
    True
    """
    while loader is not None:
        yield loader
        inside = getattr(loader, "__dict__", {})
        loader = next((inside[name] for name in ("base_dataloader", "loader", "_dataloader") if name in inside), None)
