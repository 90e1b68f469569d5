"""A probe: an input on which a model runs, to see what it does."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from backpass.errors import InputError

__all__ = ["Probe", "call"]

Probe = Tensor | Sequence[Any] | Mapping[str, Any]
"""An input of a model: one tensor, positional arguments, or keyword arguments."""


def call(model: nn.Module, probe: Probe) -> Any:
    """Return ``model`` applied to ``probe``.

    Raises:
        InputError: ``probe`` is neither a tensor nor a sequence nor a mapping of arguments.
    """
    if isinstance(probe, Tensor):
        return model(probe)
    if isinstance(probe, Mapping):
        return model(**probe)
    if isinstance(probe, Sequence) and not isinstance(probe, str):
        return model(*probe)
    raise InputError(
        f"expected probe to be a tensor, a sequence or a mapping of arguments, got {type(probe).__name__}; "
        "pass the input itself, or its arguments in a tuple or a dictionary"
    )
