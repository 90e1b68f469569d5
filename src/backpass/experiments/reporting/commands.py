"""The commands that train runs again."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backpass.experiments.recipes import RECIPES
from backpass.experiments.record import Record
from backpass.experiments.settings import settings_by_name
from backpass.experiments.study import run_folder
from backpass.training.recipe import Run, Runtime

__all__ = ["train_command", "train_commands"]


def train_commands(records: Sequence[Record]) -> list[str]:
    """Return the command of each record's run (:func:`train_command`).

    Those of runs that start from the weights of another, and of these, name their folders below ``runs``: given in that
    order, they train both again, if the records name the entries of their study.
    """
    needed = {record.run.recipe.weights.study_run for record in records} - {None}
    commands: list[str] = []
    for record in records:
        folder = run_folder(record.entry, record.seed)
        linked = record.run.recipe.weights.study_run is not None or folder in needed
        out = Path("runs") / folder if linked else None
        commands.append(train_command(record.run, record.environment.runtime, out))
    return commands


def train_command(run: Run, runtime: Runtime | None = None, out: Path | None = None) -> str:
    """Return the ``backpass train`` command of a run, on top of the recipe that is nearest to its own.

    Args:
        run: to train.
        runtime: how it is computed; default: as this machine can.
        out: folder of the run; default: a new one.

    >>> from dataclasses import replace
    >>> print(train_command(Run(replace(RECIPES["digits"], epochs=2), "sgs+pgt", seed=3)))
    backpass train --recipe digits --method sgs+pgt --seed 3 --epochs 2
    """
    wanted = settings_by_name(run.recipe)
    bases = {name: settings_by_name(recipe) for name, recipe in RECIPES.items()}
    name = min(bases, key=lambda name: len(_other(wanted, bases[name])))
    options = _other(wanted, bases[name])
    if runtime is not None:
        options |= _other(settings_by_name(runtime, "runtime."), settings_by_name(Runtime(), "runtime."))
    words = ["backpass", "train", "--recipe", name, "--method", run.method, "--seed", str(run.seed)]
    words += [] if out is None else ["--out", out.as_posix()]
    for key, value in options.items():
        words += _words(key, value)
    return shlex.join(words)


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
