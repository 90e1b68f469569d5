"""The methods of the page, as rows of the battery: each has its definition, and a control without it."""

from collections.abc import Callable

from battery.loop import Loop, examine
from battery.rows import ROWS, Row
from works_with.case import Case, Way

_BY_NAME = {row.name: row for row in ROWS}
PLAIN, SGS, SGS_UPDATE, PGT = (_BY_NAME[name] for name in ("plain", "sgs", "sgs update", "pgt"))


def both(name: str, check: Callable[[Row], object], call: str = "") -> Case:
    """Return a case that is checked in the same way for both methods; ``call`` is what SGS needs."""
    return Case(name, [Way(call, lambda: check(SGS))], [Way("", lambda: check(PGT))])


def loop(name: str, setting: Loop, call: str = "") -> Case:
    """Return a case in which the battery's loop runs in some setting."""
    return both(name, lambda row: examine(row, setting), call)
