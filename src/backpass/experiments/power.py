"""Power of the paired t-test: the seeds that detect a difference, and the difference that a number of seeds detects."""

import math
import warnings

from backpass.errors import InputError

__all__ = ["LEVEL", "POWER", "power_of", "seeds_needed", "smallest_difference", "spread_of_differences"]

LEVEL = 0.05
POWER = 0.9
_MOST_SEEDS = 1_000_000


def spread_of_differences(spread: float, correlation: float = 0.0) -> float:
    """Return the standard deviation of paired differences of two methods that have the same spread over seeds.

    That is ``spread * sqrt(2 * (1 - correlation))``.

    Args:
        spread: standard deviation of one method's accuracy over seeds.
        correlation: of the two methods' accuracies over common seeds; 0 where the seed decides nothing in common.
    """
    if not spread > 0 or not -1 <= correlation < 1:
        raise InputError(
            f"expected a spread above 0 and a correlation from -1 to below 1, got {spread} and {correlation}; "
            "choose other values"
        )
    return spread * math.sqrt(2 * (1 - correlation))


def power_of(difference: float, std: float, seeds: int, level: float = LEVEL) -> float:
    """Return the probability that the two-sided paired t-test detects a true difference.

    With ``t`` the quantile of Student's t at ``1 - level / 2`` with ``n - 1`` degrees of freedom, it is the probability
    that a noncentral t with the same degrees and noncentrality ``sqrt(n) * difference / std`` lies outside ``-t .. t``.

    Args:
        difference: mean of the paired differences.
        std: their standard deviation, in the same unit.
        seeds: number of pairs n, at least 2.
        level: largest p-value that counts.

    Raises:
        InputError: a number out of its range, or numbers at which SciPy finds no power, such as a level of 1e-9 with 2
            seeds.
    """
    if not std > 0 or seeds < 2 or not 0 < level < 1:
        raise InputError(
            f"expected std > 0, at least 2 seeds and a level between 0 and 1, got {std}, {seeds} and {level}; "
            "choose other values"
        )
    import numpy as np
    from scipy.stats import nct, t  # Here, since it takes seconds to load, which no worker needs to wait for.

    bound = t.ppf(1 - level / 2, seeds - 1)
    shift = math.sqrt(seeds) * abs(difference) / std
    try:
        with np.errstate(divide="ignore"), warnings.catch_warnings():  # of SciPy 1.13, with the right value
            warnings.simplefilter("error", RuntimeWarning)  # a series that did not converge, whose value is wrong
            # The lower tail as the upper one of the mirrored distribution: SciPy's cdf may be NaN there.
            found = float(nct.sf(bound, seeds - 1, shift)) + float(nct.sf(bound, seeds - 1, -shift))
    except RuntimeWarning:
        found = math.nan
    if not math.isfinite(found):
        raise InputError(
            f"expected numbers at which SciPy finds the power, got a difference of {difference:g} at std {std:g} with "
            f"{seeds} seeds and level {level:g}; use more seeds or a larger level"
        )
    return found


def seeds_needed(difference: float, std: float, level: float = LEVEL, power: float = POWER) -> int:
    """Return the smallest number of seeds that detects a difference with at least this power (:func:`power_of`).

    >>> seeds_needed(0.2, spread_of_differences(0.15), level=0.01, power=0.9)
    21

    Raises:
        InputError: a number out of its range, a power that is no larger than the level, no difference, or one that
            takes more than a million seeds.
    """
    _check_power(power, level)
    if difference == 0:
        raise InputError("expected a difference above 0 to detect, got 0; pass the smallest difference of interest")
    high = 2
    while power_of(difference, std, high, level) < power:
        if high == _MOST_SEEDS:
            raise InputError(
                f"expected a difference that a million seeds detect, got {difference} at std {std}; pass a larger one"
            )
        high = min(2 * high, _MOST_SEEDS)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(difference, std, max(middle, 2), level) >= power else (middle, high)
    return max(high, 2)


def smallest_difference(std: float, seeds: int, level: float = LEVEL, power: float = POWER) -> float:
    """Return the smallest true difference that this number of seeds detects with this power (:func:`power_of`).

    >>> round(smallest_difference(0.6, 10), 2)
    0.69

    Raises:
        InputError: a number out of its range, or a power that is no larger than the level.
    """
    _check_power(power, level)
    power_of(1.0, std, seeds, level)  # checks the others
    from scipy.optimize import brentq

    high = std
    while power_of(high, std, seeds, level) < power:
        high *= 2
    found: float = brentq(lambda d: power_of(d, std, seeds, level) - power, 0.0, high)
    return found


def _check_power(power: float, level: float) -> None:
    """Raise InputError for a power that the test has without any difference, or cannot reach."""
    if not max(level, 0) < power < 1:
        raise InputError(
            f"expected a power above the level, {level:g}, and below 1, got {power:g}; choose one such as {POWER}: "
            "without any difference, the power is the level"
        )
