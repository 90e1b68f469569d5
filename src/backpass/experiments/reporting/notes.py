"""Notes on the runs of a table: those without a record, and in what the others are unlike.

A mean without its diverged runs is that of the survivors, and numbers of unlike runs are not simply comparable.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from backpass.errors import DivergedError
from backpass.experiments.entry import Entry
from backpass.experiments.record import Record
from backpass.experiments.reporting.statistics import Summary, records_of
from backpass.experiments.study import Study

__all__ = ["end_of", "notes_on_runs"]

_DIVERGED = f"{DivergedError.__module__}.{DivergedError.__qualname__}"
_PRECISIONS = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}


def notes_on_runs(
    study: Study, records: Sequence[Record], summaries: Sequence[Summary], folder: Path | None = None
) -> Iterator[str]:
    """Yield a note on missing records, or on differences over fewer seeds than there are runs; and on unlike runs.

    Runs are unlike in precision or in the evaluated split.

    Args:
        study: with or without a tuning stage.
        records: of its runs.
        summaries: of its entries, in their order.
        folder: of its run folders, which tell whether a run diverged or failed; ``None``: that is not known.
    """
    if missing := _missing(study, summaries, folder):
        yield f"missing from means and tests: {'; '.join(missing)}"
    elif fewer := _fewer(study.entries, summaries):
        yield f"differences are over common seeds, fewer than there are runs: {'; '.join(fewer)}"
    if listed := _unlike(study.entries, records, lambda record: _PRECISIONS[record.environment.runtime.precision]):
        yield f"computed in different precisions, from which differences may come: {listed}"
    if listed := _unlike(study.entries, records, lambda record: f"{record.data.split} images"):
        yield f"evaluated on different images, so that the results are not comparable: {listed}"


def _missing(study: Study, summaries: Sequence[Summary], folder: Path | None) -> list[str]:
    """Return the seeds of each entry without a record.

    Entries without any record are left out where no run of theirs is known to have failed: tables show them as not run.
    Before a tuning stage has ended, no record can be missing, nor where none was planned.
    """
    if study.tuning is not None or not study.planned:
        return []
    folders = {(run.entry, run.run.seed): run.folder for run in study.runs()}
    parts: list[str] = []
    for entry, summary in zip(study.entries, summaries, strict=True):
        by_end: dict[str, list[int]] = {}
        for seed in sorted(study.seeds):
            run = folders.get((entry.run_key, seed))
            if run is not None and seed not in summary.values:
                by_end.setdefault(end_of(folder / run) if folder else "", []).append(seed)
        if summary.n or set(by_end) - {""}:
            parts += [f"{summary.name}, {_seeds(seeds)}{end and f' ({end})'}" for end, seeds in by_end.items()]
    return parts


def end_of(folder: Path) -> Literal["", "diverged", "failed"]:
    """Return how the last attempt at a run without a record ended, by the traceback in its folder; empty: not known."""
    try:
        lines = (folder / "error.txt").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "diverged" if any(line.partition(":")[0] == _DIVERGED for line in lines) else "failed"


def _seeds(seeds: Iterable[int]) -> str:
    """Return sorted seeds in words, three or more in a row as a range."""
    rows: list[list[int]] = []
    for seed in seeds:
        if rows and seed == rows[-1][-1] + 1:
            rows[-1].append(seed)
        else:
            rows.append([seed])
    words = [word for row in rows for word in ([f"{row[0]} to {row[-1]}"] if len(row) > 2 else map(str, row))]
    *first, last = words
    return f"seeds {', '.join(first)} and {last}" if first else f"seed{'s' if ' ' in last else ''} {last}"


def _fewer(entries: Sequence[Entry], summaries: Sequence[Summary]) -> list[str]:
    """Return the number of common seeds of each difference that is over fewer than there are runs."""
    counts = {entry.key: summary.n for entry, summary in zip(entries, summaries, strict=True)}
    return [
        f"{summary.name}: {summary.difference.n}"
        for entry, summary in zip(entries, summaries, strict=True)
        if summary.difference is not None and summary.difference.n < max(summary.n, counts.get(entry.baseline or "", 0))
    ]


def _unlike(entries: Sequence[Entry], records: Sequence[Record], word: Callable[[Record], str]) -> str:
    """Return the words of each entry's runs; empty: all runs have one."""
    words = {entry.name: dict.fromkeys(map(word, records_of(entry, records).values())) for entry in entries}
    if len({found for of_entry in words.values() for found in of_entry}) < 2:
        return ""
    return "; ".join(f"{name}: {' and '.join(found)}" for name, found in words.items() if found)
