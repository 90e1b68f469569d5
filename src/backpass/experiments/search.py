"""A search: several values of one setting, judged on images held out of the training set."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from backpass.errors import InputError
from backpass.experiments.comparison import recipe_title
from backpass.experiments.entry import Entry
from backpass.experiments.settings import replace_setting
from backpass.experiments.study import Study, make_key
from backpass.training.methods import check_method
from backpass.training.recipe import Recipe

__all__ = ["ALPHA_BETA_GRID", "AUTOCORRELATION_K_GRID", "K_GRID", "SEARCHES", "VALIDATION", "search_study"]

# SGS paper: section 4.1 (k), section 4.3 (k of autocorrelation; alpha and beta, where 1, 1 is plain training).
K_GRID = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
AUTOCORRELATION_K_GRID = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
_ALPHA_BETA = (0.8, 1.0, 1.25, 1.7, 5.0, 10.0, 100.0)
ALPHA_BETA_GRID = tuple(pair for pair in itertools.product(_ALPHA_BETA, repeat=2) if pair != (1.0, 1.0))
# SGS paper, sections 4.1, 4.3 and A.2: 20 % of the training set.
VALIDATION = 0.2

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
        seeds: of each value.
        values: to try; default: those of :data:`SEARCHES`. With several keys, each has a part for every key: a tuple,
            or a text such as ``5,10``.
        method: default: the one that the key belongs to, or ``plain``.
        validation: fraction of the training images to judge on.

    Raises:
        InputError: an unknown key, method or value, no seed, or no values for a key without a grid of its own.
    """
    if not seeds:
        raise InputError("expected at least one seed, got none")
    recipe = replace(recipe, data=replace(recipe.data, validation=validation))
    values = tuple(values) or SEARCHES.get(key, ())
    if not values:
        raise InputError(f"expected values to try for {key!r}; only {'; '.join(SEARCHES)} have a grid of their own")
    family = key.partition(".")[0]
    method = method or (family if family in ("sgs", "pgt", "agc") else "plain")
    check_method(method)
    baseline = None if method == "plain" else "plain"
    entries = {} if baseline is None else {"plain": Entry("plain", "plain", "plain", recipe)}
    for value in values:
        settings, chosen = recipe, _by_key(key, value)
        for name, part in chosen.items():
            settings = replace_setting(settings, name, part)
        label = ", ".join(f"{name} = {part}" for name, part in chosen.items())
        own = make_key(label, method)
        entries[own] = Entry(own, label, method, settings, baseline)
    notes = (f"accuracy on {100 * validation:g} % of the training images, held out",)
    title = f"{key}, {recipe_title(recipe)}"
    return Study(title, tuple(entries.values()), tuple(dict.fromkeys(seeds)), notes)


def _by_key(key: str, value: Any) -> dict[str, Any]:
    """Return the part of the value that belongs to each of the keys that ``key`` joins by commas."""
    keys = key.split(",")
    if len(keys) == 1:
        return {key: value}
    parts = tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value
    if not isinstance(parts, tuple) or len(parts) != len(keys):
        raise InputError(f"expected a value for each of {key}, joined by commas as in '5,10', got {value!r}")
    return dict(zip(keys, parts, strict=True))
