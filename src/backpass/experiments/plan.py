"""What a study is to run and how its table reads: lines times seeds, as plain data."""

import fnmatch
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backpass.errors import InputError
from backpass.experiments.cells import Cell, from_plain, to_plain
from backpass.experiments.overrides import Reduction, replace_setting
from backpass.experiments.recipes.sgs import ALPHA_BETA_GRID, K_GRID
from backpass.experiments.recipes.table import Row, Table
from backpass.training.checkpoint import atomic_write
from backpass.training.methods import check_method
from backpass.training.recipe import Recipe, Run

__all__ = [
    "SEARCHES",
    "Line",
    "Plan",
    "compare_plan",
    "read_plan",
    "search_plan",
    "table_plan",
    "write_plan",
]

# The grid for alpha of PGT is ours, around the published 0.25 and 0.3.
SEARCHES: dict[str, tuple[Any, ...]] = {
    "sgs.k": K_GRID,
    "sgs.alpha,sgs.beta": ALPHA_BETA_GRID,
    "pgt.alpha": (0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75),
}


@dataclass(frozen=True)
class Line:
    """One line of a study's table.

    Attributes:
        label: what the line is called; unique together with the method.
        method: the method.
        recipe: the recipe that it is run with; ``None``: shown beside the others and not run.
        baseline: index of the line that it is held against; ``None``: of none.
        paper: the paper's accuracy as a fraction; ``None``: not at hand.
    """

    label: str
    method: str
    recipe: Recipe | None
    baseline: int | None = None
    paper: float | None = None


@dataclass(frozen=True)
class Plan:
    """A study: every line with every seed, and the words around its table.

    Attributes:
        title: of the table.
        lines: of the table.
        seeds: of each line.
        notes: what a reader must know, such as what is not as in the paper.
    """

    title: str
    lines: tuple[Line, ...]
    seeds: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def cells(self) -> list[Cell]:
        """Return the cells, lines in turn within a seed, so that drift is shared and a table fills evenly."""
        names = _folder_names(self.lines)
        return [
            Cell(Run(line.recipe, line.method, seed), f"{name}-seed{seed}")
            for seed in self.seeds
            for line, name in zip(self.lines, names, strict=True)
            if line.recipe is not None
        ]


def compare_plan(recipe: Recipe, methods: Sequence[str], seeds: Sequence[int]) -> Plan:
    """Return the comparison of methods on one recipe, each held against ``plain`` where that is among them.

    Raises:
        InputError: no method or seed, or an unknown method.
    """
    if not methods or not seeds:
        raise InputError(f"expected at least one method and one seed, got {list(methods)} and {list(seeds)}")
    for method in methods:
        check_method(method)
    plain = methods.index("plain") if "plain" in methods else None
    lines = [Line(m, m, recipe, baseline=None if m == "plain" else plain) for m in dict.fromkeys(methods)]
    return Plan(_title(recipe), tuple(lines), tuple(dict.fromkeys(seeds)))


def search_plan(
    key: str,
    recipe: Recipe,
    seeds: Sequence[int],
    *,
    values: Sequence[Any] = (),
    method: str | None = None,
    validation: float = 0.2,
) -> Plan:
    """Return the search for one setting: a line for each value, judged on images held out of the training set.

    Args:
        key: dotted name of a setting of the recipe, such as ``sgs.k``, or several joined by commas:
            ``sgs.alpha,sgs.beta``.
        recipe: all other settings.
        seeds: of each value.
        values: to try; by default those of :data:`SEARCHES`. With several keys, each has a part for every key: a tuple,
            or a text such as ``0.5,0.25``.
        method: by default the one that the key belongs to, or ``plain``.
        validation: share of the training images to judge on.

    Raises:
        InputError: an unknown key, method or value, no seed, or no values for a key without a grid of its own.
    """
    if not seeds:
        raise InputError("expected at least one seed, got none")
    recipe = replace(recipe, data=replace(recipe.data, validation=validation))
    recipes: dict[str, Recipe] = {}
    for value in tuple(values) or SEARCHES.get(key, ()):
        chosen, settings = _by_key(key, value), recipe
        for name, part in chosen.items():
            settings = replace_setting(settings, name, part)
        recipes[", ".join(f"{name} = {part}" for name, part in chosen.items())] = settings
    if not recipes:
        raise InputError(f"expected values to try for {key!r}; only {'; '.join(SEARCHES)} have a grid of their own")
    family = key.partition(".")[0]
    method = method or (family if family in ("sgs", "pgt", "agc") else "plain")
    check_method(method)
    lines = [] if method == "plain" else [Line("plain", "plain", recipe)]
    baseline = 0 if lines else None
    lines += [Line(label, method, settings, baseline) for label, settings in recipes.items()]
    notes = (f"accuracy on {100 * validation:g} % of the training images, held out",)
    return Plan(f"{key}, {_title(recipe)}", tuple(lines), tuple(dict.fromkeys(seeds)), notes)


