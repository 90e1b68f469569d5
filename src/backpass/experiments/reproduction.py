"""A reproduction: a published table as a study, at its full size or shortened."""

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from backpass._internal.settings import COUNT, check_settings
from backpass.errors import InputError
from backpass.experiments.study import Study
from backpass.experiments.tables.table import Table
from backpass.training.recipe import Recipe

__all__ = ["Reduction", "table_study"]


@dataclass(frozen=True)
class Reduction:
    """What differs from a table's own recipes; ``None``: as in the recipe.

    Attributes:
        epochs: length of each run; warm-up, cool-down and steps of the schedule shrink in proportion.
        limit_train: number of training images; of those that pretraining has, none is left out.
        limit_test: number of test images.
        data: name of the data set, with its path, such as ``imagenet:PATH``.
        pretraining_data: name of the data set of pretraining, with its path, in a table that has pretraining.
        data_label: name of the data in results.
        root: folder that holds the files, for a data set whose name has no path.
        download: download CIFAR when it is missing.
        image_size: side in pixels to which images of a folder of photographs are cropped.

    Raises:
        InputError: a setting is out of range.
    """

    epochs: Annotated[int, COUNT] | None = None
    limit_train: Annotated[int, COUNT] | None = None
    limit_test: Annotated[int, COUNT] | None = None
    data: str | None = None
    pretraining_data: str | None = None
    data_label: str | None = None
    root: str | None = None
    download: bool = False
    image_size: Annotated[int, COUNT] | None = None

    def __post_init__(self) -> None:
        """Check the range of every setting."""
        check_settings(self)

    def apply(self, recipe: Recipe, pretraining: bool = False) -> Recipe:
        """Return the recipe with these settings; one of pretraining takes ``epochs`` and ``pretraining_data`` alone."""
        images = {
            "name": self.data,
            "label": self.data_label,
            "root": self.root,
            "limit_train": self.limit_train,
            "limit_test": self.limit_test,
            "download": self.download or None,
            "image_size": self.image_size,
        }
        if pretraining:
            images = {"name": self.pretraining_data}
        given: dict[str, Any] = {key: value for key, value in images.items() if value is not None}
        recipe = replace(recipe, data=replace(recipe.data, **given))
        if self.epochs is None:
            return recipe
        fraction, schedule = self.epochs / recipe.epochs, recipe.schedule
        schedule = replace(
            schedule,
            warmup_epochs=fraction * schedule.warmup_epochs,
            cooldown_epochs=fraction * schedule.cooldown_epochs,
            step_epochs=fraction * schedule.step_epochs,
            milestones=tuple(fraction * milestone for milestone in schedule.milestones),
        )
        return replace(recipe, epochs=self.epochs, schedule=schedule)

    def notes(self, recipes: Iterable[Recipe] = (), pretraining: Iterable[Recipe] = ()) -> tuple[str, ...]:
        """Return what is not as in the paper, in words; where the files lie does not matter.

        Args:
            recipes: those of the paper.
            pretraining: those of its pretraining.
        """
        names = {
            "epochs": "epochs",
            "limit_train": "training images",
            "limit_test": "test images",
            "data": "data",
            "pretraining_data": "pretraining data",
            "data_label": "data",
            "image_size": "pixels a side",
        }
        given = {key: value for key, value in vars(self).items() if key in names and value is not None}
        for key, own in (("data", recipes), ("pretraining_data", pretraining)):
            if key in given and {_kind(recipe.data.name) for recipe in own} == {_kind(given[key])}:
                del given[key]
        shown = {names[key]: value for key, value in given.items()}
        return tuple(f"not as in the paper: {name} {value}" for name, value in shown.items())


def _kind(name: str) -> str:
    """Return the name of a data set without the path of its files."""
    return name.partition(":")[0]


def table_study(
    table: Table, seeds: Sequence[int] | None = None, *, reduction: Reduction | None = None, entries: Sequence[str] = ()
) -> Study:
    """Return the reproduction of a published table.

    Entries that are not chosen, and those that cannot be run, are shown with the paper's numbers and not run. A chosen
    entry brings its baseline, and the entries that both start from.

    Args:
        table: the table.
        seeds: of each entry; default: the number of runs in the paper, counted from 0.
        reduction: what differs from the paper.
        entries: labels of the entries to run, or patterns such as ``VGG*``; default: all.

    Raises:
        InputError: no seed, a pattern that matches no entry, or data for the pretraining of a table without any.
    """
    seeds = tuple(range(table.seeds)) if seeds is None else tuple(dict.fromkeys(seeds))
    if not seeds:
        raise InputError("expected at least one seed, got none; give one, or leave seeds out for those of the paper")
    reduction = reduction or Reduction()
    for pattern in entries:
        if not any(fnmatch.fnmatchcase(entry.label, pattern) for entry in table.entries):
            labels = ", ".join(dict.fromkeys(repr(entry.label) for entry in table.entries))
            raise InputError(f"no entry of {table.name} is called {pattern!r}; expected one of {labels}")
    chosen = {
        entry.key
        for entry in table.entries
        if not entries or any(fnmatch.fnmatchcase(entry.label, pattern) for pattern in entries)
    }
    needed = chosen | {e.baseline for e in table.entries if e.key in chosen and e.baseline}
    needed |= {e.starts_from for e in table.entries if e.key in needed and e.starts_from}
    needed |= {e.runs_of for e in table.entries if e.key in needed and e.runs_of}
    first = {e.starts_from for e in table.entries if e.starts_from}
    if reduction.pretraining_data is not None and not first:
        raise InputError(
            f"expected data for pretraining with a table that has it, got {reduction.pretraining_data!r} with "
            f"{table.name}; leave it out"
        )
    shown = tuple(
        replace(e, recipe=reduction.apply(e.recipe, e.key in first) if e.recipe and e.key in needed else None)
        for e in table.entries
    )
    recipes = [e.recipe for e in table.entries if e.recipe and e.key in needed and e.key not in first]
    pretraining = [e.recipe for e in table.entries if e.recipe and e.key in needed and e.key in first]
    stated = (f"stated: {s.subject}: {s.value:g} {s.unit} ({s.source})" for s in table.statements)
    notes = (f"paper: {table.repetitions}", *table.notes, *stated, *reduction.notes(recipes, pretraining))
    tuning = table.tuning if any(entry.tuned for entry in shown) else None
    return Study(f"{table.title} ({table.name})", shown, seeds, notes, tuning)
