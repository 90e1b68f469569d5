"""The report of a study: one static HTML page, and its table in every format."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from backpass.experiments.entry import Entry
from backpass.experiments.record import Record
from backpass.experiments.reporting.figures import learning_curves, scaling_pictures
from backpass.experiments.reporting.statistics import records_of
from backpass.experiments.reporting.tables import (
    ResultTable,
    calibration_table,
    difference_table,
    result_table,
    write_tables,
)
from backpass.experiments.reporting.tuning import tuning_section
from backpass.experiments.study import Study, make_key
from backpass.experiments.tuning import Choice
from backpass.training.checkpoint import atomic_write

__all__ = ["study_of", "write_report"]

_PICTURES = 8


def write_report(study: Study, records: Sequence[Record], folder: Path, choices: Sequence[Choice] = ()) -> ResultTable:
    """Write ``report.html`` and the files of the table into the study's folder; return the table.

    The page is self-contained: table, differences, what tuning has tried, learning curves by model, scalings by layer,
    settings. The scalings shown are those of the first seed of the first eight entries that have any.

    Args:
        study: that the records are of: with tuning, its second stage.
        records: of the study; others are left out.
        folder: of the files.
        choices: what the first stage has chosen.
    """
    keys = {entry.run_key for entry in study.entries}
    records = [record for record in records if record.entry in keys]  # not those of a tuning stage
    table = result_table(study, records)
    write_tables(table, folder)
    runs = {entry.key: list(records_of(entry, records).values()) for entry in study.entries}
    curves: dict[str, dict[str, list[Record]]] = {}
    pictures: list[dict[str, Any]] = []
    for entry in study.entries:
        found = runs[entry.key]
        if not found:
            continue
        curves.setdefault(_subject(found[0]), {})[_name(entry)] = found
        if found[0].scalings and len(pictures) < _PICTURES:
            svg = scaling_pictures(found[0].scalings)
            pictures.append({"name": _name(entry), "seed": found[0].seed, "svg": svg})
    labels = {entry.key: entry.label for entry in study.entries}
    templates = Environment(
        loader=PackageLoader("backpass.experiments.reporting"), autoescape=select_autoescape(["html", "j2"])
    )
    page = templates.get_template("report.html.j2").render(
        table=table,
        differences=difference_table(table.summaries),
        calibration=calibration_table(table.summaries),
        tuning=[tuning_section(choice, labels[choice.entry]) for choice in choices],
        subjects={_subject(record): record for record in reversed(records)},
        curves={subject: learning_curves(by_name) for subject, by_name in curves.items()},
        pictures=pictures,
        settings=_common([_flat(asdict(record.run.recipe)) | _flat(asdict(record.environment)) for record in records]),
    )
    atomic_write(folder / "report.html", page.encode())
    return table


def study_of(records: Sequence[Record]) -> tuple[Study, list[Record]]:
    """Return a study that any records make, and the records with the keys of its entries.

    There is an entry for each recipe and method, compared with plain training by the same recipe.
    """
    recipes = list(dict.fromkeys(record.run.recipe for record in records))
    entries: dict[str, Entry] = {}
    keyed = []
    for record in records:
        recipe, method = record.run.recipe, record.method
        label = method if len(recipes) == 1 else f"recipe {recipes.index(recipe) + 1}, {recipe.model}"
        key = make_key(label) if label == method else make_key(label, method)
        entries.setdefault(key, Entry(key, label, method, recipe))
        keyed.append(replace(record, entry=key))
    for key, entry in entries.items():
        plain = next((e.key for e in entries.values() if e.recipe == entry.recipe and e.method == "plain"), None)
        if entry.method != "plain":
            entries[key] = replace(entry, baseline=plain)
    title = ", ".join(dict.fromkeys(_subject(record) for record in records))
    return Study(title, tuple(entries.values()), tuple(sorted({record.seed for record in records}))), keyed


def _subject(record: Record) -> str:
    return f"{record.model.name} on {record.data.label}"


def _name(entry: Entry) -> str:
    return entry.method if entry.label == entry.method else f"{entry.label}, {entry.method}"


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
