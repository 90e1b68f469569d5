"""A comparison: several methods on one recipe."""

from collections.abc import Sequence

from backpass.errors import InputError
from backpass.experiments.entry import Entry
from backpass.experiments.study import Study
from backpass.training.methods import check_method
from backpass.training.recipe import Recipe

__all__ = ["compare_study", "recipe_title"]


def compare_study(recipe: Recipe, methods: Sequence[str], seeds: Sequence[int]) -> Study:
    """Return the comparison of methods on one recipe, each compared with ``plain`` where that is among them.

    Args:
        recipe: all settings but method and seed.
        methods: names of :func:`backpass.training.methods.check_method`; one that is given twice counts once.
        seeds: of each method, likewise.

    Raises:
        InputError: no method or seed, or an unknown method.
    """
    if not methods or not seeds:
        raise InputError(f"expected at least one method and one seed, got {list(methods)} and {list(seeds)}")
    for method in methods:
        check_method(method)
    names = list(dict.fromkeys(methods))
    entries = [Entry(name, name, name, recipe, _baseline(name, names)) for name in names]
    return Study(recipe_title(recipe), tuple(entries), tuple(dict.fromkeys(seeds)))


def recipe_title(recipe: Recipe) -> str:
    """Return model and data of a recipe in words.

    >>> recipe_title(Recipe())
    'digits_net on digits'
    """
    return f"{recipe.model} on {recipe.data.label or recipe.data.name}"


def _baseline(name: str, names: Sequence[str]) -> str | None:
    return "plain" if name != "plain" and "plain" in names else None
