import math

import pytest
import scipy.stats
from backpass.experiments.plan import Line
from backpass.experiments.statistics import paired_difference, summarize

from backpass.training.recipe import Recipe

RECIPE = Recipe(epochs=2)


def test_paired_difference_by_hand():
    # Differences 1, 2, 3: mean 2, standard deviation 1, standard error 1 / sqrt(3); t(0.975, 2) = 4.302653.
    found = paired_difference([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert (found.n, found.mean) == (3, pytest.approx(2.0))
    assert (found.low, found.high) == (
        pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6),
        pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6),
    )
    # For two degrees of freedom the two-sided p of t is 1 - t / sqrt(t**2 + 2), with t = 2 * sqrt(3).
    assert found.p == pytest.approx(1 - math.sqrt(12 / 14))


def test_paired_difference_is_the_one_sample_test_of_the_differences():
    values, baseline = [0.71, 0.75, 0.69, 0.74, 0.78], [0.70, 0.71, 0.70, 0.73, 0.74]
    oracle = scipy.stats.ttest_1samp([v - b for v, b in zip(values, baseline, strict=True)], 0)
    found = paired_difference(values, baseline)
    assert found.p == pytest.approx(oracle.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(oracle.confidence_interval(0.95)))
    other = paired_difference(baseline, values)
    assert (other.mean, other.low, other.p) == pytest.approx((-found.mean, -found.high, found.p))
    order = [3, 0, 4, 1, 2]
    assert paired_difference([values[i] for i in order], [baseline[i] for i in order]).p == pytest.approx(found.p)


@pytest.mark.parametrize(("values", "baseline"), [([0.5], [0.4]), ([0.5, 0.6], [0.4, 0.5]), ([0.5] * 3, [0.5] * 3)])
def test_without_spread_there_is_no_interval(values, baseline):
    found = paired_difference(values, baseline)
    assert (found.n, found.low, found.high, found.p) == (len(values), None, None, None)
    assert found.mean == pytest.approx(values[0] - baseline[0])


def test_summary_by_hand(make_result):
    lines = [Line("plain", "plain", RECIPE), Line("sgs", "sgs", RECIPE, baseline=0, paper=0.9)]
    results = [
        make_result(RECIPE, "plain", 1, [0.5, 0.90]),
        make_result(RECIPE, "plain", 0, [0.5, 0.80]),
        make_result(RECIPE, "sgs", 0, [0.5, 0.84], seconds=1.1),
        make_result(RECIPE, "sgs", 1, [0.5, 0.92], seconds=1.3),
        make_result(RECIPE, "sgs", 2, [0.5, 0.10], seconds=9.0),
        make_result(Recipe(epochs=3), "sgs", 3, [0.99]),
    ]
    plain, sgs = summarize(lines, results)
    assert (plain.n, plain.mean, plain.difference, plain.time_ratio) == (2, pytest.approx(0.85), None, None)
    assert plain.std == pytest.approx(0.0707107)
    assert list(plain.values.items()) == [(0, 0.80), (1, 0.90)]
    assert (plain.parameters, plain.macs, plain.gpu_hours, plain.peak_memory) == (56554, 1790000, None, None)
    assert sgs.n == 3  # the run of another recipe is left aside
    assert (sgs.difference.n, sgs.difference.mean) == (2, pytest.approx(0.03))  # seed 2 has no plain twin
    assert sgs.time_ratio == pytest.approx(1.2)
    assert sgs.values == {0: 0.84, 1: 0.92, 2: 0.10}
    assert sgs.seconds == pytest.approx(2 * (1.1 + 1.3 + 9.0) / 3)
    assert sgs.paper == 0.9


def test_times_of_different_hardware_are_not_compared(make_result):
    lines = [Line("plain", "plain", RECIPE), Line("sgs", "sgs", RECIPE, baseline=0)]
    results = [
        make_result(RECIPE, "plain", 0, [0.5], cpu="slow", seconds=10.0),
        make_result(RECIPE, "plain", 1, [0.5]),
        make_result(RECIPE, "sgs", 0, [0.6]),
        make_result(RECIPE, "sgs", 1, [0.6], seconds=1.5),
    ]
    sgs = summarize(lines, results)[1]
    assert (sgs.difference.n, sgs.time_ratio) == (2, 1.5)


def test_gpu_hours_add_up_and_memory_is_the_largest(make_result):
    lines = [Line("plain", "plain", RECIPE)]
    results = [make_result(RECIPE, "plain", s, [0.5], gpu_hours=h, peak=p) for s, h, p in [(0, 1.5, 70), (1, 2.0, 80)]]
    (row,) = summarize(lines, results)
    assert (row.gpu_hours, row.peak_memory) == (3.5, 80)


def test_not_run():
    row, shown = summarize([Line("a", "plain", RECIPE), Line("a", "dbb", None, paper=0.7)], [])
    assert (row.n, row.mean, row.std, row.values, row.difference) == (0, None, None, {}, None)
    assert (shown.n, shown.paper) == (0, 0.7)
