"""Typed settings as JSON and back, checked field by field on reading."""

from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from backpass.errors import InputError

__all__ = ["from_json", "read_json", "to_json"]

_T = TypeVar("_T")
_SHOWN = 5


def to_json(value: Any) -> str:
    """Return a dataclass as indented JSON.

    >>> from backpass.training.recipe import PgtSettings
    >>> print(to_json(PgtSettings(alpha=0.25)))
    {
     "alpha": 0.25
    }
    """
    text: str = TypeAdapter(type(value)).dump_json(value, indent=1).decode()
    return text


def from_json(kind: type[_T], text: str | bytes, source: str) -> _T:
    """Return the dataclass of type ``kind`` that a JSON text describes.

    Types are strict: a number in quotes is not a number. A field that is left out has its default.

    Args:
        kind: a dataclass; nested dataclasses, tuples, unions and literals are followed.
        text: JSON.
        source: what the text is, for the error: a path, or "the queue's run".

    Raises:
        InputError: not JSON, an unknown field, or a value of the wrong type or out of range, named with its path.

    >>> from backpass.training.recipe import Recipe, Run
    >>> from_json(Run, to_json(Run(Recipe(), "sgs")), "here") == Run(Recipe(), "sgs")
    True
    """
    value: _T
    try:
        (value,) = _adapter(cast(Hashable, kind)).validate_json(
            b"[" + (text if isinstance(text, bytes) else text.encode()) + b"]"
        )
    except ValidationError as error:
        problems = [_problem(found) for found in error.errors()]
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise InputError(
            f"{source}: expected a {kind.__name__} as this version of backpass writes it, got "
            f"{'; '.join(problems[:_SHOWN])}{more}; remove or mend it"
        ) from error
    except ValueError as error:  # more than one JSON value
        raise InputError(f"{source}: expected one {kind.__name__} in JSON, got more; correct the file") from error
    return value


def read_json(kind: type[_T], path: Path) -> _T | None:
    """Return the dataclass in a JSON file; ``None`` where there is no file.

    Raises:
        InputError: it cannot be read, or see :func:`from_json`.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"expected a readable file at {path}, got {error}; check its permissions") from error
    return from_json(kind, text, str(path))


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    # In a list, since only then the configuration reaches plain dataclasses.
    return TypeAdapter(list[kind], config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))


def _problem(found: Any) -> str:
    path = ".".join(map(str, found["loc"][1:])) or "the text"
    if found["type"] == "missing":
        return f"no {path}"
    if found["type"] == "value_error":  # of a check of ours, which names the setting itself
        return str(found["ctx"]["error"])
    shown = repr(found["input"])
    return f"{path} = {shown[:60]}{'...' if len(shown) > 60 else ''} ({found['msg']})"
