"""A comparison: several methods on one recipe."""

from collections.abc import Sequence

from backpass.errors import InputError
from backpass.experiments.entry import Entry
from backpass.experiments.stages import tuning_runs
from backpass.experiments.study import Study
from backpass.experiments.tuning import Space, Tuning
from backpass.training.methods import check_method
from backpass.training.recipe import Recipe

__all__ = ["check_space", "compare_study", "method_of", "recipe_title"]

_OWNERS = {  # settings of the recipe, or whole groups of them, and the method that has them
    "sgs": "sgs",
    "pgt": "pgt",
    "agc": "agc",
    "dyrep": "dyrep",
    "reparam.acb_gamma": "acb",
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
    return "+".join(_owners(key)) or "plain"


def check_space(space: Space, methods: Sequence[str]) -> None:
    """Check that each setting to tune means something to one of the methods.

    Raises:
        InputError: one means nothing to all of them.
    """
    for key, values in space:
        if not any(_own_space(method, ((key, values),)) for method in methods):
            names = ("one of " if len(methods) > 1 else "") + ", ".join(methods)
            raise InputError(
                f"expected settings to tune that {names} has, got {key}; leave them out, or give a method that has them"
            )


def _own_space(method: str, space: Space) -> Space:
    """Return what means something to a method: its own settings, and those of no method."""
    parts = set(method.split("+"))
    return tuple((key, values) for key, values in space if parts.issuperset(_owners(key)))


def _owners(key: str) -> list[str]:
    names = [f"{name.strip()}." for name in key.split(",")]
    return [method for owned, method in _OWNERS.items() if any(name.startswith(f"{owned}.") for name in names)]


def _baseline(name: str, names: Sequence[str]) -> str | None:
    return "plain" if name != "plain" and "plain" in names else None
