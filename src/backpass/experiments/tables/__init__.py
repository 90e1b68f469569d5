"""The published tables by name, and those of our own in the same form."""

from difflib import get_close_matches

from backpass.errors import InputError
from backpass.experiments.tables.norm_free import NORM_FREE_TABLES
from backpass.experiments.tables.pgt import PGT_TABLES
from backpass.experiments.tables.sgs import SGS_SEARCHES, SGS_TABLES
from backpass.experiments.tables.sgs_appendix import SGS_APPENDIX_TABLES
from backpass.experiments.tables.sgs_dense import SGS_DENSE_TABLES
from backpass.experiments.tables.table import Statement, Table

__all__ = ["TABLES", "Statement", "Table", "get_table", "list_tables"]

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        *SGS_TABLES,
        *SGS_APPENDIX_TABLES,
        *SGS_DENSE_TABLES,
        *SGS_SEARCHES,
        *PGT_TABLES,
        *NORM_FREE_TABLES,
    )
}


def list_tables() -> list[str]:
    """Return the names that :func:`get_table` knows.

    >>> list_tables()[:2], list_tables()[-1]
    (['sgs-table-1', 'sgs-table-2'], 'norm-free')
    """
    return list(TABLES)


def get_table(name: str) -> Table:
    """Return the table called ``name``.

    Raises:
        InputError: there is none; the message names those with similar names.

    >>> table = get_table("sgs-table-4")
    >>> len(table.entries), table.entries[1].label, table.entries[1].method, table.entries[1].published.value
    (34, 'VGG-11', 'sgs', 73.2)
    """
    if name not in TABLES:
        close = get_close_matches(name, TABLES, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"expected one of {', '.join(TABLES)}"
        raise InputError(f"unknown table {name!r}; {hint}")
    return TABLES[name]
