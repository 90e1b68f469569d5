"""What a study would run, entry by entry, next to the published numbers."""

from typing import Any

from rich.table import Table as RichTable

from backpass.experiments.entry import Published
from backpass.experiments.reporting.terminal import terminal_table
from backpass.experiments.stages import count_runs, count_tuning_runs
from backpass.experiments.study import Study

__all__ = ["planned_runs", "planned_table"]


def planned_runs(study: Study) -> list[dict[str, Any]]:
    """Return a dictionary for each entry: key, label, method, baseline, search space, runs, published numbers, note."""
    counts = {entry.key: 0 for entry in study.entries}
    for run in study.runs():
        counts[run.entry] += 1
    tuning = study.tuning
    return [
        {
            "key": entry.key,
            "label": entry.label,
            "method": entry.method,
            "baseline": entry.baseline,
            "tuning_runs": 0 if tuning is None or not entry.tuned else count_tuning_runs(entry, tuning),
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
    planned = planned_runs(study)
    notes = dict.fromkeys([*study.notes, *(entry.note for entry in study.entries if entry.note)])
    columns = {
        "entry": [entry.label for entry in study.entries],
        "method": [entry.method for entry in study.entries],
        "tuning runs": [str(line["tuning_runs"] or "") for line in planned],
        "runs": [_runs(line) for line in planned],
        "published": [str(entry.published or "") for entry in study.entries],
        cost_unit or "cost": [_extra(entry.published, "cost") for entry in study.entries],
        f"FLOPs, {flops_unit}": [_extra(entry.published, "flops") for entry in study.entries],
        "params, M": [_extra(entry.published, "params") for entry in study.entries],
    }
    kept = {name: texts for name, texts in columns.items() if any(texts)}
    rows = zip(*kept.values(), strict=True)
    return terminal_table(f"{study.title}: {count_runs(study)} runs", notes, tuple(kept), rows)


def _runs(planned: dict[str, Any]) -> str:
    return f"of {planned['runs_of']}" if planned["runs_of"] else str(planned["runs"])


def _extra(published: Published | None, name: str) -> str:
    value = None if published is None else getattr(published, name)
    return "" if value is None else f"{value:g}"
