"""Recipes by name: the settings that a run starts from, with their sources."""

from backpass.errors import InputError
from backpass.experiments.recipes.cpu import CPU_30
from backpass.experiments.recipes.dense import CITYSCAPES_200, MPII_140
from backpass.experiments.recipes.digits import DIGITS
from backpass.experiments.recipes.norm_free import NF_IMAGENET
from backpass.experiments.recipes.pgt import PGT_IMAGENET
from backpass.experiments.recipes.sgs import CIFAR_200, CIFAR_600, IMAGENET_120, SGS_ABLATION
from backpass.training.recipe import Recipe

__all__ = ["RECIPES", "get_recipe"]

RECIPES: dict[str, Recipe] = {
    "digits": DIGITS,
    "cpu-30": CPU_30,
    "cifar-200": CIFAR_200,
    "cifar-600": CIFAR_600,
    "imagenet-120": IMAGENET_120,
    "sgs-ablation": SGS_ABLATION,
    "pgt-imagenet": PGT_IMAGENET,
    "nf-imagenet": NF_IMAGENET,
    "cityscapes-200": CITYSCAPES_200,
    "mpii-140": MPII_140,
}


def get_recipe(name: str) -> Recipe:
    """Return the recipe called ``name``.

    Raises:
        InputError: there is none.

    >>> get_recipe("cifar-200").epochs
    200
    """
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; expected one of {', '.join(RECIPES)}")
    return RECIPES[name]
