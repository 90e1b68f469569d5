"""A table for the terminal."""

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

__all__ = ["TEXTS", "terminal_table"]

TEXTS = ("entry", "method", "metric", "command", "layer")
"""The columns of texts, which are aligned to the left; others hold numbers."""


def terminal_table(title: str, notes: Iterable[str], header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table with its title above and its notes below, as they are: no text of theirs is markup."""
    table = Table(
        title=escape(title),
        title_justify="left",
        caption=escape("\n".join(notes)),
        caption_justify="left",
        box=SIMPLE_HEAD,  # fits the columns of a comparison in 80 characters
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for name in header:
        table.add_column(name, justify="left" if name in TEXTS else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table
