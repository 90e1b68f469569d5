import json
from dataclasses import dataclass

import pytest
from backpass.experiments.cells import Cell, from_plain, to_plain

from backpass.errors import InputError
from backpass.experiments.recipes import RECIPES, TABLES
from backpass.training.recipe import Recipe, Run, Runtime


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_recipes_survive_json(recipe):
    cell = Cell(Run(recipe, "sgs+pgt", 7), "a")
    assert from_plain(Cell, json.loads(json.dumps(to_plain(cell)))) == cell


def test_rows_of_all_tables_survive_json():
    runs = [run for table in TABLES.values() for run in table.runs([0])]
    assert [from_plain(Run, to_plain(run)) for run in runs] == runs
    assert from_plain(Runtime, to_plain(Runtime(precision="bf16"))) == Runtime(precision="bf16")


@dataclass(frozen=True)
class Left:
    a: int


@dataclass(frozen=True)
class Right:
    b: int


@dataclass(frozen=True)
class Various:
    pair: tuple[int, float]
    many: tuple[Left, ...]
    either: Left | Right
    maybe: tuple[float, float] | None = None


def test_nested_tuples_and_unions():
    value = Various((1, 2.5), (Left(1), Left(2)), Right(3), (0.5, 0.25))
    plain = to_plain(value)
    assert plain == {"pair": [1, 2.5], "many": [{"a": 1}, {"a": 2}], "either": {"b": 3}, "maybe": [0.5, 0.25]}
    assert from_plain(Various, plain) == value
    assert from_plain(Various, plain | {"maybe": None}).maybe is None


def test_what_is_left_out_has_its_default_and_what_is_unknown_is_named():
    assert from_plain(Recipe, {"epochs": 3}) == Recipe(epochs=3)
    with pytest.raises(InputError, match=r"settings of a Recipe \(.*epochs.*\), got \['epoch'\]; they were written by"):
        from_plain(Recipe, {"epoch": 3})
    with pytest.raises(InputError, match=r"settings of a Recipe .*, got list"):
        from_plain(Recipe, [])
