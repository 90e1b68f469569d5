"""Recipes with some settings replaced: one by its name, or those that shorten a table."""

import ast
import contextlib
from dataclasses import dataclass, fields, is_dataclass, replace
from types import NoneType
from typing import Any, get_args, get_type_hints

from backpass.errors import InputError
from backpass.training.recipe import Recipe

__all__ = ["Reduction", "replace_setting"]


@dataclass(frozen=True)
class Reduction:
    """What a table is reproduced with in place of its recipes' own; ``None``: as in the recipe.

    Attributes:
        epochs: length of each run; warm-up, cool-down and steps of the schedule shrink in proportion.
        limit_train: number of training images.
        limit_test: number of test images.
        data: name of the data set.
        data_label: what results call the data.
        root: where torchvision's data sets lie or go, and ImageNet lies.
        download: fetch CIFAR when missing.
    """

    epochs: int | None = None
    limit_train: int | None = None
    limit_test: int | None = None
    data: str | None = None
    data_label: str | None = None
    root: str | None = None
    download: bool = False

    def apply(self, recipe: Recipe) -> Recipe:
        """Return the recipe with these settings."""
        images = {
            "name": self.data,
            "label": self.data_label,
            "root": self.root,
            "limit_train": self.limit_train,
            "limit_test": self.limit_test,
            "download": self.download or None,
        }
        given: dict[str, Any] = {key: value for key, value in images.items() if value is not None}
        recipe = replace(recipe, data=replace(recipe.data, **given))
        if self.epochs is None:
            return recipe
        share, schedule = self.epochs / recipe.epochs, recipe.schedule
        schedule = replace(
            schedule,
            warmup_epochs=share * schedule.warmup_epochs,
            cooldown_epochs=share * schedule.cooldown_epochs,
            step_epochs=share * schedule.step_epochs,
        )
        return replace(recipe, epochs=self.epochs, schedule=schedule)

    def notes(self) -> tuple[str, ...]:
        """Return what is not as in the paper, in words; where the files lie is of no matter."""
        names = {
            "epochs": "epochs",
            "limit_train": "training images",
            "limit_test": "test images",
            "data": "data",
            "data_label": "data",
        }
        shown = {names[key]: value for key, value in vars(self).items() if key in names and value is not None}
        return tuple(f"not as in the paper: {name} {value}" for name, value in shown.items())


def replace_setting(settings: Any, key: str, value: Any) -> Any:
    """Return the recipe with the setting at a dotted key replaced; a text is read as the setting's type.

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
        raise InputError(f"{head!r} is a single setting, it has no {rest!r}")
    if not rest and is_dataclass(present):
        inner = ", ".join(f"{head}.{field.name}" for field in fields(present))
        raise InputError(f"{head!r} is a group of settings; expected one of {inner}")
    new = replace_setting(present, rest, value) if rest else _as_type(_type_of(settings, head), value, head)
    return replace(settings, **{head: new})


def _type_of(settings: Any, name: str) -> type:
    """Return the type of the present value; where there is none, what the annotation ``X | None`` allows beside it."""
    present = getattr(settings, name)
    if present is not None:
        return type(present)
    (kind,) = {*get_args(get_type_hints(type(settings))[name])} - {NoneType}
    return kind  # type: ignore[no-any-return]


def _as_type(kind: type, value: Any, name: str) -> Any:
    if isinstance(value, str) and kind is not str:
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if value is not None and type(value) is not kind:
        raise InputError(f"expected {name} to be of type {kind.__name__}, got {value!r}")
    return value
