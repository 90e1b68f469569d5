"""The runs that try a point of a search space: its settings, on a part of the training images."""

from dataclasses import replace

from backpass.errors import InputError
from backpass.experiments.entry import Entry
from backpass.experiments.settings import replace_settings
from backpass.experiments.study import Study, StudyRun, make_key
from backpass.experiments.tuning import Point, Tuning
from backpass.training.recipe import Recipe, Run

__all__ = ["describe_point", "point_entry", "point_run", "tuning_of"]


def tuning_of(study: Study) -> Tuning:
    """Return the tuning stage of a study.

    Raises:
        InputError: it has none.
    """
    if study.tuning is None:
        raise InputError("expected a study with a tuning stage, got one without; give it tuning=Tuning()")
    return study.tuning


def point_entry(entry: Entry, point: Point, tuning: Tuning) -> Entry:
    """Return an entry for one point of an entry, judged on held-out images."""
    label = f"{entry.label}, {describe_point(point)}"
    return Entry(_point_key(entry, point), label, entry.method, _point_recipe(entry, point, tuning))


def point_run(entry: Entry, point: Point, seed: int, tuning: Tuning) -> StudyRun:
    """Return the run of one point with one seed, judged on held-out images."""
    return StudyRun(_point_key(entry, point), Run(_point_recipe(entry, point, tuning), entry.method, seed))


def _point_recipe(entry: Entry, point: Point, tuning: Tuning) -> Recipe:
    if entry.recipe is None:
        raise InputError(f"expected entry {entry.label!r} to have a recipe to tune, got none; leave out its space")
    recipe: Recipe = replace_settings(entry.recipe, point)
    return replace(recipe, data=replace(recipe.data, validation=tuning.validation))


def _point_key(entry: Entry, point: Point) -> str:
    return make_key("tuning", entry.key, *(f"{name}={value}" for name, value in point))


def describe_point(point: Point) -> str:
    """Return the settings of a point as text.

    >>> describe_point((("optimizer.lr", "0.1"), ("sgs.k", "5")))
    'optimizer.lr = 0.1, sgs.k = 5'
    """
    return ", ".join(f"{name} = {value}" for name, value in point)
