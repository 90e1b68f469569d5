"""What commands print, and the names of the folders they make."""

import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from rich.console import Console

from backpass._internal.settings import Range
from backpass.experiments import Record, Study, write_report
from backpass.experiments.tuning import Choice

__all__ = ["Processes", "new_name", "print_json", "resume_hint", "show"]

Processes = Annotated[int, Range(at_least=1, at_most=1024)]
"""Number of workers on one machine."""


def resume_hint(folder: Path) -> str:
    """Return what to do after an interrupt."""
    return f"to resume, give the same command with --out {shlex.quote(str(folder))}"


def new_name(name: str) -> str:
    """Return a folder name that ends with the time."""
    safe = "".join(c if c.isalnum() or c in "+-_." else "-" for c in name)
    return f"{safe}-{time.strftime('%Y%m%d-%H%M%S')}"


def show(study: Study, records: list[Record], folder: Path, *, choices: Sequence[Choice] = (), as_json: bool) -> None:
    """Write report and tables, and print the table, or the same as JSON."""
    table = write_report(study, records, folder, choices)
    report = folder / "report.html"
    if as_json:
        print_json({"folder": str(folder), "report": str(report), **table.as_dict()})
        return
    console = Console()
    console.print(table.rich())
    console.print(f"runs   {folder}\nreport {report}", highlight=False, markup=False, soft_wrap=True)


def print_json(content: object) -> None:
    """Print plain values as JSON."""
    print(json.dumps(content, indent=1))  # noqa: T201
