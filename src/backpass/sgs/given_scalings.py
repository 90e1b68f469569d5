"""Scalings that are given instead of measured: fixed ones, and those of a saved state."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from backpass.errors import InputError

__all__ = ["fixed_scalings", "scalings_in"]


def fixed_scalings(scaling: object, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a fixed scaling by parameter name: a tensor for all kernels of its shape, or a mapping as it is.

    Raises:
        InputError: it is neither, fits no kernel, names an unknown one, or a scaling is not finite, not above 0 or of
            another shape.
    """
    if isinstance(scaling, Tensor):
        given = {name: scaling for name, ones in own.items() if ones.shape == scaling.shape}
        received = f"shape {tuple(scaling.shape)}"
    elif isinstance(scaling, Mapping):
        given, received = dict(scaling), str(sorted(scaling))
    else:
        given, received = {}, type(scaling).__name__
    if not given or not given.keys() <= own.keys():
        raise InputError(
            f"expected a scaling of the shape of some kernel, or one for some of {sorted(own)}, got {received}; "
            "correct the shape or the names"
        )
    _check(given, own)
    return given


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
    _check(scalings, own)
    return scalings


def _check(scalings: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise :class:`InputError` unless each scaling is finite, above 0 and of the shape of the one it replaces."""
    for name, values in scalings.items():
        shape = own[name].shape
        if not isinstance(values, Tensor) or values.shape != shape:
            received = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InputError(
                f"expected the scaling of {name} to have shape {tuple(shape)}, got {received}; pass one number for "
                "each tap of the kernel"
            )
        if not bool((values.isfinite() & (values > 0)).all()):
            raise InputError(
                f"expected the scaling of {name} to be finite and above 0, got {values.tolist()}; measure it again, or "
                "normalize() one without negative numbers"
            )
