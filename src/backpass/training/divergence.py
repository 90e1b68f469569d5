"""Whether the numbers of an epoch are finite: a run whose numbers are not has diverged."""

import math
from collections.abc import Mapping

from backpass.errors import DivergedError

__all__ = ["check_finite"]


def check_finite(values: Mapping[str, float], epoch: int, lr: float) -> None:
    """Raise DivergedError, naming what is nan or infinite, unless all values of an epoch are finite.

    Args:
        values: losses and metrics by name.
        epoch: that they belong to.
        lr: peak learning rate of the recipe.
    """
    found = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
    if found:
        raise DivergedError(
            f"expected finite losses and metrics, got {', '.join(found)} in epoch {epoch}; lower the learning rate "
            f"({lr}), warm it up, or clip gradients (clip_norm, agc)"
        )
