"""What a set of runs is shown as: a table in the terminal, and one static HTML page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from rich.table import Table

from backpass.experiments.figures import learning_curves, scaling_pictures
from backpass.experiments.results import RunResult, Summary, summarize
from backpass.training.checkpoint import atomic_write

__all__ = ["accuracy_table", "write_report"]


def accuracy_table(rows: Sequence[Summary], title: str) -> Table:
    """Return the comparison as a table for the terminal."""
    table = Table(title=title, title_justify="left")
    table.add_column("method")
    for column in ("n", "accuracy, %", "std", "to plain, points", "time to plain", "seconds a run"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.method,
            str(row.n),
            f"{100 * row.mean:.2f}",
            "" if row.std is None else f"{100 * row.std:.2f}",
            "" if row.difference is None else f"{100 * row.difference:+.2f}",
            "" if row.time_ratio is None else f"{row.time_ratio:.2f}",
            f"{row.seconds:.1f}",
        )
    return table


def write_report(results: Sequence[RunResult], path: Path) -> None:
    """Write one self-contained HTML page: accuracy table, learning curves, scalings by layer, settings.

    The scalings shown are those of the first seed of each method that has any.
    """
    first = results[0]
    pictures = []
    for method in dict.fromkeys(result.method for result in results):
        run = next(result for result in results if result.method == method)
        if run.scalings:
            pictures.append({"method": method, "seed": run.seed, "svg": scaling_pictures(run.scalings)})
    templates = Environment(loader=PackageLoader("backpass.experiments"), autoescape=select_autoescape(["html", "j2"]))
    page = templates.get_template("report.html.j2").render(
        title=report_title(results),
        model=first.model,
        data=first.data,
        recipe=first.run["recipe"],
        rows=[row.as_dict() for row in summarize(results)],
        curves=learning_curves(results),
        pictures=pictures,
        settings=_flat(first.run["recipe"]) | _flat(first.environment),
    )
    atomic_write(path, page.encode())


def report_title(results: Sequence[RunResult]) -> str:
    """Return a line that names the model and the data.

    The first result stands for all: a study has one recipe.
    """
    return f"{results[0].model['name']} on {results[0].data['label']}"


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
