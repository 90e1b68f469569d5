"""What a study would run, entry by entry, next to the published numbers."""

from typing import Any

from rich.table import Table as RichTable

from backpass.experiments.entry import Published
from backpass.experiments.reporting.terminal import terminal_table
from backpass.experiments.sampling import planned_points
from backpass.experiments.stages import count_runs, runs_of_points
from backpass.experiments.study import Study

__all__ = ["planned_runs", "planned_table"]


def planned_runs(study: Study) -> list[dict[str, Any]]:
    """Return a dictionary for each entry: key, label, method, baseline, search space, runs, published numbers, note."""
    counts = {entry.key: 0 for entry in study.entries}
    for run in study.runs():
        counts[run.entry] += 1
    tuning = study.tuning
    tried = {
        entry.key: runs_of_points(planned_points(entry.space, tuning), tuning)
        for entry in study.entries
        if entry.tuned and tuning is not None
    }
    return [
        {
            "key": entry.key,
            "label": entry.label,
            "method": entry.method,
            "baseline": entry.baseline,
            "tuning_runs": tried.get(entry.key, 0),
            "space": dict(entry.space),
            "runs": counts[entry.key],
            "runs_of": entry.runs_of,
            "published": None if entry.published is None else vars(entry.published),
            "note": entry.note,
        }
        for entry in study.entries
    ]


def planned_table(study: Study, *, cost_unit: str = "", flops_unit: str = "") -> RichTable:
    """Return the same for the terminal.

    Args:
        study: what would be run.
        cost_unit: of the published costs.
        flops_unit: of the published multiply-adds.
    """
    total = count_runs(study)
    notes = dict.fromkeys([*study.notes, *(entry.note for entry in study.entries if entry.note)])
    columns = {
        "entry": [entry.label for entry in study.entries],
        "method": [entry.method for entry in study.entries],
        "tuning runs": [str(planned["tuning_runs"] or "") for planned in planned_runs(study)],
        "runs": [_runs(planned) for planned in planned_runs(study)],
        "published": [str(entry.published or "") for entry in study.entries],
        cost_unit or "cost": [_extra(entry.published, "cost") for entry in study.entries],
        f"FLOPs, {flops_unit}": [_extra(entry.published, "flops") for entry in study.entries],
        "params, M": [_extra(entry.published, "params") for entry in study.entries],
    }
    kept = {name: texts for name, texts in columns.items() if any(texts)}
    rows = zip(*kept.values(), strict=True)
    return terminal_table(f"{study.title}: {total} runs", notes, tuple(kept), rows)


def _runs(planned: dict[str, Any]) -> str:
    return f"of {planned['runs_of']}" if planned["runs_of"] else str(planned["runs"])


def _extra(published: Published | None, name: str) -> str:
    value = None if published is None else getattr(published, name)
    return "" if value is None else f"{value:g}"
