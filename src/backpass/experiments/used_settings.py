"""Which settings of a recipe a method uses."""

from dataclasses import replace

from backpass.training.recipe import Recipe

__all__ = ["owners", "used_recipe", "uses"]

_OWNERS = {  # settings of the recipe, or whole groups of them, and the method that has them
    "sgs": "sgs",
    "pgt": "pgt",
    "agc": "agc",
    "dyrep": "dyrep",
    "reparam.acb_gamma": "acb",
}


def owners(key: str) -> list[str]:
    """Return the methods that have the settings of a key: a dotted name, or several joined by commas.

    >>> owners("optimizer.lr"), owners("sgs.k"), owners("pgt.alpha,sgs.k")
    ([], ['sgs'], ['sgs', 'pgt'])
    """
    names = [f"{name.strip()}." for name in key.split(",")]
    return [method for owned, method in _OWNERS.items() if any(name.startswith(f"{owned}.") for name in names)]


def uses(method: str, key: str) -> bool:
    """Return whether a setting means something to a method: one of its own, or one of no method.

    >>> uses("sgs+pgt", "sgs.k"), uses("pgt", "sgs.k"), uses("plain", "optimizer.lr")
    (True, False, True)
    """
    return set(method.split("+")).issuperset(owners(key))


def used_recipe(method: str, recipe: Recipe) -> Recipe:
    """Return the recipe with the settings that a method does not use at their defaults.

    So that recipes which train alike compare equal.
    """
    for owned, owner in _OWNERS.items():
        if owner not in method.split("+"):
            group, _, name = owned.partition(".")
            default = getattr(Recipe(), group)
            value = replace(getattr(recipe, group), **{name: getattr(default, name)}) if name else default
            recipe = replace(recipe, **{group: value})
    return recipe
