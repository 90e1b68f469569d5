"""A comparison: several methods on one recipe."""

from collections.abc import Sequence

from backpass.errors import InputError
from backpass.experiments.entry import Entry
from backpass.experiments.stages import tuning_runs
from backpass.experiments.study import Study
from backpass.experiments.tuning import Space, Tuning
from backpass.training.methods import check_method
from backpass.training.recipe import Recipe

__all__ = ["compare_study", "recipe_title"]

_GROUPS = {  # groups of settings of the recipe, and the methods that have them
    "sgs": ("sgs",),
    "pgt": ("pgt",),
    "agc": ("agc",),
    "dyrep": ("dyrep",),
    "reparam": ("acb", "repvgg", "dbb", "dbb_dyrep"),
}


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
        InputError: no method or seed, an unknown method, a setting to tune that no method has, or options of the tuning
            without a setting to tune.
    """
    if not methods or not seeds:
        raise InputError(f"expected at least one method and one seed, got {list(methods)} and {list(seeds)}")
    for method in methods:
        check_method(method)
    names = list(dict.fromkeys(methods))
    entries = [Entry(n, n, n, recipe, _baseline(n, names), space=_own_space(n, space)) for n in names]
    for key, _ in space:
        if all(key not in dict(entry.space) for entry in entries):
            raise InputError(
                f"expected settings to tune that one of {', '.join(names)} has, got {key}; leave it out, or add a "
                "method that has it"
            )
    options = [f"tuning.{name}" for name, value in vars(tuning or Tuning()).items() if value != vars(Tuning())[name]]
    if options and not space:
        raise InputError(
            f"expected settings to tune with {', '.join(options)}, got none; give them, such as --tune lr=0.05,0.1, or "
            "leave the options of the tuning out"
        )
    if space and tuning is None:
        tuning = Tuning()
    study = Study(recipe_title(recipe), tuple(entries), tuple(dict.fromkeys(seeds)), tuning=tuning if space else None)
    if study.tuning is not None:
        tuning_runs(study, {})  # refuses what cannot be tuned before anything runs
    return study


def recipe_title(recipe: Recipe) -> str:
    """Return model and data of a recipe in words.

    >>> recipe_title(Recipe())
    'digits_net on digits'
    """
    return f"{recipe.model} on {recipe.data.label or recipe.data.name}"


def _own_space(method: str, space: Space) -> Space:
    """Return what means something to a method: the settings of its own groups, and those of no method."""
    parts = set(method.split("+"))
    foreign = {group for group, methods in _GROUPS.items() if parts.isdisjoint(methods)}
    return tuple(
        (key, values)
        for key, values in space
        if foreign.isdisjoint(name.strip().partition(".")[0] for name in key.split(","))
    )


def _baseline(name: str, names: Sequence[str]) -> str | None:
    return "plain" if name != "plain" and "plain" in names else None
