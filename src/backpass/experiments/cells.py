"""One cell of a study, a run and the name of its folder, and its form as plain JSON values."""

import dataclasses
import json
import types
from dataclasses import dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from backpass.errors import InputError
from backpass.training.recipe import Run

__all__ = ["Cell", "from_plain", "to_plain"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Cell:
    """What one worker does at a time.

    Attributes:
        run: recipe, method and seed.
        folder: name of the run folder below the study's; it identifies the cell within its study.
    """

    run: Run
    folder: str


def to_plain(value: Any) -> Any:
    """Return a dataclass as it comes back from JSON: dictionaries, lists, numbers, strings and nulls.

    >>> from backpass.training.recipe import Recipe, Run
    >>> to_plain(Run(Recipe(epochs=3), seed=1))["recipe"]["epochs"]
    3
    """
    return json.loads(json.dumps(dataclasses.asdict(value)))


def from_plain(kind: type[_T], value: Any) -> _T:
    """Return the dataclass of type ``kind`` that :func:`to_plain` made ``value`` of.

    Fields follow their annotations: nested dataclasses, tuples (lists in JSON), unions and plain values. A field that
    is left out has its default.

    >>> from backpass.training.recipe import Recipe, Run
    >>> from_plain(Run, to_plain(Run(Recipe(), "sgs"))) == Run(Recipe(), "sgs")
    True

    Raises:
        InputError: ``value`` is not a dictionary, or has a key that ``kind`` does not know.
    """
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(value, dict) or not set(value) <= names:
        found = sorted(set(value) - names) if isinstance(value, dict) else type(value).__name__
        raise InputError(
            f"expected the settings of a {kind.__name__} ({', '.join(sorted(names))}), got {found}; "
            "they were written by another version of backpass"
        )
    hints = get_type_hints(kind)
    return kind(**{name: _convert(hints[name], item) for name, item in value.items()})


def _convert(kind: Any, value: Any) -> Any:
    """Return a JSON value as what the annotation ``kind`` says."""
    if dataclasses.is_dataclass(kind):
        return from_plain(kind, value)  # type: ignore[arg-type]
    if get_origin(kind) in (Union, types.UnionType):
        return _convert(_member(kind, value), value)
    if get_origin(kind) is tuple and isinstance(value, list):
        members = get_args(kind)
        each = [members[0]] * len(value) if members[-1] is Ellipsis else members
        return tuple(_convert(member, item) for member, item in zip(each, value, strict=True))
    return value


def _member(union: Any, value: Any) -> Any:
    """Return the member of a union that a JSON value belongs to; plain values need no conversion."""
    for member in get_args(union):
        if isinstance(value, dict) and dataclasses.is_dataclass(member):
            if {field.name for field in dataclasses.fields(member)} >= set(value):
                return member
        elif isinstance(value, list) and get_origin(member) is tuple:
            return member
    return Any
