import math
from dataclasses import replace

import numpy
import pytest
import scipy.stats

from backpass.experiments.entry import Entry, Published
from backpass.experiments.power import power_of
from backpass.experiments.reporting.differences import paired_difference
from backpass.experiments.reporting.statistics import summarize
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
    assert (found.std, found.effect) == (pytest.approx(1.0), pytest.approx(2.0))
    assert power_of(found.detectable, found.std, found.n) == pytest.approx(0.9, abs=1e-6)
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


def test_equal_differences_in_float32_have_no_spread():
    # Both pairs differ by two of 359 images.
    values, baseline = ([float(numpy.float32(n / 359)) for n in correct] for correct in ((340, 357), (338, 355)))
    assert values[0] - baseline[0] != values[1] - baseline[1]
    found = paired_difference(values, baseline)
    assert (found.low, found.high, found.p, found.effect) == (None, None, None, None)
    one_image_of_imagenet = paired_difference([0.70002, 0.70], [0.70, 0.70])
    assert one_image_of_imagenet.std == pytest.approx(2e-5 / math.sqrt(2))


PLAIN = Entry("plain", "plain", "plain", RECIPE)
SGS = Entry("sgs", "sgs", "sgs", RECIPE, "plain", published=Published(90.0))


def test_sizes_are_means_over_the_runs(make_record):
    first, second = (make_record(RECIPE, "dyrep", seed, [0.5], entry="dyrep") for seed in (0, 1))
    size = first.model
    grown = replace(size, parameters=size.parameters + 11, macs=3 * size.macs, deployed_macs=size.deployed_macs + 2)
    records = [first, replace(second, model=grown)]
    (summary,) = summarize([Entry("dyrep", "dyrep", "dyrep", RECIPE)], records)
    assert (summary.params, summary.macs) == (round(size.parameters + 5.5), 2 * size.macs)
    assert (summary.deployed_params, summary.deployed_macs) == (size.deployed_parameters, size.deployed_macs + 1)


def test_summary_by_hand(make_record):
    records = [
        make_record(RECIPE, "plain", 1, [0.5, 0.90], entry="plain"),
        make_record(RECIPE, "plain", 0, [0.5, 0.80], entry="plain"),
        make_record(RECIPE, "sgs", 0, [0.5, 0.84], entry="sgs", seconds=1.1, train_accuracy=0.5),
        make_record(RECIPE, "sgs", 1, [0.5, 0.92], entry="sgs", seconds=1.3, train_accuracy=0.75),
        make_record(RECIPE, "sgs", 2, [0.5, 0.10], entry="sgs", seconds=9.0, train_accuracy=1.0),
        make_record(RECIPE, "sgs", 3, [0.99], entry="another"),
    ]
    plain, sgs = summarize([PLAIN, SGS], records)
    assert (plain.n, plain.mean, plain.difference, plain.relative_time) == (2, pytest.approx(0.85), None, None)
    assert plain.std == pytest.approx(0.0707107)
    assert list(plain.values.items()) == [(0, 0.80), (1, 0.90)]
    assert (plain.params, plain.macs, plain.gpu_hours, plain.peak_memory) == (56554, 1790000, None, None)
    assert (plain.train_accuracy, sgs.train_accuracy) == (None, 0.75)
    assert sgs.n == 3  # without the run of another entry
    assert (sgs.difference.n, sgs.difference.mean) == (2, pytest.approx(0.03))  # seed 2 has no plain twin
    assert sgs.relative_times == pytest.approx({0: 1.1, 1: 1.3})
    assert sgs.relative_time == pytest.approx(1.2)
    assert sgs.values == {0: 0.84, 1: 0.92, 2: 0.10}
    assert sgs.seconds == pytest.approx((2 * (1.1 + 1.3) + 2 * 9.0) / 3)
    assert sgs.published == Published(90.0)


def test_relative_times_are_summed_up_by_their_median(make_record):
    records = [make_record(RECIPE, "plain", seed, [0.5], entry="plain") for seed in range(3)]
    records += [
        make_record(RECIPE, "sgs", seed, [0.5], entry="sgs", seconds=seconds)
        for seed, seconds in enumerate((9, 1.1, 1.3))
    ]
    assert summarize([PLAIN, SGS], records)[1].relative_time == pytest.approx(1.3)


def test_p_values_are_corrected_over_the_entries_that_have_one(make_record):
    entries = [PLAIN, *(replace(SGS, key=name, label=name) for name in "abc")]
    scores = {"plain": (0.5, 0.5, 0.5), "a": (0.6, 0.7, 0.65), "b": (0.6,), "c": (0.5, 0.6, 0.58)}
    records = [
        make_record(RECIPE, "plain" if entry == "plain" else "sgs", seed, [score], entry=entry)
        for entry, values in scores.items()
        for seed, score in enumerate(values)
    ]
    _, a, b, c = (summary.difference for summary in summarize(entries, records))
    assert b.p is b.p_holm is None
    assert a.p < c.p
    assert (a.p_holm, c.p_holm) == pytest.approx((2 * a.p, max(2 * a.p, c.p)))


