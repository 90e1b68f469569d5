"""Nested settings and states compared: what differs, by dotted name."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from backpass.errors import InputError

__all__ = ["check_form", "check_run"]

_NOTHING = object()


def check_run(expected: Mapping[str, Any], received: Mapping[str, Any], source: str, advice: str) -> None:
    """Raise InputError, naming the settings that differ and no others, if two runs are not the same.

    Args:
        expected: the run that was asked for, as nested dictionaries.
        received: the run that ``source`` holds.
        source: what the error calls it.
        advice: what to do about it.

    >>> check_run({"seed": 1, "recipe": {"epochs": 3}}, {"seed": 1, "recipe": {"epochs": 9}}, "runs/a", "remove it")
    Traceback (most recent call last):
    backpass.errors.InputError: runs/a belongs to another run: recipe.epochs: expected 3, received 9; remove it
    """
    if found := "; ".join(_differences(expected, received)):
        raise InputError(f"{source} belongs to another run: {found}; {advice}")


def _differences(expected: Any, received: Any, name: str = "") -> Iterator[str]:
    if isinstance(expected, Mapping) and isinstance(received, Mapping):
        for key in [*expected, *(key for key in received if key not in expected)]:
            inner = f"{name}.{key}" if name else str(key)
            yield from _differences(expected.get(key, _NOTHING), received.get(key, _NOTHING), inner)
    elif expected != received:
        yield f"{name}: expected {_shown(expected)}, received {_shown(received)}"


def _shown(value: Any) -> str:
    return "nothing" if value is _NOTHING else repr(value)


def check_form(expected: Any, received: Any, name: str) -> None:
    """Raise InputError, naming the first place that differs, if a state has another form than ``expected``.

    Dictionaries must have the same keys, lists and tuples the same lengths, tensors the same shapes and dtypes, and
    other values the same types, where an integer may stand for a float.

    >>> check_form({"rates": [0.1]}, {"rates": ["fast"]}, "schedule")
    Traceback (most recent call last):
    backpass.errors.InputError: expected schedule.rates.0 of the checkpoint to be a number, got str; use \
the checkpoint of this run, or remove it
    """
    if isinstance(expected, Mapping) and isinstance(received, Mapping):
        missing = sorted(map(str, expected.keys() - received.keys()))
        unknown = sorted(map(str, received.keys() - expected.keys()))
        if missing or unknown:
            raise InputError(
                f"expected {name} of the checkpoint to have the keys of this run, got one with missing {missing} and "
                f"unknown {unknown}; "
                "use the checkpoint of this run, or remove it"
            )
        for key in expected:
            check_form(expected[key], received[key], f"{name}.{key}")
    elif isinstance(expected, list | tuple) and isinstance(received, list | tuple) and len(expected) == len(received):
        for number, (own, other) in enumerate(zip(expected, received, strict=True)):
            check_form(own, other, f"{name}.{number}")
    elif _kind(expected) != _kind(received):
        raise InputError(
            f"expected {name} of the checkpoint to be {_kind(expected)}, got {_kind(received)}; "
            "use the checkpoint of this run, or remove it"
        )


def _kind(value: Any) -> str:
    """Return what has to agree of a value that is no dictionary."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and dtype {value.dtype}"
    if isinstance(value, list | tuple):
        return f"a list of length {len(value)}"
    return "a number" if type(value) in (int, float) else type(value).__name__
