"""Records in groups: the runs of one training that differ in the seed alone, with a label that tells them apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backpass.errors import InputError
from backpass.experiments.record import Record
from backpass.experiments.reporting.metrics import label_of
from backpass.experiments.settings import settings_by_name
from backpass.experiments.study import check_starts, shared_recipe
from backpass.experiments.used_settings import uses

__all__ = ["Group", "group_records", "layers_shown", "mean_of", "settings_apart", "shared_names"]


@dataclass(frozen=True)
class Group:
    """The runs of one training over several seeds.

    Attributes:
        label: what tells it apart from the other groups: method, then model and settings where these differ.
        subject: model and data set.
        method: the method's name.
        settings: of the recipe, by dotted name, without those that the method does not use.
        records: one for each seed, ordered by seed.
    """

    label: str
    subject: str
    method: str
    settings: dict[str, Any]
    records: tuple[Record, ...]

    @property
    def metric(self) -> str:
        """What the headline metric is called."""
        return label_of(self.records[0].metric)

    @property
    def parts(self) -> list[str]:
        """The methods that the method is made of."""
        return [] if self.method == "plain" else self.method.split("+")

    @property
    def without_sgs(self) -> tuple[Any, ...]:
        """What it shares with the same training without SGS: model, data set, other methods, and settings."""
        settings = ((name, value) for name, value in self.settings.items() if not name.startswith("sgs."))
        return self.subject, frozenset(self.parts) - {"sgs"}, *settings


def group_records(records: Sequence[Record]) -> list[Group]:
    """Return the records in groups: plain training first, then in the order of their first records.

    Of two records of one training with the same seed the first counts.

    Raises:
        InputError: which training a run starts from is not known (:func:`~backpass.experiments.study.check_starts`).
    """
    check_starts(records)
    found: dict[tuple[Any, ...], dict[int, Record]] = {}
    for record in records:
        key = (record.subject, record.method, tuple(settings_of(record).items()))
        found.setdefault(key, {}).setdefault(record.seed, record)
    groups = [
        Group("", subject, method, dict(settings), tuple(runs[seed] for seed in sorted(runs)))
        for (subject, method, settings), runs in found.items()
    ]
    groups.sort(key=lambda group: group.method != "plain")
    return [Group(_label(g, groups), g.subject, g.method, g.settings, g.records) for g in groups]


def settings_of(record: Record) -> dict[str, Any]:
    """Return the settings that the run's method uses, by dotted name."""
    settings = settings_by_name(shared_recipe(record.run))
    return {name: value for name, value in settings.items() if uses(record.method, name)}


def _label(group: Group, groups: Sequence[Group]) -> str:
    words = [group.method]
    if len({other.subject for other in groups}) > 1:
        words.append(group.subject)
    alike = [other for other in groups if (other.subject, other.method) == (group.subject, group.method)]
    return ", ".join([*words, *settings_apart(group.settings, [other.settings for other in alike])])


def settings_apart(settings: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the settings that are not the same in all others, such as ``k = 2.0``."""
    return [
        f"{name.removeprefix('sgs.').removeprefix('pgt.')} = {value}"
        for name, value in settings.items()
        if any(other.get(name) != value for other in others)
    ]


def mean_of(values: Sequence[Any]) -> Tensor:
    """Return the mean of nested lists of one shape, one for each run."""
    return torch.stack([torch.tensor(value) for value in values]).mean(0)


def shared_names(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names that all runs of a group have for values of one shape: DyRep grows another form in each run."""
    first, *others = ({name: torch.tensor(value).shape for name, value in run.items()} for run in runs)
    return [name for name, shape in first.items() if all(other.get(name) == shape for other in others)]


def layers_shown(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Return the layers of a figure: those wanted or, by default, the first, the middle and the last one.

    Raises:
        InputError: a wanted layer is not among the names.
    """
    if not wanted:
        return list(dict.fromkeys([names[0], names[len(names) // 2], names[-1]]))
    full = {name.removesuffix(".weight"): name for name in names} | {name: name for name in names}
    if unknown := [name for name in wanted if name not in full]:
        raise InputError(f"expected layers among {', '.join(names)}, got {', '.join(unknown)}; choose from these")
    return [full[name] for name in wanted]
