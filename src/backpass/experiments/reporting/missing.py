"""A note on the runs of a study that have no record: a mean without its diverged runs is that of the survivors."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from backpass.errors import DivergedError
from backpass.experiments.reporting.statistics import Summary
from backpass.experiments.study import Study

__all__ = ["end_of", "missing_note"]

_DIVERGED = f"{DivergedError.__module__}.{DivergedError.__qualname__}"


def missing_note(study: Study, summaries: Sequence[Summary], folder: Path | None = None) -> str | None:
    """Return a note that names each seed of each entry that has no record; ``None``: every record is there.

    Entries without any record are left out where no run of theirs is known to have failed: tables show them as not run.

    Args:
        study: with or without a tuning stage; before that has ended, no record can be missing, nor where none was
            planned.
        summaries: of its entries, in their order.
        folder: of its run folders, which tell whether a run diverged or failed; ``None``: that is not known.
    """
    if study.tuning is not None or not study.planned:
        return None
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
    return f"missing from means and tests: {'; '.join(parts)}" if parts else None


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
