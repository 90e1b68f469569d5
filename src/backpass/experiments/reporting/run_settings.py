"""The settings of all runs of a report: those that they share, and those in which they differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from backpass.experiments.settings import settings_by_name

__all__ = ["shared_and_other"]

_SEVERAL = "several"


def shared_and_other(groups: Mapping[str, Sequence[Any]]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return the settings that all runs share, and the values of the others, one for each group, by dotted name.

    Args:
        groups: recipe or environment of each run by group.

    >>> shared_and_other({"plain": [{"lr": 0.1, "epochs": 2}], "sgs": [{"lr": 0.2, "epochs": 2}]})
    ({'epochs': '2'}, {'lr': ['0.1', '0.2']})
    """
    by_name = [[settings_by_name(settings) for settings in group] for group in groups.values()]
    keys = dict.fromkeys(key for group in by_name for run in group for key in run)
    shared, other = {}, {}
    for key in keys:
        by_group = [[_text(run.get(key)) for run in group] for group in by_name]
        texts = {text for group in by_group for text in group}
        if len(texts) == 1:
            shared[key] = texts.pop()
        else:
            other[key] = [group[0] if len(set(group)) == 1 else _SEVERAL for group in by_group]
    return shared, other


def _text(value: Any) -> str:
    return "" if value in (None, ()) else str(value)
