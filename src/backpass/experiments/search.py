"""A search: the tuning stage of a study on its own, over several values of one setting."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from backpass._internal.settings import plain
from backpass.errors import InputError
from backpass.experiments.comparison import check_space, method_of, recipe_title
from backpass.experiments.entry import Entry
from backpass.experiments.stages import tuning_study
from backpass.experiments.study import Study
from backpass.experiments.tuning import VALIDATION, Tuning
from backpass.training.recipe import Recipe

__all__ = ["ALPHA_BETA_GRID", "AUTOCORRELATION_K_GRID", "K_GRID", "SEARCHES", "search_study"]

# SGS paper: section 4.1 (k), section 4.3 (k of autocorrelation; alpha and beta, where 1, 1 is plain training).
K_GRID = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
AUTOCORRELATION_K_GRID = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
_ALPHA_BETA = (0.8, 1.0, 1.25, 1.7, 5.0, 10.0, 100.0)
ALPHA_BETA_GRID = tuple(pair for pair in itertools.product(_ALPHA_BETA, repeat=2) if pair != (1.0, 1.0))

# The grid for alpha of PGT is ours, around the published 0.25 and 0.3.
SEARCHES: dict[str, tuple[Any, ...]] = {
    "sgs.k": K_GRID,
    "sgs.alpha,sgs.beta": ALPHA_BETA_GRID,
    "pgt.alpha": (0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75),
}


def search_study(
    key: str,
    recipe: Recipe,
    seeds: Sequence[int],
    *,
    values: Sequence[Any] = (),
    method: str | None = None,
    validation: float = VALIDATION,
) -> Study:
    """Return the search for one setting: an entry for each value, and ``plain`` for comparison.

    Args:
        key: dotted name of a setting of the recipe, such as ``sgs.k``, or several joined by commas:
            ``sgs.alpha,sgs.beta``.
        recipe: all other settings.
        seeds: seeds of each value.
        values: values to try; default: those of :data:`SEARCHES`. With several keys, each has a part for every key: a
            tuple, or a text such as ``5,10``.
        method: method to train with; default: the one that has the settings, such as ``sgs+pgt`` for
            ``sgs.k,pgt.alpha``, or ``plain``.
        validation: fraction of the training images to judge on.

    Raises:
        InputError: an unknown key, method or value, no seed, no values for a key without a grid of its own, a method
            without the settings, or a recipe that holds out validation images.
    """
    if recipe.data.validation:
        raise InputError(
            "expected data.validation = 0 in a search, which holds out images of its own, got "
            f"{recipe.data.validation:g}; give that fraction as validation instead"
        )
    values = tuple(values) or SEARCHES.get(key, ())
    if not values:
        raise InputError(
            f"expected values to try for {key!r}, got none; pass some, since only {'; '.join(SEARCHES)} have a grid of "
            "their own"
        )
    method = method or method_of(key)
    space = ((key, tuple(dict.fromkeys(_text(key, value) for value in values))),)
    check_space(space, [method])
    tuned = Entry(method, method, method, recipe, space=space)
    tuning = Tuning(tuple(dict.fromkeys(seeds)), validation)
    search = tuning_study(Study(f"{key}, {recipe_title(recipe)}", (tuned,), (), tuning=tuning))
    if method == "plain":
        return search
    held_out = replace(recipe, data=replace(recipe.data, validation=validation))
    plain = Entry("plain", "plain", "plain", held_out)
    return replace(search, entries=(plain, *(replace(entry, baseline="plain") for entry in search.entries)))


def _text(key: str, value: Any) -> str:
    value = plain(value)
    several = "," in key and isinstance(value, tuple)  # of one setting, a tuple is one value
    return ",".join(map(str, value)) if several else str(value).strip()
