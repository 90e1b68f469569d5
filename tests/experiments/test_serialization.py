import json
from dataclasses import dataclass

import pytest

from backpass.errors import InputError
from backpass.experiments import RECIPES, Study, table_study
from backpass.experiments.serialization import from_json, to_json
from backpass.experiments.study import StudyRun
from backpass.experiments.tables import TABLES
from backpass.training.recipe import Recipe, Run, Runtime


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_recipes_survive_json(recipe):
    run = StudyRun("a", Run(recipe, "sgs+pgt", 7))
    assert from_json(StudyRun, to_json(run), "here") == run


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_tables_survive_json(table):
    study = table_study(table)
    assert from_json(Study, to_json(study), "here") == study


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
    text = to_json(value)
    assert json.loads(text) == {
        "pair": [1, 2.5],
        "many": [{"a": 1}, {"a": 2}],
        "either": {"b": 3},
        "maybe": [0.5, 0.25],
    }
    assert from_json(Various, text, "here") == value


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"epoch": 3}, "epoch = 3 (Unexpected keyword argument)"),
        ({"epochs": "3"}, "epochs = '3' (Input should be a valid integer)"),
        ({"epochs": 0}, "got expected epochs to be an integer >= 1 and <= 2147483647, got 0; choose another value"),
        ({"sgs": {"measure": "entropy"}}, "sgs.measure = 'entropy'"),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr = nan (Input should be a finite number)"),
        ([], "the text = []"),
    ],
)
def test_what_is_wrong_is_named_with_its_path(content, problem):
    with pytest.raises(InputError) as error:
        from_json(Recipe, json.dumps(content), "config.json")
    assert str(error.value).startswith("config.json: expected a Recipe as this version of backpass writes it, got ")
    assert problem in str(error.value)
    assert str(error.value).endswith("; remove or mend it")


@pytest.mark.parametrize("text", ["", "{", '{"device": "cpu"} {}', '{"device": "cpu"}, {"device": "cpu"}', "\ud800"])
def test_what_is_not_one_json_value_is_refused(text):
    with pytest.raises(InputError, match=r"^here: expected "):
        from_json(Runtime, text.encode("utf-8", "surrogatepass"), "here")


def test_what_is_left_out_has_its_default():
    assert from_json(Recipe, '{"epochs": 3}', "here") == Recipe(epochs=3)
