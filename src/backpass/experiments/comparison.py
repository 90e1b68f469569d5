"""A comparison: several methods on one recipe."""

from collections.abc import Sequence

from backpass.errors import InputError
from backpass.experiments.entry import Entry
from backpass.experiments.stages import tuning_study
from backpass.experiments.study import Study
from backpass.experiments.tuning import Space, Tuning
from backpass.training.methods import check_method
from backpass.training.recipe import Recipe

__all__ = ["compare_study", "recipe_title"]

_METHODS = ("sgs", "pgt", "agc", "dyrep")  # whose settings are a group of the recipe by the method's name


def compare_study(
    recipe: Recipe, methods: Sequence[str], seeds: Sequence[int], *, space: Space = (), tuning: Tuning | None = None
) -> Study:
    """Return the comparison of methods on one recipe, each compared with ``plain`` where that is among them.

    Args:
        recipe: all settings but method and seed.
        methods: names of :func:`backpass.training.methods.check_method`; one that is given twice counts once.
        seeds: of each method, likewise.
        space: settings to tune for each method first; a method gets those that mean something to it, so ``sgs.k``
            goes to ``sgs`` and ``sgs+pgt``.
        tuning: how; default: the defaults of :class:`~backpass.experiments.tuning.Tuning` where there is a space.

    Raises:
        InputError: no method or seed, or an unknown method.
    """
    if not methods or not seeds:
        raise InputError(f"expected at least one method and one seed, got {list(methods)} and {list(seeds)}")
    for method in methods:
        check_method(method)
    names = list(dict.fromkeys(methods))
    entries = [Entry(n, n, n, recipe, _baseline(n, names), space=_own_space(n, space)) for n in names]
    if space and tuning is None:
        tuning = Tuning()
    study = Study(recipe_title(recipe), tuple(entries), tuple(dict.fromkeys(seeds)), tuning=tuning if space else None)
    if study.tuning is not None:
        tuning_study(study)  # refuses what cannot be tuned before anything runs
    return study


def recipe_title(recipe: Recipe) -> str:
    """Return model and data of a recipe in words.

    >>> recipe_title(Recipe())
    'digits_net on digits'
    """
    return f"{recipe.model} on {recipe.data.label or recipe.data.name}"


def _own_space(method: str, space: Space) -> Space:
    parts = method.split("+")
    return tuple(
        (key, values)
        for key, values in space
        if all(name.partition(".")[0] in parts or name.partition(".")[0] not in _METHODS for name in key.split(","))
    )


def _baseline(name: str, names: Sequence[str]) -> str | None:
    return "plain" if name != "plain" and "plain" in names else None
