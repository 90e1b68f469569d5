"""A comparison: several methods on one recipe."""

from collections.abc import Sequence

from backpass.errors import InputError
from backpass.experiments.entry import Entry
from backpass.experiments.stages import tuning_runs
from backpass.experiments.study import Study
from backpass.experiments.tuning import Space, Tuning
from backpass.experiments.used_settings import owners, uses
from backpass.training.methods import check_method
from backpass.training.recipe import Recipe

__all__ = ["check_space", "compare_study", "method_of", "recipe_title"]


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
        InputError: no method or seed, an unknown method, a setting to tune that no method has, a method without a
            setting to tune or with more points than another (unless ``tuning.unequal``), or options of the tuning
            without a setting to tune.
    """
    if not len(methods) or not len(seeds):
        raise InputError(f"expected at least one method and one seed, got {list(methods)} and {list(seeds)}; give both")
    for method in methods:
        check_method(method)
    names = list(dict.fromkeys(methods))
    entries = [Entry(n, n, n, recipe, _baseline(n, names), space=_own_space(n, space)) for n in names]
    check_space(space, names)
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
        untuned = [entry.name for entry in entries if not entry.tuned]
        if untuned and not study.tuning.unequal:
            raise InputError(
                f"expected settings to tune that every method has, as each gets the same budget, got none for "
                f"{', '.join(untuned)}; add one such as lr, or allow unequal numbers of points (--tuning.unequal)"
            )
    return study


def recipe_title(recipe: Recipe) -> str:
    """Return model and data of a recipe in words.

    >>> recipe_title(Recipe())
    'digits_net on digits'
    """
    return f"{recipe.model} on {recipe.data.label or recipe.data.name}"


def method_of(key: str) -> str:
    """Return the method that has the settings of a key.

    >>> method_of("optimizer.lr"), method_of("sgs.k"), method_of("pgt.alpha,sgs.k")
    ('plain', 'sgs', 'sgs+pgt')
    """
    return "+".join(owners(key)) or "plain"


def check_space(space: Space, methods: Sequence[str]) -> None:
    """Check that each setting to tune means something to one of the methods.

    Raises:
        InputError: one means nothing to all of them, or is ``data.validation``, with which other images would judge.
    """
    for key, _ in space:
        if "data.validation" in key.split(","):
            raise InputError(
                "expected settings of training to tune, got data.validation, which decides on the images that judge; "
                "give tuning.validation, the share that is held out"
            )
        if not any(uses(method, key) for method in methods):
            names = ("one of " if len(methods) > 1 else "") + ", ".join(methods)
            raise InputError(
                f"expected settings to tune that {names} has, got {key}; leave them out, or give a method that has them"
            )


def _own_space(method: str, space: Space) -> Space:
    """Return what means something to a method: its own settings, and those of no method."""
    return tuple((key, values) for key, values in space if uses(method, key))


def _baseline(name: str, names: Sequence[str]) -> str | None:
    return "plain" if name != "plain" and "plain" in names else None
