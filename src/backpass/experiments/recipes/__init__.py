"""Recipes and tables by name: the settings a run starts from, the papers' tables and one of our own, with sources."""

from difflib import get_close_matches

from backpass.errors import InputError
from backpass.experiments.recipes.digits import DIGITS
from backpass.experiments.recipes.norm_free import NF_IMAGENET, NORM_FREE_TABLES
from backpass.experiments.recipes.pgt import PGT_IMAGENET, PGT_TABLES
from backpass.experiments.recipes.sgs import CIFAR_200, CIFAR_600, IMAGENET_120, SGS_TABLES
from backpass.experiments.recipes.table import Row, Table
from backpass.training.recipe import Recipe

__all__ = ["RECIPES", "TABLES", "Row", "Table", "get_recipe", "get_table", "list_tables"]

RECIPES: dict[str, Recipe] = {
    "digits": DIGITS,
    "cifar-200": CIFAR_200,
    "cifar-600": CIFAR_600,
    "imagenet-120": IMAGENET_120,
    "pgt-imagenet": PGT_IMAGENET,
    "nf-imagenet": NF_IMAGENET,
}

TABLES: dict[str, Table] = {table.name: table for table in (*SGS_TABLES, *PGT_TABLES, *NORM_FREE_TABLES)}


def get_recipe(name: str) -> Recipe:
    """Return the recipe called ``name``.

    Raises:
        InputError: there is none.
    """
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; expected one of {', '.join(RECIPES)}")
    return RECIPES[name]


def list_tables() -> list[str]:
    """Return the names that :func:`get_table` knows.

    >>> list_tables()[:2], list_tables()[-2:]
    (['sgs-table-1', 'sgs-table-2'], ['pgt-clipping', 'norm-free'])
    """
    return list(TABLES)


def get_table(name: str) -> Table:
    """Return the table called ``name``.

    Raises:
        InputError: there is none; the message names those that are called alike.

    >>> table = get_table("sgs-table-4")
    >>> len(table.rows), table.methods, table.rows[0].label, table.rows[0].published("sgs")
    (17, ('plain', 'sgs'), 'VGG-11', 73.2)
    """
    if name not in TABLES:
        close = get_close_matches(name, TABLES, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"expected one of {', '.join(TABLES)}"
        raise InputError(f"unknown table {name!r}; {hint}")
    return TABLES[name]
