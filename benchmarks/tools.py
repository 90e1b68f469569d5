"""What the benchmarks share: how timings are summarized, and where they were taken."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

from scipy.stats import t as student_t

from backpass.experiments.environment import environment
from backpass.training.recipe import Runtime

__all__ = ["environment_of", "mean_interval", "spread"]


def environment_of(runtime: Runtime | None = None) -> dict[str, Any]:
    """Return commit, versions and hardware of this process as plain values."""
    return dataclasses.asdict(environment(runtime or Runtime()))


def spread(values: Sequence[float], unit: float = 1.0, digits: int = 2) -> str:
    """Return the median with the quartiles in brackets, in multiples of ``unit``.

    >>> spread([1.0, 2.0, 3.0, 4.0, 5.0])
    '3.00 (2.00-4.00)'
    """
    scaled = [value / unit for value in values]
    if len(scaled) == 1:
        return f"{scaled[0]:.{digits}f}"
    low, middle, high = statistics.quantiles(scaled, n=4, method="inclusive")
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def mean_interval(values: Sequence[float]) -> tuple[float, float, float] | None:
    """Return the mean of the values and the ends of its 95 % confidence interval (Student's t); ``None`` for one value.

    >>> mean, low, high = mean_interval([1.0, 2.0, 3.0])
    >>> round(mean, 3), round(low, 3), round(high, 3)
    (2.0, -0.484, 4.484)
    """
    if len(values) < 2:
        return None
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    half = float(student_t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))
    return mean, mean - half, mean + half
