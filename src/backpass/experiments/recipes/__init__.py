"""Recipes by name: the settings a run starts from, each with its source."""

from backpass.errors import InputError
from backpass.experiments.recipes.digits import DIGITS
from backpass.experiments.recipes.sgs import CIFAR_200, CIFAR_600
from backpass.training.recipe import Recipe

__all__ = ["RECIPES", "get_recipe"]

RECIPES: dict[str, Recipe] = {"digits": DIGITS, "cifar-200": CIFAR_200, "cifar-600": CIFAR_600}


def get_recipe(name: str) -> Recipe:
    """Return the recipe called ``name``.

    Raises:
        InputError: there is none.
    """
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; expected one of {', '.join(RECIPES)}")
    return RECIPES[name]
