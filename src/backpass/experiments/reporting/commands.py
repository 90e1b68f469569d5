"""The command that trains a run again."""

import shlex
from dataclasses import fields, is_dataclass
from typing import Any

from backpass.experiments.recipes import RECIPES
from backpass.training.recipe import Run, Runtime

__all__ = ["train_command"]


def train_command(run: Run, runtime: Runtime | None = None) -> str:
    """Return the ``backpass train`` command of a run, on top of the recipe that is nearest to its own.

    Args:
        run: to train.
        runtime: how it is computed; default: as this machine can.

    >>> from dataclasses import replace
    >>> print(train_command(Run(replace(RECIPES["digits"], epochs=2), "sgs+pgt", seed=3)))
    backpass train --recipe digits --method sgs+pgt --seed 3 --epochs 2
    """
    wanted = _options(run.recipe)
    bases = {name: _options(recipe) for name, recipe in RECIPES.items()}
    name = min(bases, key=lambda name: len(_other(wanted, bases[name])))
    options = _other(wanted, bases[name])
    if runtime is not None:
        options |= _other(_options(runtime, "runtime."), _options(Runtime(), "runtime."))
    words = ["backpass", "train", "--recipe", name, "--method", run.method, "--seed", str(run.seed)]
    for key, value in options.items():
        words += _words(key, value)
    return shlex.join(words)


def _options(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Return settings by the names of their options, without dashes in front."""
    options: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            options |= _options(value, f"{prefix}{field.name}.")
        else:
            options[f"{prefix}{field.name}"] = value
    return options


def _other(wanted: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in wanted.items() if value != base[key]}


def _words(key: str, value: Any) -> list[str]:
    name = key.replace("_", "-")
    if isinstance(value, bool):
        group, dot, last = name.rpartition(".")
        return [f"--{name}" if value else f"--{group}{dot}no-{last}"]
    return [f"--{name}", *(_flat(value) if isinstance(value, tuple) else [str(value)])]


def _flat(values: tuple[Any, ...]) -> list[str]:
    return [text for value in values for text in (_flat(value) if isinstance(value, tuple) else [str(value)])]
