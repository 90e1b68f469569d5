import copy
import json
import re
from dataclasses import asdict

import pytest
from backpass.experiments.results import (
    check_result,
    environment,
    read_result,
    read_results,
    write_result,
)

from backpass.errors import InputError
from backpass.training.recipe import Recipe

RECIPE = Recipe(epochs=2)


def test_last_and_best_epoch_differ(make_result):
    run = make_result(RECIPE, "plain", 0, [0.9, 0.7], seconds=1.5)
    assert (run.accuracy, run.best_accuracy, run.accuracies, run.seconds) == (0.7, 0.9, [0.9, 0.7], 3.0)
    assert make_result(RECIPE, "plain", 0, [0.6], split="validation").accuracy == 0.6


def test_round_trip(tmp_path, make_result):
    run = make_result(RECIPE, "plain", 0, [0.9])
    (tmp_path / "a").mkdir()
    write_result(tmp_path / "a" / "result.json", run)
    assert read_results(tmp_path) == [run]


def test_what_is_not_a_result_is_named(tmp_path):
    with pytest.raises(InputError, match=r"expected run folders with a result\.json below .*, found none"):
        read_results(tmp_path)
    path = tmp_path / "result.json"
    path.write_text("{")
    with pytest.raises(InputError, match=r"result\.json is not a readable result"):
        read_result(path)
    path.write_text(json.dumps({"schema": 99}))
    with pytest.raises(InputError, match=r"expected a result of schema 2 with the fields .*, got \['schema'\]"):
        read_result(path)


@pytest.mark.parametrize(
    ("keys", "value", "text"),
    [
        (("run", "seed"), "0", "expected run.seed to be int, got '0'"),
        (("run", "seed"), True, "expected run.seed to be int, got True"),
        (("data", "split"), ..., "expected data.split to be str, got nothing"),
        (("cost", "gpu_hours"), "1", "expected cost.gpu_hours to be int or float or null, got '1'"),
        (("environment",), None, "expected environment.commit to be str or null, got nothing"),
        (("history",), [], "expected history to be a list with a record for each epoch, got []"),
        (("history", 1, "test_accuracy"), None, "expected test_accuracy of epoch 1 to be a finite number, got None"),
        (
            ("history", 0, "train_seconds"),
            float("nan"),
            "expected train_seconds of epoch 0 to be a finite number, got nan",
        ),
        (("data", "split"), "validation", "expected validation_accuracy of epoch 0 to be a finite number, got None"),
    ],
)
def test_what_is_wrong_in_a_result_is_named(keys, value, text, make_result):
    content = asdict(make_result(RECIPE, "plain", 0, [0.5, 0.6]))
    check_result(copy.deepcopy(content), "here")
    *path, last = keys
    section = content
    for key in path:
        section = section[key]
    if value is ...:
        del section[last]
    else:
        section[last] = value
    with pytest.raises(InputError, match=re.escape(f"here: {text}")):
        check_result(content, "here")


def test_environment_names_versions_and_hardware():
    found = environment()
    assert found["versions"]["torch"]
    assert found["cpu"]
    assert found["threads"] >= 1
