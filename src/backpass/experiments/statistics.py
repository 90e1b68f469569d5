"""What a set of runs amounts to: means, spreads, and paired differences to a baseline."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.stats import ttest_rel

from backpass.experiments.cells import to_plain
from backpass.experiments.plan import Line
from backpass.experiments.results import RunResult

__all__ = ["Difference", "Summary", "paired_difference", "runs_of", "summarize"]


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, and how far it is to be trusted.

    Attributes:
        n: number of pairs.
        mean: mean difference.
        low: lower end of its 95 % confidence interval (Student's t); ``None`` for one pair, or without any spread.
        high: upper end.
        p: two-sided p value of the paired t-test; ``None`` likewise.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    p: float | None


@dataclass(frozen=True)
class Summary:
    """One line of a table.

    Accuracies are those after the last epoch, as fractions.

    Attributes:
        label: what the line is called.
        method: the method.
        n: number of runs; 0: not run, and all that follows but ``paper`` is empty or ``None``.
        mean: mean accuracy.
        std: its sample standard deviation; ``None`` for a single run.
        values: accuracy by seed.
        difference: to the line's baseline over common seeds; ``None`` without one.
        time_ratio: training plus measuring time relative to the baseline, median over the common seeds that ran on the
            same hardware; ``None`` without one.
        seconds: mean seconds of training plus measuring.
        gpu_hours: of all runs together; ``None`` if one ran on a CPU.
        peak_memory: largest of all runs, in bytes; ``None`` likewise.
        parameters: of the form that is trained, at the end.
        macs: its multiply-adds of one image.
        deployed_parameters: of the plain network that is left.
        deployed_macs: its multiply-adds.
        paper: the paper's accuracy; ``None``: not at hand.
    """

    label: str
    method: str
    n: int
    mean: float | None
    std: float | None
    values: dict[int, float]
    difference: Difference | None
    time_ratio: float | None
    seconds: float | None
    gpu_hours: float | None
    peak_memory: float | None
    parameters: int | None
    macs: int | None
    deployed_parameters: int | None
    deployed_macs: int | None
    paper: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the line as plain values."""
        return asdict(self)


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Return the mean of ``values - baseline``, pair by pair, with its 95 % interval and paired t-test.

    The interval is ``mean +- t * s / sqrt(n)``, where ``s`` is the sample standard deviation of the differences and
    ``t`` the 0.975 quantile of Student's t with ``n - 1`` degrees of freedom. Both need some spread: with one pair, or
    with differences that are all the same, the data say nothing of their own error, and interval and p are ``None``.

    Args:
        values: at least one number.
        baseline: as many, in the same order.
    """
    differences = [value - base for value, base in zip(values, baseline, strict=True)]
    mean = statistics.fmean(differences)
    # Differences of equal pairs may differ in their last bits.
    if len(differences) < 2 or max(differences) - min(differences) < 1e-12:
        return Difference(len(differences), mean, None, None, None)
    test = ttest_rel(values, baseline)
    low, high = test.confidence_interval(0.95)
    return Difference(len(differences), mean, float(low), float(high), float(test.pvalue))


def summarize(lines: Sequence[Line], results: Sequence[RunResult]) -> list[Summary]:
    """Return one summary for each line, of the results of its recipe and method; other results are left aside."""
    runs = [runs_of(line, results) for line in lines]
    return [
        _summary(line, own, {} if line.baseline is None else runs[line.baseline])
        for line, own in zip(lines, runs, strict=True)
    ]


def runs_of(line: Line, results: Sequence[RunResult]) -> dict[int, RunResult]:
    """Return the results of the line's recipe and method by seed, in the order of the seeds."""
    if line.recipe is None:
        return {}
    recipe = to_plain(line.recipe)
    found = [result for result in results if result.method == line.method and result.run["recipe"] == recipe]
    return {result.seed: result for result in sorted(found, key=lambda result: result.seed)}


def _summary(line: Line, runs: Mapping[int, RunResult], baseline: Mapping[int, RunResult]) -> Summary:
    values = {seed: run.accuracy for seed, run in runs.items()}
    common = [seed for seed in runs if seed in baseline]
    difference = None
    if common:
        difference = paired_difference([values[s] for s in common], [baseline[s].accuracy for s in common])
    alike = [seed for seed in common if runs[seed].hardware == baseline[seed].hardware]
    ratios = [runs[seed].seconds / baseline[seed].seconds for seed in alike]
    hours = [run.cost["gpu_hours"] for run in runs.values()]
    peaks = [run.cost["peak_memory"] for run in runs.values()]
    model = next((run.model for run in runs.values()), {})
    return Summary(
        label=line.label,
        method=line.method,
        n=len(runs),
        mean=statistics.fmean(values.values()) if runs else None,
        std=statistics.stdev(values.values()) if len(runs) > 1 else None,
        values=values,
        difference=difference,
        time_ratio=statistics.median(ratios) if ratios else None,
        seconds=statistics.fmean(run.seconds for run in runs.values()) if runs else None,
        gpu_hours=_total(hours),
        peak_memory=None if None in peaks or not peaks else max(peak for peak in peaks if peak is not None),
        parameters=model.get("parameters"),
        macs=model.get("macs"),
        deployed_parameters=model.get("deployed_parameters"),
        deployed_macs=model.get("deployed_macs"),
        paper=line.paper,
    )


def _total(amounts: Sequence[float | None]) -> float | None:
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if known and len(known) == len(amounts) else None