def table_plan(
    table: Table, seeds: Sequence[int], *, reduction: Reduction | None = None, rows: Sequence[str] = ()
) -> Plan:
    """Return the reproduction of a paper's table: each row's baseline, its method and its peers.

    A baseline that several rows share is run once. Rows that are not chosen are shown and not run.

    Args:
        table: the table.
        seeds: of each run.
        reduction: what is not as in the paper.
        rows: labels of the rows to run, or patterns such as ``VGG*``; by default all.

    Raises:
        InputError: no seed, or a pattern that fits no row.
    """
    if not seeds:
        raise InputError("expected at least one seed, got none")
    reduction = reduction or Reduction()
    for pattern in rows:
        if not any(fnmatch.fnmatchcase(row.label, pattern) for row in table.rows):
            labels = ", ".join(repr(row.label) for row in table.rows)
            raise InputError(f"no row of {table.name} is called {pattern!r}; expected one of {labels}")
    lines: list[Line] = []
    baselines: dict[Run, int] = {}
    for row in table.rows:
        chosen = not rows or any(fnmatch.fnmatchcase(row.label, pattern) for pattern in rows)

        def line(method: str, baseline: int | None = None, *, chosen: bool = chosen, row: Row = row) -> Line:
            recipe = reduction.apply(row.run(method, 0).recipe) if chosen else None
            return Line(row.label, method, recipe, baseline, _fraction(row.published(method)))

        twin = row.run(row.baseline, 0)
        if twin in baselines and lines[baselines[twin]].recipe is not None:
            shared = baselines[twin]
            lines[shared] = replace(lines[shared], label="all rows")
        else:
            baselines[twin] = len(lines)
            lines.append(line(row.baseline))
        lines.append(line(row.method, baselines[twin]))
        lines += [line(peer, baselines[twin]) for peer, _ in row.peers]
    notes = (f"paper: {table.seeds}", *reduction.notes())
    return Plan(f"{table.title} ({table.name})", tuple(lines), tuple(dict.fromkeys(seeds)), notes)


def write_plan(plan: Plan, folder: Path) -> None:
    """Write the plan as ``study.json`` of the study folder, atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "study.json", json.dumps(to_plain(plan), indent=1).encode())


def read_plan(folder: Path) -> Plan | None:
    """Return the plan in the study folder, or ``None`` where there is none.

    Raises:
        InputError: it cannot be read.
    """
    path = folder / "study.json"
    if not path.is_file():
        return None
    try:
        return from_plain(Plan, json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is not a readable plan of a study: {error}") from error


def _by_key(key: str, value: Any) -> dict[str, Any]:
    """Return the part of the value that belongs to each of the keys that ``key`` joins by commas."""
    keys = key.split(",")
    if len(keys) == 1:
        return {key: value}
    parts = tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value
    if not isinstance(parts, tuple) or len(parts) != len(keys):
        raise InputError(f"expected a value for each of {key}, joined by commas as in '0.5,0.25', got {value!r}")
    return dict(zip(keys, parts, strict=True))


def _title(recipe: Recipe) -> str:
    return f"{recipe.model} on {recipe.data.label or recipe.data.name}"


def _fraction(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


def _folder_names(lines: Sequence[Line]) -> list[str]:
    """Return a name for each line that is one in any file system."""
    names: list[str] = []
    for line in lines:
        text = line.label if line.label == line.method else f"{line.label}-{line.method}"
        slug = re.sub(r"[^A-Za-z0-9.+_=]+", "-", text).strip("-")
        names.append(f"{slug}-{len(names)}" if slug in names else slug)
    return names
