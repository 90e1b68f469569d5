"""Reading the saved state of a controller."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from backpass.errors import InputError
from backpass.sgs.scaling import check_scalings

__all__ = ["scalings_in"]


def scalings_in(
    state: Mapping[str, Any], settings: Mapping[str, Any], own: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """Return the scalings of a saved state, if it was made with these settings on layers of these names and shapes.

    Args:
        state: from ``SpatialGradientScaling.state_dict``.
        settings: of the controller that loads it.
        own: its scalings.

    Raises:
        InputError: other settings or layers, or a scaling that is not finite, not above 0 or of another shape.
    """
    expected = {"scalings", "measured", "epoch", *settings}
    absent = expected - state.keys() if isinstance(state, Mapping) else expected
    if absent or not isinstance(state["scalings"], Mapping):
        received = f"one without {', '.join(sorted(absent))}" if absent else "one whose scalings have no names"
        raise InputError(
            f"expected a state_dict() of SpatialGradientScaling, got {received}; pass what its state_dict() returned"
        )
    for name, value in settings.items():
        if state[name] != value:
            raise InputError(
                f"expected a state with {name}={value!r}, got one with {state[name]!r}; construct the controller with "
                "the settings that it was saved with"
            )
    scalings: Mapping[str, Tensor] = state["scalings"]
    missing, unknown = own.keys() - scalings.keys(), scalings.keys() - own.keys()
    if missing or unknown:
        raise InputError(
            f"expected this model's scalings: missing {sorted(missing)}, unknown {sorted(unknown)}; load the state "
            "into a controller of the same model with the same include"
        )
    check_scalings(scalings, own)
    return scalings
