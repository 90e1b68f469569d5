"""In what the runs of a table are unlike, so that their numbers are not simply comparable."""

from collections.abc import Callable, Iterator, Sequence

from backpass.experiments.entry import Entry
from backpass.experiments.record import Record
from backpass.experiments.reporting.statistics import Summary, records_of

__all__ = ["common_seeds_note", "notes_on_unlike_runs"]

_PRECISIONS = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}


def notes_on_unlike_runs(entries: Sequence[Entry], records: Sequence[Record]) -> Iterator[str]:
    """Yield a note for each of these that not all runs have in common: precision, evaluated split.

    Args:
        entries: of the study.
        records: of its runs.
    """
    if listed := _by_entry(entries, records, lambda record: _PRECISIONS[record.environment.runtime.precision]):
        yield f"computed in different precisions, from which differences may come: {listed}"
    if listed := _by_entry(entries, records, lambda record: f"{record.data.split} images"):
        yield f"evaluated on different images, so that the results are not comparable: {listed}"


def common_seeds_note(entries: Sequence[Entry], summaries: Sequence[Summary]) -> str | None:
    """Return a note on differences over fewer seeds than the entries have runs; ``None``: there are none."""
    counts = {entry.key: summary.n for entry, summary in zip(entries, summaries, strict=True)}
    fewer = [
        f"{summary.name}: {summary.difference.n}"
        for entry, summary in zip(entries, summaries, strict=True)
        if summary.difference is not None and summary.difference.n < max(summary.n, counts.get(entry.baseline or "", 0))
    ]
    return f"differences are over common seeds, fewer than there are runs: {'; '.join(fewer)}" if fewer else None


def _by_entry(entries: Sequence[Entry], records: Sequence[Record], word: Callable[[Record], str]) -> str:
    """Return the words of each entry's runs; empty: all runs have one."""
    words = {entry.name: dict.fromkeys(map(word, records_of(entry, records).values())) for entry in entries}
    if len({found for of_entry in words.values() for found in of_entry}) < 2:
        return ""
    return "; ".join(f"{name}: {' and '.join(found)}" for name, found in words.items() if found)
