"""Settings as typed data that is checked when it is made: one message for the library, the command line and files.

The range of a number stands in its annotation, ``lr: Annotated[float, Range(above=0)]``, and :func:`check_settings`,
called in ``__post_init__``, compares every field with its annotation.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from backpass.errors import InputError

__all__ = ["COUNT", "POSITIVE", "Range", "check_number", "check_settings", "check_text", "plain"]


@dataclass(frozen=True, kw_only=True)
class Range:
    """The values that a number may have: finite ones within the bounds that are given.

    >>> str(Range(above=0)), str(Range(at_least=0, below=1))
    ('> 0', '>= 0 and < 1')
    """

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None

    def __contains__(self, value: Any) -> bool:
        return (
            _is_finite(value)
            and (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )

    def __str__(self) -> str:
        bounds = {">": self.above, ">=": self.at_least, "<": self.below, "<=": self.at_most}
        return " and ".join(f"{sign} {bound}" for sign, bound in bounds.items() if bound is not None)


COUNT = Range(at_least=1, at_most=2**31 - 1)
"""Range of a number of things of which there is at least one."""

POSITIVE = Range(above=0)
"""Range of finite numbers above 0."""


def check_settings(settings: Any, group: str = "") -> None:
    """Raise InputError if a field of a dataclass does not fit its annotation, and give it plain values.

    Checked are numbers, which must be of the annotated type, finite and in the annotated :class:`Range`; booleans;
    texts, which UTF-8 must be able to encode; the choices of a ``Literal``; and groups of settings, which must be of
    the annotated class. Fields of other types are ignored.

    Numbers get the annotated type, texts and numbers of NumPy become Python's own, and lists become tuples where a
    tuple is annotated, so that settings can be hashed, compared with those of a file, and loaded from a checkpoint.

    Args:
        settings: an instance of a dataclass.
        group: name of the group of settings that it is, such as ``optimizer``, for the message.
    """
    for name, (kind, limits, optional) in _annotations(cast(Hashable, type(settings))).items():
        value = getattr(settings, name)
        if value is None and optional:
            continue
        full = f"{group}.{name}" if group else name
        if get_origin(kind) is Literal:
            if value not in get_args(kind):
                raise InputError(
                    f"expected {full} to be one of {', '.join(map(str, get_args(kind)))}, got {value!r}; choose another"
                )
            _set(settings, name, plain(value))
        elif kind in (int, float):
            check_number(full, value, kind, limits)
            _set(settings, name, kind(value))
        elif kind is bool and not isinstance(value, bool):
            raise InputError(f"expected {full} to be True or False, got {value!r}; choose one")
        elif kind is str:
            check_text(full, value)
            _set(settings, name, plain(value))
        elif get_origin(kind) is tuple:
            _set(settings, name, plain(value))
        elif is_dataclass(kind) and isinstance(kind, type) and not isinstance(value, kind):
            raise InputError(f"expected {full} to be {kind.__name__}(...), got {value!r}; construct one")


def plain(value: Any) -> Any:
    """Return a number or text as Python's own, a list, tuple or array as a tuple of them, and the rest as it is.

    >>> plain([1, (2.5, ["a"])])
    (1, (2.5, ('a',)))
    """
    if hasattr(value, "tolist"):  # NumPy's arrays, numbers and texts
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(plain(item) for item in value)
    if type(value) in (bool, int, float) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _set(settings: Any, name: str, value: Any) -> None:
    object.__setattr__(settings, name, value)  # settings are frozen


def check_number(name: str, value: Any, kind: type, limits: Range) -> None:
    """Raise InputError if ``value`` is not a finite number of type ``kind``, int or float, within ``limits``."""
    number = Integral if kind is int else Real
    if isinstance(value, bool) or not isinstance(value, number) or value not in limits:
        noun = "an integer" if kind is int else "a finite number"
        raise InputError(f"expected {name} to be {noun} {limits}".rstrip() + f", got {value!r}; choose another value")


def check_text(name: str, value: Any) -> None:
    """Raise InputError if ``value`` is not a text that can be written to a file and name one."""
    if not isinstance(value, str):
        raise InputError(f"expected {name} to be a text, got {value!r}; put it in quotes")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"expected {name} to be text in UTF-8, got {value!r}; write it in UTF-8") from None
    if "\0" in value:
        raise InputError(f"expected {name} to be text without null characters, got {value!r}; remove them")


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


@cache
def _annotations(settings: Any) -> dict[str, tuple[Any, Range, bool]]:
    """Return type, range and whether it may be None, of each field."""
    hints = get_type_hints(settings, include_extras=True)
    return {field.name: _parts(hints[field.name]) for field in fields(settings)}


def _parts(hint: Any) -> tuple[Any, Range, bool]:
    if get_origin(hint) is Annotated:
        kind, *metadata = get_args(hint)
        kind, _, optional = _parts(kind)
        return kind, next((entry for entry in metadata if isinstance(entry, Range)), Range()), optional
    if get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint) and len(get_args(hint)) == 2:
        (kind,) = (kind for kind in get_args(hint) if kind is not NoneType)
        kind, limits, _ = _parts(kind)
        return kind, limits, True
    return hint, Range(), False
