import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from backpass.__main__ import main
from backpass.errors import InputError
from backpass.experiments.power import power_of, seeds_needed, smallest_difference, spread_of_differences


def test_power_is_the_share_of_samples_whose_test_tells_the_difference():
    generator = np.random.default_rng(0)
    samples = generator.normal(0.7, 1.0, (20_000, 8))
    told = (scipy.stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05).mean()
    assert power_of(0.7, 1.0, 8) == pytest.approx(told, abs=0.011)  # three standard errors


def test_without_a_difference_the_test_errs_as_often_as_its_level():
    assert power_of(0.0, 1.0, 5) == pytest.approx(0.05)
    assert power_of(0.0, 1.0, 5, level=0.01) == pytest.approx(0.01)


@pytest.mark.parametrize("seeds", [2, 3, 10, 300])
def test_the_smallest_difference_has_the_power_asked_for(seeds):
    found = smallest_difference(0.6, seeds, level=0.01, power=0.8)
    assert power_of(found, 0.6, seeds, level=0.01) == pytest.approx(0.8, abs=1e-6)


@pytest.mark.parametrize("difference", [0.1, 0.5, -1.0, 20.0])
def test_one_seed_less_has_too_little_power(difference):
    seeds = seeds_needed(difference, 0.6)
    assert power_of(difference, 0.6, seeds) >= 0.9
    assert seeds == 2 or power_of(difference, 0.6, seeds - 1) < 0.9


@pytest.mark.parametrize(("difference", "std", "level"), [(0.5, 0.7, 1e-4), (0.4, 1.0, 5e-4)])
def test_small_levels_have_a_number_of_seeds(difference, std, level):
    seeds = seeds_needed(difference, std, level)
    # The reference: given the sample's standard deviation s, the mean is normal and the test a bound on it.
    bound, deviations = scipy.stats.t.isf(level / 2, seeds - 1), scipy.stats.chi(seeds - 1)
    shift = math.sqrt(seeds) * difference / std

    def told(chi):
        limit = bound * chi / math.sqrt(seeds - 1)
        return (scipy.stats.norm.sf(limit - shift) + scipy.stats.norm.cdf(-limit - shift)) * deviations.pdf(chi)

    power = scipy.integrate.quad(told, *deviations.ppf([1e-12, 1 - 1e-12]))[0]
    assert power_of(difference, std, seeds, level) == pytest.approx(power, abs=1e-7)
    assert power >= 0.9 > power_of(difference, std, seeds - 1, level)


def test_spread_of_differences():
    assert spread_of_differences(0.15) == pytest.approx(0.15 * math.sqrt(2))
    assert spread_of_differences(0.15, 0.5) == pytest.approx(0.15)


@pytest.mark.parametrize(
    "call",
    [
        lambda: power_of(1, 0, 5),
        lambda: power_of(1, 1, 1),
        lambda: power_of(1, 1, 5, level=0),
        lambda: seeds_needed(0, 1),
        lambda: seeds_needed(1e-9, 1),
        lambda: seeds_needed(1, 1, power=1),
        lambda: smallest_difference(math.nan, 5),
        lambda: smallest_difference(1, 5, level=math.nan),
        lambda: smallest_difference(1, 5, level=-1),
        lambda: spread_of_differences(1, 1),
        lambda: spread_of_differences(0),
    ],
)
def test_numbers_out_of_range_are_refused(call):
    with pytest.raises(InputError, match="expected"):
        call()


@pytest.mark.parametrize("power", [0.04, 0.05])
def test_a_power_that_needs_no_difference_is_refused(power):
    text = rf"expected a power above the level, 0\.05, and below 1, got {power}"
    with pytest.raises(InputError, match=text):
        smallest_difference(0.2, 5, power=power)
    with pytest.raises(InputError, match=text):
        seeds_needed(0.2, 0.2, power=power)


def test_a_power_that_scipy_does_not_find_is_no_number():
    for call in (
        lambda: smallest_difference(0.2, 2, level=1e-9, power=0.999),
        lambda: seeds_needed(1e12, 1.0),
    ):
        with pytest.raises(InputError, match="expected numbers at which SciPy finds the power, got a difference of"):
            call()


@pytest.mark.parametrize("options", [("--power", "0.04", "--seeds", "5"), ("--level", "1e-9", "--seeds", "2")])
def test_the_command_has_no_traceback(options, capsys):
    assert main(["power", "--spread", "0.15", *options]) == 2
    assert capsys.readouterr().err.startswith("backpass: expected ")
