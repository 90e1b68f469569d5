"""The seconds of a whole run, put together from its parts, in cases that can be computed by hand."""

import pytest


@pytest.fixture
def run_seconds(benchmark_module):
    return benchmark_module("cost").run_seconds


def test_plain_steps_alone(run_seconds):
    times = {"step": [2.0, 3.0], "update": [], "epochs": []}
    assert run_seconds(times, 1, epochs=10, steps=4) == 10 * 4 * 3.0


def test_updates_are_added_as_often_as_they_are_due(run_seconds):
    times = {"step": [2.0, 3.0], "update": [7.0, 5.0], "epochs": [1, 5]}
    assert run_seconds(times, 1, epochs=10, steps=4) == 10 * 4 * 3.0 + 2 * 5.0


def test_an_adjustment_that_is_timed_once_counts_in_every_round(run_seconds):
    times = {"step": [2.0, 3.0], "update": [7.0], "epochs": [2, 5]}
    assert run_seconds(times, 1, epochs=10, steps=4) == 10 * 4 * 3.0 + 2 * 7.0


def test_dyrep_is_grown_to_twice_the_plain_size_and_no_further(benchmark_module):
    cost = benchmark_module("cost")
    options = cost.parsed(["--batch", "8"])
    data = cost.data_for("digits_net", options)
    trainer = cost.build("digits_net", "dyrep", data, options)
    plain = cost.count_macs(trainer.model, cost.IMAGE)
    cost.grow(trainer)
    assert 2 * plain <= cost.count_macs(trainer.model, cost.IMAGE) < 3 * plain


def test_a_run_of_the_recipe_measures_and_grows_as_it_says(benchmark_module):
    cost = benchmark_module("cost")
    options = cost.parsed(["--batch", "2"])
    data = cost.data_for("digits_net", options)
    epochs = {m: cost.adjusted_epochs(cost.build("digits_net", m, data, options)) for m in ("plain", "sgs", "dyrep")}
    assert epochs["plain"] == []
    assert epochs["sgs"] == [1, *range(5, 200, 5)]
    assert epochs["dyrep"] == list(range(15, 200, 15))
