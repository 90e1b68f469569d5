"""What a study leaves for people: one static HTML page, and its table in every format."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from backpass.experiments.cells import from_plain
from backpass.experiments.figures import learning_curves, scaling_pictures
from backpass.experiments.plan import Line, Plan
from backpass.experiments.results import RunResult
from backpass.experiments.statistics import runs_of
from backpass.experiments.tables import ResultTable, result_table, write_tables
from backpass.training.checkpoint import atomic_write
from backpass.training.recipe import Recipe

__all__ = ["plan_of", "write_report"]

_PICTURES = 8


def write_report(plan: Plan, results: Sequence[RunResult], folder: Path) -> ResultTable:
    """Write ``report.html`` and the files of the table into the study folder; return the table.

    The page is self-contained: table, learning curves by model, scalings by layer, settings. The scalings shown are
    those of the first seed of the first eight lines that have any.
    """
    table = result_table(plan, results)
    write_tables(table, folder)
    runs = {line: found for line in plan.lines if (found := list(runs_of(line, results).values()))}
    curves: dict[str, dict[str, list[RunResult]]] = {}
    pictures: list[dict[str, Any]] = []
    for line, found in runs.items():
        curves.setdefault(_subject(found[0]), {})[_name(line)] = found
        if found[0].scalings and len(pictures) < _PICTURES:
            svg = scaling_pictures(found[0].scalings)
            pictures.append({"name": _name(line), "seed": found[0].seed, "svg": svg})
    templates = Environment(loader=PackageLoader("backpass.experiments"), autoescape=select_autoescape(["html", "j2"]))
    page = templates.get_template("report.html.j2").render(
        table=table,
        subjects={_subject(result): result for result in reversed(results)},
        curves={subject: learning_curves(by_name) for subject, by_name in curves.items()},
        pictures=pictures,
        settings=_common([_flat(result.run["recipe"]) | _flat(result.environment) for result in results]),
    )
    atomic_write(folder / "report.html", page.encode())
    return table


def plan_of(results: Sequence[RunResult]) -> Plan:
    """Return the plan that a set of results amounts to: a line for each recipe and method, held against plain."""
    keys = list(dict.fromkeys((json.dumps(result.run["recipe"]), result.method) for result in results))
    recipes = list(dict.fromkeys(recipe for recipe, _ in keys))
    lines = []
    for recipe, method in keys:
        settings = from_plain(Recipe, json.loads(recipe))
        label = method if len(recipes) == 1 else f"recipe {recipes.index(recipe) + 1}, {settings.model}"
        plain = keys.index((recipe, "plain")) if method != "plain" and (recipe, "plain") in keys else None
        lines.append(Line(label, method, settings, plain))
    title = ", ".join(dict.fromkeys(_subject(result) for result in results))
    return Plan(title, tuple(lines), tuple(sorted({result.seed for result in results})))


def _subject(result: RunResult) -> str:
    return f"{result.model['name']} on {result.data['label']}"


def _name(line: Line) -> str:
    return line.method if line.label == line.method else f"{line.label}, {line.method}"


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _common(settings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the settings of the first run, those that other runs have otherwise as "differs"."""
    return {
        key: value if all(other.get(key) == value for other in settings) else "differs"
        for key, value in settings[0].items()
    }
