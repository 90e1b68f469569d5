"""Which layers of a model a method applies to."""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from backpass.errors import InputError

__all__ = ["Include", "select"]

Include = Callable[[str, nn.Module], bool] | Sequence[str]
"""Which layers to select: glob patterns on module names, or a function ``(module name, module) -> bool``."""

_SHOWN = 20


def select(include: Include | None, layers: Mapping[str, nn.Module]) -> set[str]:
    """Return the names of the ``layers`` that ``include`` selects; ``None`` selects all.

    >>> layers = {"stem": nn.Conv2d(3, 8, 3), "body.0": nn.Conv2d(8, 8, 3), "body.1": nn.Conv2d(8, 9, 3)}
    >>> sorted(select(["body.*"], layers)), sorted(select(lambda name, conv: conv.in_channels == 3, layers))
    (['body.0', 'body.1'], ['stem'])

    Raises:
        InputError: a pattern matches no layer.
    """
    if include is None:
        return set(layers)
    if callable(include):
        return {name for name, layer in layers.items() if include(name, layer)}
    taken: set[str] = set()
    for pattern in [include] if isinstance(include, str) else include:
        matched = {name for name in layers if fnmatchcase(name, pattern)}
        if not matched:
            names = [*layers][:_SHOWN] + ["..."] * (len(layers) > _SHOWN)
            raise InputError(
                f"the pattern {pattern!r} of include matches none of the layers that it can choose from: "
                f"{', '.join(names) or 'there are none'}; correct it or leave it out"
            )
        taken |= matched
    return taken
