"""A study's table, made from records alone, in the formats that people and machines read.

Texts show accuracies in % and differences in points; CSV and JSON hold the numbers themselves, as fractions.
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable
from tabulate import tabulate

from backpass.experiments.record import Record
from backpass.experiments.reporting.differences import Difference
from backpass.experiments.reporting.metrics import LABELS, common_label, label_of
from backpass.experiments.reporting.notes import notes_on_runs
from backpass.experiments.reporting.statistics import Summary, summarize
from backpass.experiments.reporting.terminal import TEXTS, terminal_table
from backpass.experiments.study import Study
from backpass.training.checkpoint import atomic_write

__all__ = [
    "NOT_RUN",
    "ResultTable",
    "calibration_table",
    "difference_table",
    "markdown_table",
    "result_table",
    "write_tables",
]

NOT_RUN = "not run"
_HEADLINE = "headline"
_DIFFERENCE = tuple(field.name for field in fields(Difference))


@dataclass(frozen=True)
class ResultTable:
    """A table ready to print.

    Attributes:
        title: what it shows.
        header: names of the columns.
        rows: texts, one for each column.
        summaries: the numbers behind the rows.
        notes: what a reader must know.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    summaries: tuple[Summary, ...]
    notes: tuple[str, ...]

    def markdown(self) -> str:
        """Return the table as Markdown; entries that were not run share one line below it."""
        run = [row for row, summary in zip(self.rows, self.summaries, strict=True) if summary.n]
        names = dict.fromkeys(summary.name for summary in self.summaries if not summary.n)
        notes = [*self.notes, *([f"{NOT_RUN}: {'; '.join(names)}"] if names else [])]
        table = markdown_table(self.header, run) if run else ""
        return "\n".join([f"**{self.title}**", "", table, *(f"- {_escaped(note)}" for note in notes)]).rstrip() + "\n"

    def _repr_markdown_(self) -> str:
        """Return what a notebook shows."""
        return self.markdown()

    def latex(self) -> str:
        """Return the table as a LaTeX ``table`` that needs the package ``booktabs``."""
        body = tabulate(self.rows, self.header, "latex_booktabs", disable_numparse=True, colalign=_sides(self.header))
        caption = tabulate([[" ".join(f"{text}." for text in (self.title, *self.notes))]], tablefmt="latex")
        caption = caption.splitlines()[2].strip().removesuffix("\\\\").strip()
        return "\n".join([r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", body, r"\end{table}", ""])

    def csv(self) -> str:
        """Return the numbers as CSV, an empty field for each that is missing."""
        lines = [_flat(summary) for summary in self.summaries]
        names = list(dict.fromkeys(name for line in lines for name in line))
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, fieldnames=names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return buffer.getvalue()

    def as_dict(self) -> dict[str, Any]:
        """Return title, notes and numbers as plain values."""
        return {"title": self.title, "notes": list(self.notes), "entries": [s.as_dict() for s in self.summaries]}

    def rich(self) -> RichTable:
        """Return the table for the terminal."""
        return terminal_table(self.title, self.notes, self.header, self.rows)


def result_table(study: Study, records: Sequence[Record], folder: Path | None = None) -> ResultTable:
    """Return the table of a study.

    An entry without records reads "not run"; a column without any value is left out, and so is the method where each
    entry is called after its method. Sizes are shown where some method trains another form than the one deployed. The
    headline metric gives its column its name; where entries have different ones, each is named in its line. A note
    names the seeds without a record; ``folder``, that of the run folders, tells which of them diverged or failed.
    Others name precisions, evaluated images and common seeds of the runs where these differ.
    """
    summaries = summarize(study.entries, records)
    shown = _columns(summaries) | (_SIZES if any(map(_was_branched, summaries)) else {})
    columns = [(name, [text(summary) for summary in summaries]) for name, text in shown.items()]
    by_method = all(summary.label == summary.method for summary in summaries)
    kept = [(name, texts) for name, texts in columns if any(texts) and not (by_method and name == "entry")]
    return ResultTable(
        title=study.title,
        header=tuple(name for name, _ in kept),
        rows=tuple(zip(*(texts for _, texts in kept), strict=True)),
        summaries=tuple(summaries),
        notes=(*study.notes, *notes_on_runs(study, records, summaries, folder)),
    )


def difference_table(summaries: Sequence[Summary]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return header and rows of a table of the differences to the baselines, in points, and of their tests."""
    rows: list[tuple[str, ...]] = [
        (
            summary.name,
            str(found.n),
            _number(found.mean, "+.2f", 100),
            _interval(found),
            _number(found.std, ".2f", 100),
            _number(found.effect, "+.2f"),
            _p_value(found.p),
            _p_value(found.p_holm),
            _number(found.detectable, ".2f", 100),
        )
        for summary in summaries
        if (found := summary.difference) is not None
    ]
    return ("entry", "n", "difference", "95 % CI", "std", "effect size", "p-value", "p (Holm)", "detectable"), rows


def calibration_table(summaries: Sequence[Summary]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return header and rows of a table of loss and calibration error, at the logits z and, with PGT, at alpha * z.

    Where a net trained with PGT is calibrated depends on how long it trained. Without rows where no record has these
    metrics.
    """
    rows: list[tuple[str, ...]] = []
    for summary in summaries:
        found = summary.calibration
        if found:
            loss, error = (
                [_number(found.get(f"{name}{suffix}"), ".3f", factor) for suffix in ("", "_at_alpha")]
                for name, factor in (("loss", 1), ("calibration_error", 100))
            )
            rows.append((summary.name, loss[0], error[0], loss[1], error[1]))
    return ("entry", "loss", "ECE, %", "loss at alpha z", "ECE at alpha z, %"), rows


def write_tables(table: ResultTable, folder: Path) -> None:
    """Write ``table.md``, ``table.tex``, ``table.csv`` and ``table.json``, each atomically."""
    contents = {
        "md": table.markdown(),
        "tex": table.latex(),
        "csv": table.csv(),
        "json": json.dumps(table.as_dict(), indent=1) + "\n",
    }
    for suffix, text in contents.items():
        atomic_write(folder / f"table.{suffix}", text.encode())


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""Return a table as Markdown, texts to the left, numbers to the right.

    >>> print(markdown_table(("entry", "n"), [("sgs | pgt", "5")]))
    | entry      |   n |
    |:-----------|----:|
    | sgs \| pgt |   5 |
    """
    cells = [[_escaped(cell) for cell in row] for row in rows]
    return str(tabulate(cells, header, "pipe", disable_numparse=True, colalign=_sides(header) if cells else None))


def _sides(header: Sequence[str]) -> tuple[str, ...]:
    return tuple("left" if number == 0 or name in TEXTS else "right" for number, name in enumerate(header))


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _number(value: float | None, form: str, factor: float = 1.0) -> str:
    return "" if value is None else format(factor * value, form)


def _interval(found: Difference | None) -> str:
    if found is None or found.low is None or found.high is None:
        return ""
    return f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"


def _p_value(p: float | None) -> str:
    if p is None:
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _was_branched(summary: Summary) -> bool:
    return (summary.params, summary.macs) != (summary.deployed_params, summary.deployed_macs)


def _size(params: int | None, macs: int | None) -> str:
    return "" if params is None or macs is None else f"{params / 1e6:.2f}M / {macs / 1e6:.1f}M"


_COLUMNS: dict[str, Callable[[Summary], str]] = {
    "entry": lambda s: s.label,
    "method": lambda s: s.method,
    "n": lambda s: str(s.n),
    _HEADLINE: lambda s: _number(s.mean, ".2f", 100) or NOT_RUN,
    "std": lambda s: _number(s.std, ".2f", 100),
    "train accuracy, %": lambda s: _number(s.train_accuracy, ".2f", 100),
    "difference": lambda s: _number(s.difference.mean if s.difference else None, "+.2f", 100),
    "95 % CI": lambda s: _interval(s.difference),
    "p (Holm)": lambda s: _p_value(s.difference.p_holm if s.difference else None),
    "relative time": lambda s: _number(s.relative_time, ".2f"),
    "seconds": lambda s: _number(s.seconds, ".1f"),
    "GPU hours": lambda s: _number(s.gpu_hours, ".2f"),
    "published": lambda s: str(s.published or ""),
    "published cost": lambda s: _number(s.published.cost if s.published else None, "g"),
}

# Parameters and multiply-adds of one image.
_SIZES: dict[str, Callable[[Summary], str]] = {
    "trained params / FLOPs": lambda s: _size(s.params, s.macs),
    "deployed params / FLOPs": lambda s: _size(s.deployed_params, s.deployed_macs),
}


def _columns(summaries: Sequence[Summary]) -> dict[str, Callable[[Summary], str]]:
    """Return the columns, the headline metric and the further ones under their labels."""
    metrics = list(dict.fromkeys(summary.metric for summary in summaries if summary.metric is not None))
    further = [name for name in LABELS if any(name in summary.further for summary in summaries)]
    columns: dict[str, Callable[[Summary], str]] = {}
    for name, text in _COLUMNS.items():
        if name == _HEADLINE and len(metrics) > 1:
            columns["metric"] = lambda s: label_of(s.metric) if s.metric else ""
        columns[f"{common_label(metrics or ['accuracy'])}, %" if name == _HEADLINE else name] = text
        if name == "std":
            columns |= {f"{label_of(other)}, %": _further(other) for other in further}
    return columns


def _further(name: str) -> Callable[[Summary], str]:
    return lambda summary: _number(summary.further.get(name), ".2f", 100)


def _flat(summary: Summary) -> dict[str, Any]:
    """Return a summary as one level of columns; texts that a spreadsheet would take for a formula are quoted."""
    flat = summary.as_dict()
    flat |= {key: f"'{flat[key]}" for key in ("label", "method") if flat[key][:1] in tuple("=+-@")}
    published = flat.pop("published") or {}
    difference = flat.pop("difference") or {}
    flat |= flat.pop("calibration")
    flat |= flat.pop("further")
    for key in ("values", "relative_times"):
        flat[key] = " ".join(f"{seed}:{value!r}" for seed, value in flat[key].items())
    flat |= {f"difference_{key}": difference.get(key) for key in _DIFFERENCE}
    return flat | {f"published_{key}": published.get(key) for key in ("value", "std", "cost", "flops", "params")}
