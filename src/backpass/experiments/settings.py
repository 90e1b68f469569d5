"""Settings by their dotted names: read, and replaced in a recipe."""

import ast
import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from types import NoneType
from typing import Any, get_args, get_type_hints

from backpass._internal.settings import plain
from backpass.errors import InputError

__all__ = ["replace_setting", "replace_settings", "settings_by_name"]


def settings_by_name(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings, dataclasses or dictionaries, by their dotted names, each after ``prefix``.

    >>> settings_by_name({"lr": 0.1, "sgs": {"k": 5.0}})
    {'lr': 0.1, 'sgs.k': 5.0}
    """
    if is_dataclass(settings):
        settings = {field.name: getattr(settings, field.name) for field in fields(settings)}
    found: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, Mapping) or is_dataclass(value)
        found |= settings_by_name(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return found


def replace_settings(settings: Any, values: Iterable[tuple[str, Any]]) -> Any:
    """Return the recipe with several settings replaced.

    Args:
        settings: a recipe.
        values: a dotted key and its value; or several keys joined by commas, and a value with a part for each: a tuple,
            or a text such as ``5,10``.

    >>> from backpass.training.recipe import Recipe
    >>> sgs = replace_settings(Recipe(), [("sgs.alpha,sgs.beta", "5,10")]).sgs
    >>> sgs.alpha, sgs.beta
    (5.0, 10.0)

    Raises:
        InputError: there is no such setting, or a value does not fit.
    """
    for key, value in values:
        keys = key.split(",")
        parts = (value,) if len(keys) == 1 else value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, (tuple, list)) or len(parts) != len(keys):
            raise InputError(
                f"expected a value for each of {key}, joined by commas as in '5,10', got {value!r}; give as many parts"
            )
        for name, part in zip(keys, parts, strict=True):
            settings = replace_setting(settings, name, part.strip() if isinstance(part, str) else part)
    return settings


def replace_setting(settings: Any, key: str, value: Any) -> Any:
    """Return the recipe with the setting at a dotted key replaced; a text is read as the setting's type.

    >>> from backpass.training.recipe import Recipe
    >>> replace_setting(Recipe(), "sgs.k", "3").sgs.k
    3.0
    >>> replace_setting(Recipe(), "sgs.alpha", "1").sgs.alpha
    1.0

    Raises:
        InputError: there is no such setting, or the value does not fit.
    """
    head, _, rest = key.partition(".")
    names = [field.name for field in fields(settings)]
    if head not in names:
        raise InputError(f"unknown setting {head!r} of {type(settings).__name__}; expected one of {', '.join(names)}")
    present = getattr(settings, head)
    if rest and not is_dataclass(present):
        raise InputError(f"{head!r} is a single setting, it has no {rest!r}; leave the part after the dot out")
    if not rest and is_dataclass(present):
        inner = ", ".join(f"{head}.{field.name}" for field in fields(present))
        raise InputError(f"{head!r} is a group of settings; expected one of {inner}")
    new = replace_setting(present, rest, value) if rest else _as_type(_type_of(settings, head), value, head)
    return replace(settings, **{head: new})


def _type_of(settings: Any, name: str) -> type:
    """Return the type of the present value; where there is none, the other type of the annotation ``X | None``."""
    present = getattr(settings, name)
    if present is not None:
        return type(present)
    (kind,) = {*get_args(get_type_hints(type(settings))[name])} - {NoneType}
    return kind  # type: ignore[no-any-return]


def _as_type(kind: type, value: Any, name: str) -> Any:
    value = plain(value)
    if isinstance(value, str) and kind is not str:
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if value is not None and type(value) is not kind:
        raise InputError(f"expected {name} to be of type {kind.__name__}, got {value!r}; give a value of this type")
    return value