def test_further_metrics_are_those_beside_the_headline(make_record):
    record = make_record(RECIPE, "plain", 0, [0.5], entry="plain")
    record.history[-1] |= {"test_mean_iou": 0.25, "test_mean_accuracy": 0.5, "test_pixel_accuracy": 0.75}
    (summary,) = summarize([PLAIN], [replace(record, metric="mean_iou")])
    assert (summary.mean, summary.metric) == (0.25, "mean_iou")
    assert summary.further == {"accuracy": 0.5, "mean_accuracy": 0.5, "pixel_accuracy": 0.75}


def test_an_entry_that_shares_runs_has_their_statistics_and_its_own_number(make_record):
    twin = Entry("twin", "twin", "plain", RECIPE, runs_of="plain", published=Published(70.0))
    compared = Entry("sgs", "sgs", "sgs", RECIPE, "twin")
    records = [
        make_record(RECIPE, "plain", 0, [0.5], entry="plain"),
        make_record(RECIPE, "sgs", 0, [0.75], entry="sgs"),
    ]
    _, shared, sgs = summarize([PLAIN, twin, compared], records)
    assert (shared.values, shared.published.value) == ({0: 0.5}, 70.0)
    assert sgs.difference.mean == 0.25


def test_times_of_different_hardware_are_not_compared(make_record):
    records = [
        make_record(RECIPE, "plain", 0, [0.5], entry="plain", cpu="slow", seconds=10.0),
        make_record(RECIPE, "plain", 1, [0.5], entry="plain"),
        make_record(RECIPE, "sgs", 0, [0.6], entry="sgs"),
        make_record(RECIPE, "sgs", 1, [0.6], entry="sgs", seconds=1.5),
    ]
    plain, moved = (make_record(RECIPE, method, 2, [0.5], entry=method) for method in ("plain", "sgs"))
    moved = replace(moved, environment=replace(moved.environment, earlier=("slow",)))
    for other in (plain, replace(plain, environment=moved.environment)):
        sgs = summarize([PLAIN, SGS], [*records, other, moved])[1]
        assert (sgs.difference.n, sgs.relative_times) == (3, {1: 1.5})


@pytest.mark.parametrize(
    ("threads", "settings", "compared"),
    [
        (16, {}, False),
        (1, {"compile": True}, False),
        (1, {"precision": "bf16"}, False),
        (1, {"channels_last": True}, False),
        (1, {"workers": 0}, False),
        (1, {"traces": False}, False),
        (1, {"checkpoint_every": 5, "evaluate_every": 5, "tracker": "mlflow", "device": "auto"}, True),
    ],
)
def test_times_of_other_threads_or_another_runtime_are_not_compared(threads, settings, compared, make_record):
    plain, sgs = (make_record(RECIPE, method, 0, [0.5], entry=method) for method in ("plain", "sgs"))
    runtime = replace(sgs.environment.runtime, **settings)
    other = replace(sgs, environment=replace(sgs.environment, threads=threads, runtime=runtime))
    assert summarize([PLAIN, SGS], [plain, other])[1].relative_times == ({0: 1.0} if compared else {})


def test_gpu_hours_are_those_of_a_run_and_memory_is_the_largest(make_record):
    records = [
        make_record(RECIPE, "plain", s, [0.5], entry="plain", gpu_hours=h, peak=p)
        for s, h, p in [(0, 1.5, 70), (1, 2.0, 80)]
    ]
    (summary,) = summarize([PLAIN], records)
    assert (summary.gpu_hours, summary.peak_memory) == (1.75, 80)
    (summary,) = summarize([PLAIN], [*records, make_record(RECIPE, "plain", 2, [0.5], entry="plain")])
    assert (summary.gpu_hours, summary.peak_memory) == (None, None)


def test_not_run():
    plain, shown = summarize([PLAIN, Entry("a", "a", "dbb", None, published=Published(70.0))], [])
    assert (plain.n, plain.mean, plain.std, plain.values, plain.difference) == (0, None, None, {}, None)
    assert (shown.n, shown.published.value) == (0, 70.0)


def test_calibration_is_shown_where_every_run_has_it(make_record):
    records = [make_record(RECIPE, "plain", seed, [0.5], entry="plain") for seed in (0, 1)]
    for record, loss in zip(records, (1.0, 3.0), strict=True):
        record.history[-1] |= {"test_loss": loss, "test_calibration_error": loss / 10}
    records[0].history[-1]["test_loss_at_alpha"] = 0.5
    (summary,) = summarize([PLAIN], records)
    assert summary.calibration == pytest.approx({"loss": 2.0, "calibration_error": 0.2})
