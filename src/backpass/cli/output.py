"""What commands print, and the names of the folders they make."""

import json
import secrets
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.table import Table

from backpass._internal.settings import Range
from backpass.experiments import Record, Study, write_report
from backpass.experiments.tuning import Choice

__all__ = ["Processes", "new_name", "print_json", "print_table", "resume_hint", "show"]

_UNLIMITED = 10_000

Processes = Annotated[int, Range(at_least=1, at_most=1024)]
"""Number of workers on one machine."""


def resume_hint(folder: Path) -> str:
    """Return what to do after an interrupt."""
    return f"to resume, give the same command with --out {shlex.quote(str(folder))}"


def new_name(name: str) -> str:
    """Return a folder name that ends with the time and, since many commands may start at once, a random number."""
    safe = "".join(c if c.isalnum() or c in "+-_." else "-" for c in name)
    return f"{safe}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"


def show(study: Study, records: list[Record], folder: Path, *, choices: Sequence[Choice] = (), as_json: bool) -> None:
    """Write report and tables, and print the table, or the same as JSON."""
    table = write_report(study, records, folder, choices)
    report = folder / "report.html"
    if as_json:
        print_json({"folder": str(folder), "report": str(report), **table.as_dict()})
        return
    print_table(table.rich())
    Console().print(f"runs   {folder}\nreport {report}", highlight=False, markup=False, soft_wrap=True)


def print_table(table: Table) -> None:
    """Print a table, in a pipe or a file as wide as its texts are."""
    console = Console()
    if not console.is_terminal:
        console.width = _UNLIMITED
    console.print(table)


def print_json(content: object) -> None:
    """Print plain values as JSON."""
    print(json.dumps(content, indent=1))  # noqa: T201
