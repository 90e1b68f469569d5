import json

import pytest

from backpass.errors import InputError
from backpass.experiments.results import RunResult, environment, read_result, read_results, summarize, write_result


def result(method: str, seed: int, accuracies: list[float], seconds: float = 1.0) -> RunResult:
    history = [
        {"epoch": e, "test_accuracy": a, "train_seconds": seconds, "measure_seconds": 0.0}
        for e, a in enumerate(accuracies)
    ]
    return RunResult({"method": method, "seed": seed}, {}, {}, history, {}, {}, {})


def test_summary_by_hand():
    rows = summarize(
        [
            result("plain", 0, [0.5, 0.80]),
            result("plain", 1, [0.5, 0.90]),
            result("sgs", 0, [0.5, 0.84], seconds=1.1),
            result("sgs", 1, [0.5, 0.92], seconds=1.3),
            result("sgs", 2, [0.5, 0.10], seconds=9.0),
        ]
    )
    plain, sgs = rows
    assert (plain.n, plain.mean, plain.difference, plain.time_ratio) == (2, pytest.approx(0.85), None, None)
    assert plain.std == pytest.approx(0.0707107)
    assert sgs.n == 3
    assert sgs.difference == pytest.approx(0.03)  # seed 2 has no plain twin
    assert sgs.time_ratio == pytest.approx(1.2)
    assert sgs.values == {0: 0.84, 1: 0.92, 2: 0.10}


def test_last_and_best_epoch_differ():
    run = result("plain", 0, [0.9, 0.7])
    assert (run.accuracy, run.best_accuracy) == (0.7, 0.9)
    assert summarize([run])[0].std is None


def test_round_trip(tmp_path):
    run = result("plain", 0, [0.9])
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
    with pytest.raises(InputError, match=r"expected a result of schema 1 with the fields .*, got \['schema'\]"):
        read_result(path)


def test_environment_names_versions_and_hardware():
    found = environment()
    assert found["versions"]["torch"]
    assert found["cpu"]
    assert found["threads"] >= 1
