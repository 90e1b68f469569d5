"""The settings of all runs of a report: those that they share, and those in which they differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from backpass.experiments.record import Record
from backpass.experiments.settings import settings_by_name

__all__ = ["environments", "recipes", "shared_and_other"]

_SEVERAL = "several"


def recipes(groups: Mapping[str, Sequence[Record]]) -> dict[str, list[dict[str, Any]]]:
    """Return the recipes of each group of runs, with dotted names."""
    return {name: [settings_by_name(record.run.recipe) for record in group] for name, group in groups.items()}


def environments(groups: Mapping[str, Sequence[Record]]) -> dict[str, list[dict[str, Any]]]:
    """Return the environments of each group of runs, with dotted names."""
    return {name: [settings_by_name(record.environment) for record in group] for name, group in groups.items()}


def shared_and_other(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return the settings that all runs share, and the values of the others, one for each group.

    Args:
        groups: settings of each run by group.

    >>> shared_and_other({"plain": [{"lr": 0.1, "epochs": 2}], "sgs": [{"lr": 0.2, "epochs": 2}]})
    ({'epochs': '2'}, {'lr': ['0.1', '0.2']})
    """
    runs = [run for group in groups.values() for run in group]
    keys = dict.fromkeys(key for run in runs for key in run)
    shared, other = {}, {}
    for key in keys:
        by_group = [[_text(run.get(key)) for run in group] for group in groups.values()]
        texts = {text for group in by_group for text in group}
        if len(texts) == 1:
            shared[key] = texts.pop()
        else:
            other[key] = [group[0] if len(set(group)) == 1 else _SEVERAL for group in by_group]
    return shared, other


def _text(value: Any) -> str:
    return "" if value in (None, ()) else str(value)
