"""The report of a study: one interactive HTML page that needs no network, and its table in every format."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from backpass._internal.paths import AnyPath
from backpass.experiments.entry import Entry
from backpass.experiments.record import Record
from backpass.experiments.reporting.charts import Chart, cost_chart, difference_chart, learning_curves
from backpass.experiments.reporting.commands import train_commands
from backpass.experiments.reporting.metrics import common_label
from backpass.experiments.reporting.run_settings import shared_and_other
from backpass.experiments.reporting.scalings import scalings_view
from backpass.experiments.reporting.statistics import records_of
from backpass.experiments.reporting.tables import (
    ResultTable,
    calibration_table,
    difference_table,
    result_table,
    write_tables,
)
from backpass.experiments.reporting.tuning import TuningSection, trials_so_far, tuning_section
from backpass.experiments.reporting.vega import vega_bundle
from backpass.experiments.study import Study, check_starts, make_key, own_records, run_folder, shared_recipe
from backpass.experiments.tuning import Choice
from backpass.experiments.used_settings import used_recipe
from backpass.training.checkpoint import atomic_write
from backpass.training.recipe import STUDY, Run

__all__ = ["study_of", "write_report"]

_WITH_SCALINGS = 8
_LISTED = 3


def write_report(
    study: Study, records: Sequence[Record], folder: AnyPath, choices: Sequence[Choice] = ()
) -> ResultTable:
    """Write ``report.html`` and the files of the table into the study's folder; return the table.

    The page is one file that loads nothing else: table, differences, what tuning has tried, curves by epoch, accuracy
    against cost, scalings by layer over time, settings, and the command of each run. The scalings are those of the
    first seed of the first eight entries that have any.

    Args:
        study: that the records are of: with tuning, its second stage; or the study itself while its tuning stage has
            not ended, of which the page then shows what was tried.
        records: of the study; others are left out (:func:`~backpass.experiments.study.own_records`).
        folder: of the files, and of the run folders, which tell why a record is missing.
        choices: what the first stage has chosen.
    """
    own, folder = own_records(study, records), Path(folder)
    table = result_table(study, own, folder)
    write_tables(table, folder)
    runs = {entry: found for entry in study.entries if (found := list(records_of(entry, own).values()))}
    subjects = _by_subject(runs)
    groups = {entry.name: found for entry, found in runs.items()} or _by_key(records)
    named = [(name, record) for name, found in groups.items() for record in found]
    commands = train_commands([record for _, record in named])
    metric = common_label(record.metric for _, record in named)
    page = (
        _templates()
        .get_template("report.html.j2")
        .render(
            table=table,
            differences=difference_table(table.summaries),
            difference_chart=_difference_chart(table),
            calibration=calibration_table(table.summaries),
            tuning=_tuning_sections(study, records, choices, folder, metric),
            tuning_ended=study.tuning is None,
            published=any(entry.published is not None for entry in study.entries),
            leads=[_lead(subject, by_name) for subject, by_name in subjects.items()],
            curves={subject: learning_curves(by_name) for subject, by_name in subjects.items()},
            costs={subject: cost_chart(by_name) for subject, by_name in subjects.items()},
            hardware=list(dict.fromkeys(record.hardware for record in own)),
            scalings=_scalings(runs),
            names=list(groups),
            metric=metric,
            recipes=shared_and_other({name: [r.run.recipe for r in found] for name, found in groups.items()}),
            environments=shared_and_other({name: [r.environment for r in found] for name, found in groups.items()}),
            runs=[(name, record, command) for (name, record), command in zip(named, commands, strict=True)],
            linked=any(record.run.recipe.weights.study_run for _, record in named),
            vega=vega_bundle(),
        )
    )
    atomic_write(folder / "report.html", page.encode())
    return table


def _difference_chart(table: ResultTable) -> Chart | None:
    """Return the chart of those differences that have an interval; ``None`` without any."""
    found = {s.name: s.difference for s in table.summaries if s.difference is not None and s.difference.low is not None}
    return difference_chart(found) if found else None


def _tuning_sections(
    study: Study, records: Sequence[Record], choices: Sequence[Choice], folder: Path, metric: str
) -> list[TuningSection]:
    names = {entry.key: entry.name for entry in study.entries}
    if study.tuning is None:
        return [tuning_section(names[choice.entry], metric, choice.trials, choice) for choice in choices]
    tried = trials_so_far(study, records, folder)
    return [tuning_section(entry.name, metric, tried[entry.key]) for entry in study.tuned]


def _scalings(runs: Mapping[Entry, Sequence[Record]]) -> list[dict[str, Any]]:
    views = (scalings_view(f"{entry.name}, seed {found[0].seed}", found[0]) for entry, found in runs.items())
    return list(islice(filter(None, views), _WITH_SCALINGS))


def _by_subject(runs: Mapping[Entry, Sequence[Record]]) -> dict[str, dict[str, Sequence[Record]]]:
    subjects: dict[str, dict[str, Sequence[Record]]] = {}
    for entry, found in runs.items():
        subjects.setdefault(found[0].subject, {})[entry.name] = found
    return subjects


def _lead(subject: str, by_name: Mapping[str, Sequence[Record]]) -> str:
    """Return the size of models, data and training, with every value that not all runs share."""
    runs = [record for found in by_name.values() for record in found]
    splits = {f"{record.data.evaluated:,} {record.data.split}" for record in runs}
    return (
        f"{subject}: {_listed(r.model.parameters for r in runs)} parameters, {_listed(r.model.macs for r in runs)} "
        f"multiply-adds an image; {_listed(r.data.train for r in runs)} training and {' or '.join(sorted(splits))} "
        f"images; {_listed(len(r.history) for r in runs)} epochs."
    )


def _listed(numbers: Iterable[int]) -> str:
    """Return different numbers in order: up to three of them, or the smallest and the largest."""
    *others, last = (f"{number:,}" for number in sorted(set(numbers)))
    if len(others) >= _LISTED:
        return f"{others[0]} to {last}"
    return f"{', '.join(others)} or {last}" if others else last


def _by_key(records: Sequence[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.entry, []).append(record)
    return groups


def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("backpass.experiments.reporting"),
        autoescape=select_autoescape(["html", "j2"]),
        undefined=StrictUndefined,
    )


def study_of(records: Sequence[Record]) -> tuple[Study, list[Record]]:
    """Return a study that any records make, and the records with the keys of its entries.

    There is an entry for each recipe and method, compared with plain training by the same recipe, where settings that a
    method does not use make no difference, nor where the files of the data lie. Of two records of one recipe, method
    and seed the first counts, and a note states how many others there are. A run that starts from another of the
    records, known by its entry, names it by its new key.

    Raises:
        InputError: which training a run starts from is not known (:func:`~backpass.experiments.study.check_starts`).
    """
    check_starts(records)
    own = [used_recipe(record.method, shared_recipe(record.run)) for record in records]
    methods = [record.method for record in records]
    bases = [used_recipe("plain", recipe) for recipe in own]
    several = len(set(zip(methods, own, strict=True))) > len(set(zip(methods, bases, strict=True)))
    numbered = own if several else bases
    recipes = list(dict.fromkeys(numbered))
    labels = [
        method if len(recipes) == 1 else f"recipe {recipes.index(recipe) + 1}, {recipe.model}"
        for method, recipe in zip(methods, numbered, strict=True)
    ]
    keys = [make_key(*dict.fromkeys((label, r.method))) for label, r in zip(labels, records, strict=True)]
    renamed = {record.entry: key for record, key in zip(records, keys, strict=True)}
    entries: dict[str, Entry] = {}
    keyed: dict[tuple[str, int], Record] = {}
    for record, label, key in zip(records, labels, keys, strict=True):
        run = _with_new_start(record.run, renamed)
        run = replace(run, recipe=used_recipe(record.method, run.recipe))
        entries.setdefault(key, Entry(key, label, record.method, shared_recipe(run)))
        keyed.setdefault((key, record.seed), replace(record, entry=key, run=run))
    for key, entry in entries.items():
        if entry.recipe is not None and entry.method != "plain":
            base = used_recipe("plain", entry.recipe)
            plain = (e.key for e in entries.values() if e.recipe == base and e.method == "plain")
            entries[key] = replace(entry, baseline=next(plain, None))
    title = ", ".join(dict.fromkeys(record.subject for record in records))
    seeds = tuple(sorted({record.seed for record in records}))
    again = len(records) - len(keyed)
    notes = (f"left out: {again} more of the same recipes, methods and seeds",) if again else ()
    return Study(title, tuple(entries.values()), seeds, notes, planned=False), list(keyed.values())


def _with_new_start(run: Run, keys: Mapping[str, str]) -> Run:
    """Return the run with the new key of the entry from whose run of the same seed it starts."""
    first = run.recipe.weights.study_run
    key = None if first is None else keys.get(first.removesuffix(run_folder("", run.seed)))
    if key is None:
        return run
    weights = replace(run.recipe.weights, source=STUDY + run_folder(key, run.seed))
    return replace(run, recipe=replace(run.recipe, weights=weights))
