"""Paired differences to a baseline: interval, test, effect size, and what n seeds could have detected."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from backpass.experiments.near_equal import nearly_equal
from backpass.experiments.power import smallest_difference

__all__ = ["Difference", "holm", "paired_difference"]


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, with its uncertainty; all but ``n`` and ``mean`` are ``None`` without any spread.

    Attributes:
        n: number of pairs.
        mean: mean difference.
        std: sample standard deviation of the differences.
        low: lower end of the 95 % confidence interval of the mean (Student's t).
        high: upper end.
        p: two-sided p-value of the paired t-test.
        p_holm: the same with Holm's correction over all differences of the study.
        effect: effect size ``mean / std`` (Cohen's d of paired samples).
        detectable: the smallest true difference that n such pairs detect at p < 0.05 with power 0.9
            (:func:`backpass.experiments.power.smallest_difference`).
    """

    n: int
    mean: float
    std: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    effect: float | None = None
    detectable: float | None = None


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Return the mean of ``values - baseline``, pair by pair, with its 95 % interval and paired t-test.

    The interval is ``mean +- t * s / sqrt(n)``, where ``s`` is the sample standard deviation of the differences and
    ``t`` the 0.975 quantile of Student's t with ``n - 1`` degrees of freedom. It needs some spread: with one pair, or
    with differences that are all the same up to rounding in float32, the data say nothing of their own error.

    Args:
        values: at least one number.
        baseline: the same number of them, in the same order.

    Returns:
        The difference; ``p_holm`` is ``None`` (:func:`holm`).
    """
    differences = [value - base for value, base in zip(values, baseline, strict=True)]
    mean, n = statistics.fmean(differences), len(differences)
    if n < 2 or nearly_equal(max(differences), min(differences)):
        return Difference(n, mean)
    from scipy.stats import ttest_rel  # Here, since it takes seconds to load, which no worker needs to wait for.

    test, std = ttest_rel(values, baseline), statistics.stdev(differences)
    low, high = test.confidence_interval(0.95)
    return Difference(
        n=n,
        mean=mean,
        std=std,
        low=float(low),
        high=float(high),
        p=float(test.pvalue),
        effect=mean / std,
        detectable=smallest_difference(std, n),
    )


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected for their number by Holm's step-down method; those that are ``None`` do not count.

    The i-th smallest of m values becomes the largest of ``(m - j + 1) * p_j`` over all j up to i, and 1 at most.

    >>> holm([0.01, 0.04, None, 0.03])
    [0.03, 0.06, None, 0.06]
    """
    ordered = sorted((p, number) for number, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, number) in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - rank) * p))
        corrected[number] = largest
    return corrected
