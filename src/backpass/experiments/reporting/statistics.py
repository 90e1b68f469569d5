"""Statistics of a study, entry by entry: means, spreads, and the difference to the baseline."""

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from backpass.experiments.entry import Entry, Published, entry_name
from backpass.experiments.record import Record
from backpass.experiments.reporting.differences import Difference, holm, paired_difference
from backpass.experiments.reporting.metrics import LABELS
from backpass.training.recipe import Runtime

__all__ = ["Summary", "records_of", "summarize"]


_CALIBRATION = ("loss", "calibration_error", "loss_at_alpha", "calibration_error_at_alpha")


@dataclass(frozen=True)
class Summary:
    """The statistics of one entry. Its metric is the headline metric of its task after the last epoch, as a fraction.

    Attributes:
        label: of the entry.
        method: of the entry.
        n: number of runs; with 0 of them all that follows but ``published`` is empty or ``None``.
        mean: mean of the metric.
        std: its sample standard deviation; ``None`` for a single run.
        values: the metric by seed.
        train_accuracy: mean accuracy on the augmented training images of the last epoch; ``None`` where a run has none.
        calibration: means of the last epoch's ``loss`` and ``calibration_error`` of the evaluated split and, with PGT,
            ``loss_at_alpha`` and ``calibration_error_at_alpha``; those that every run has.
        difference: to the baseline over common seeds; ``None`` without one.
        relative_times: training plus measuring time relative to the baseline, by seed, for common seeds that ran from
            their first epoch to the last on the same hardware and, as their records tell of the last start, with the
            same number of threads and, but for ``checkpoint_every``, ``evaluate_every`` and ``tracker``, the same
            runtime.
        seconds: mean seconds of training plus measuring.
        gpu_hours: mean of a run, evaluation included; ``None`` if one ran on a CPU.
        peak_memory: largest of all runs, in bytes; ``None`` likewise.
        params: of the form that is trained, at the end; the rounded mean, since DyRep grows another in each run.
        macs: its multiply-adds of one image, likewise.
        deployed_params: of the plain network that is left, likewise.
        deployed_macs: its multiply-adds, likewise.
        published: what the paper prints; ``None``: nothing.
        metric: name of the metric; ``None``: no run.
        further: means of the other metrics that have a label in tables.
    """

    label: str
    method: str
    n: int
    mean: float | None
    std: float | None
    values: dict[int, float]
    train_accuracy: float | None
    calibration: dict[str, float]
    difference: Difference | None
    relative_times: dict[int, float]
    seconds: float | None
    gpu_hours: float | None
    peak_memory: int | None
    params: int | None
    macs: int | None
    deployed_params: int | None
    deployed_macs: int | None
    published: Published | None
    metric: str | None = None
    further: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The label, with the method where entries of several methods may share it."""
        return entry_name(self.label, self.method)

    @property
    def relative_time(self) -> float | None:
        """Median of the relative times; ``None`` without any."""
        return statistics.median(self.relative_times.values()) if self.relative_times else None

    def as_dict(self) -> dict[str, Any]:
        """Return the statistics as plain values."""
        return asdict(self)


def summarize(entries: Sequence[Entry], records: Sequence[Record]) -> list[Summary]:
    """Return one summary for each entry, of the records that carry its key; p-values are corrected over all entries."""
    by_key = {entry.key: records_of(entry, records) for entry in entries}
    found = [_summary(entry, by_key[entry.key], by_key.get(entry.baseline or "", {})) for entry in entries]
    corrected = holm([None if s.difference is None else s.difference.p for s in found])
    return [
        s if s.difference is None else replace(s, difference=replace(s.difference, p_holm=p))
        for s, p in zip(found, corrected, strict=True)
    ]


def records_of(entry: Entry, records: Sequence[Record]) -> dict[int, Record]:
    """Return the records of an entry by seed, in the order of the seeds."""
    own = [record for record in records if record.entry == entry.run_key]
    return {record.seed: record for record in sorted(own, key=lambda record: record.seed)}


def _summary(entry: Entry, records: Mapping[int, Record], baseline: Mapping[int, Record]) -> Summary:
    values = {seed: record.score for seed, record in records.items()}
    common = [seed for seed in records if seed in baseline]
    difference = None
    if common:
        difference = paired_difference([values[s] for s in common], [baseline[s].score for s in common])
    moved = [seed for seed in common if records[seed].environment.earlier or baseline[seed].environment.earlier]
    alike = [s for s in common if s not in moved and _conditions(records[s]) == _conditions(baseline[s])]
    peaks = [record.cost.peak_memory for record in records.values()]
    models = [record.model for record in records.values()]
    return Summary(
        label=entry.label,
        method=entry.method,
        n=len(records),
        mean=_mean(values.values()),
        std=statistics.stdev(values.values()) if len(records) > 1 else None,
        values=values,
        train_accuracy=_mean(record.history[-1].get("train_accuracy") for record in records.values()),
        calibration=_last_means(records.values(), _CALIBRATION),
        difference=difference,
        relative_times={seed: records[seed].seconds / baseline[seed].seconds for seed in alike},
        seconds=_mean(record.seconds for record in records.values()),
        gpu_hours=_mean(record.cost.gpu_hours for record in records.values()),
        peak_memory=None if None in peaks or not peaks else max(peak for peak in peaks if peak is not None),
        params=_rounded_mean(model.parameters for model in models),
        macs=_rounded_mean(model.macs for model in models),
        deployed_params=_rounded_mean(model.deployed_parameters for model in models),
        deployed_macs=_rounded_mean(model.deployed_macs for model in models),
        published=entry.published,
        metric=next((record.metric for record in records.values()), None),
        further=_last_means(records.values(), [n for n in LABELS if all(r.metric != n for r in records.values())]),
    )


def _conditions(record: Record) -> tuple[str, int, Runtime]:
    """Return what decides how long a step takes, whatever its recipe and method."""
    # Checkpoints, evaluations and trackers are timed apart or not at all; the hardware names the device.
    runtime = replace(record.environment.runtime, device="auto", checkpoint_every=1, evaluate_every=1, tracker=None)
    return record.hardware, record.environment.threads, runtime


def _last_means(records: Collection[Record], names: Iterable[str]) -> dict[str, float]:
    """Return the means of metrics of the evaluated split after the last epoch; those that every run has."""
    means = {name: _mean(record.history[-1].get(f"{record.data.split}_{name}") for record in records) for name in names}
    return {name: mean for name, mean in means.items() if mean is not None}


def _mean(amounts: Iterable[float | None]) -> float | None:
    """Return the mean; ``None`` where there is no number, or one is missing."""
    given = list(amounts)
    known = [amount for amount in given if amount is not None]
    return statistics.fmean(known) if known and len(known) == len(given) else None


def _rounded_mean(counts: Iterable[int | None]) -> int | None:
    mean = _mean(counts)
    return None if mean is None else round(mean)
