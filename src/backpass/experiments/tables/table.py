"""A published table as data: its entries, the numbers that the paper prints, and what repeats them."""

from dataclasses import dataclass

from backpass.experiments.entry import Entry, check_entries
from backpass.experiments.tuning import Tuning

__all__ = ["Statement", "Table"]


@dataclass(frozen=True)
class Statement:
    """A published number that stands in a sentence instead of a table.

    Attributes:
        subject: what it is about.
        value: the number, in the paper's unit.
        unit: of the number.
        source: where it stands.
    """

    subject: str
    value: float
    unit: str
    source: str


@dataclass(frozen=True)
class Table:
    """A table of a paper, or one of ours in the same form.

    Attributes:
        name: by which :func:`backpass.experiments.tables.get_table` knows it.
        title: what it shows.
        entries: its lines.
        seeds: number of runs of each entry, as in the paper.
        repetitions: what the paper states on repetitions.
        cost_unit: of the published cost of one run; empty: none is printed.
        flops_unit: of the published multiply-adds; empty: none are printed.
        notes: what a reader must know of the settings.
        statements: numbers that stand in the paper's text.
        tuning: how the entries with a search space are tuned first; ``None``: none has one.
    """

    name: str
    title: str
    entries: tuple[Entry, ...]
    seeds: int
    repetitions: str
    cost_unit: str = ""
    flops_unit: str = ""
    notes: tuple[str, ...] = ()
    statements: tuple[Statement, ...] = ()
    tuning: Tuning | None = None

    def __post_init__(self) -> None:
        """Refuse entries that do not fit together."""
        check_entries(self.entries)
