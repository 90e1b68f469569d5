"""A study's table, made from result files alone, in the formats that people and machines read.

Texts show accuracies in % and differences in points; CSV and JSON hold the numbers themselves, as fractions.
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable

from backpass.experiments.plan import Plan
from backpass.experiments.results import RunResult
from backpass.experiments.statistics import Summary, summarize
from backpass.training.checkpoint import atomic_write

__all__ = ["ResultTable", "result_table", "write_tables"]


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
        """Return the table as Markdown; texts are to the left, numbers to the right."""
        rule = ["---" if name in _LEFT else "---:" for name in self.header]
        lines = [f"**{self.title}**", "", _markdown_row(self.header), _markdown_row(rule)]
        lines += [_markdown_row([cell.replace("|", "\\|") for cell in row]) for row in self.rows]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)]).rstrip() + "\n"

    def latex(self) -> str:
        """Return the table as a LaTeX ``table`` that needs the package ``booktabs``."""
        columns = "".join("l" if name in _LEFT else "r" for name in self.header)
        rows = [" & ".join(_latex_text(cell) for cell in row) + r" \\" for row in (self.header, *self.rows)]
        caption = " ".join(_latex_text(f"{text}.") for text in (self.title, *self.notes))
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{caption}}}",
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                rows[0],
                r"\midrule",
                *rows[1:],
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )

    def csv(self) -> str:
        """Return the numbers as CSV, an empty field for each that is missing."""
        records = [_flat(summary) for summary in self.summaries]
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, fieldnames=list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        return buffer.getvalue()

    def as_dict(self) -> dict[str, Any]:
        """Return title, notes and numbers as plain values."""
        return {"title": self.title, "notes": list(self.notes), "rows": [s.as_dict() for s in self.summaries]}

    def rich(self) -> RichTable:
        """Return the table for the terminal."""
        table = RichTable(
            title=self.title,
            title_justify="left",
            caption="\n".join(self.notes),
            caption_justify="left",
            box=SIMPLE_HEAD,  # fits the columns of a comparison in 80 characters
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        for name in self.header:
            table.add_column(name, justify="left" if name in _LEFT else "right")
        for row in self.rows:
            table.add_row(*row)
        return table


def result_table(plan: Plan, results: Sequence[RunResult]) -> ResultTable:
    """Return the table of a study.

    A line without results reads "not run"; a column without any entry is left out, and so is the method where each line
    is called after its method. Sizes stand there where some method trains another form than the one that is deployed.
    """
    summaries = summarize(plan.lines, results)
    branched = any(_was_branched(summary) for summary in summaries)
    columns = [(name, [text(summary) for summary in summaries]) for name, text in _COLUMNS.items()]
    if branched:
        columns += [(name, [text(summary) for summary in summaries]) for name, text in _SIZES.items()]
    by_method = all(summary.label == summary.method for summary in summaries)
    kept = [(name, texts) for name, texts in columns if any(texts) and not (by_method and name == "row")]
    return ResultTable(
        title=plan.title,
        header=tuple(name for name, _ in kept),
        rows=tuple(zip(*(texts for _, texts in kept), strict=True)),
        summaries=tuple(summaries),
        notes=plan.notes,
    )


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


def _interval(summary: Summary) -> str:
    found = summary.difference
    if found is None or found.low is None or found.high is None:
        return ""
    return f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"


def _p_value(summary: Summary) -> str:
    if summary.difference is None or summary.difference.p is None:
        return ""
    return "<0.001" if summary.difference.p < 0.001 else f"{summary.difference.p:.3f}"


def _was_branched(summary: Summary) -> bool:
    return (summary.parameters, summary.macs) != (summary.deployed_parameters, summary.deployed_macs)


def _size(parameters: int | None, macs: int | None) -> str:
    return "" if parameters is None or macs is None else f"{parameters / 1e6:.2f}M / {macs / 1e6:.1f}M"


def _number(value: float | None, form: str, factor: float = 1.0) -> str:
    return "" if value is None else format(factor * value, form)


_LEFT = ("row", "method")
_COLUMNS: dict[str, Callable[[Summary], str]] = {
    "row": lambda s: s.label,
    "method": lambda s: s.method,
    "n": lambda s: str(s.n),
    "accuracy, %": lambda s: _number(s.mean, ".2f", 100) or "not run",
    "std": lambda s: _number(s.std, ".2f", 100),
    "difference": lambda s: _number(s.difference.mean if s.difference else None, "+.2f", 100),
    "95 % interval": _interval,
    "p": _p_value,
    "time ratio": lambda s: _number(s.time_ratio, ".2f"),
    "seconds a run": lambda s: _number(s.seconds, ".1f"),
    "GPU hours": lambda s: _number(s.gpu_hours, ".2f"),
    "paper, %": lambda s: _number(s.paper, ".2f", 100),
}


# Parameters and multiply-adds of one image.
_SIZES: dict[str, Callable[[Summary], str]] = {
    "trained": lambda s: _size(s.parameters, s.macs),
    "deployed": lambda s: _size(s.deployed_parameters, s.deployed_macs),
}


def _flat(summary: Summary) -> dict[str, Any]:
    """Return a summary as one level of columns."""
    flat = summary.as_dict()
    difference = flat.pop("difference") or {}
    flat["values"] = " ".join(f"{seed}:{value!r}" for seed, value in summary.values.items())
    return flat | {f"difference_{key}": difference.get(key) for key in ("n", "mean", "low", "high", "p")}


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
_LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
