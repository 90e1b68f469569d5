"""The fixtures of the battery, and the table of methods and conditions that ends each run of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from backpass.errors import BackpassError
from battery.rows import ROWS, Refusing, Row

HERE = Path(__file__).parent
CELL, REFUSED = "battery cell", "battery refusal"


def row_id(row: Row) -> str:
    """Return the row's name as part of a test's name."""
    return row.name.replace(" ", "_")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Put every row through every test that asks for one."""
    if "row" in metafunc.fixturenames:
        metafunc.parametrize("row", ROWS, ids=row_id)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Note on each test which cell of the table it fills; skipped tests carry the note too."""
    for item in items:
        if isinstance(item, pytest.Function) and HERE in item.path.parents and "row" in item.fixturenames:
            row = item.callspec.params["row"]
            variant = item.callspec.id.removeprefix(row_id(row)).removeprefix("-")
            condition = item.originalname.removeprefix("test_").replace("_", " ")
            item.user_properties.append((CELL, (row.name, f"{condition} [{variant}]" if variant else condition)))


@pytest.fixture
def refusing(record_property: Callable[[str, object], None]) -> Refusing:
    """Return a context that expects the row's refusal of a combination, or none where the row takes it.

    After a refusal the test goes on behind the context; ``row.refusal(combination)`` says whether there was one.
    """

    @contextmanager
    def context(row: Row, combination: str) -> Iterator[None]:
        words = row.refusal(combination)
        if words is None:
            yield
            return
        with pytest.raises(BackpassError, match=words):
            yield
        record_property(REFUSED, combination)

    return context


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table: a line for each condition, a column for each method."""
    cells: dict[str, dict[str, str]] = {}
    reasons: dict[str, str] = {}
    for outcome in ("passed", "skipped", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            properties = dict(getattr(report, "user_properties", ()))
            if CELL not in properties:
                continue
            row, condition = properties[CELL]
            cells.setdefault(condition, {})[row] = _verdict(outcome, properties, report, reasons)
    if not cells:
        return
    names = [row.name for row in ROWS if any(row.name in line for line in cells.values())]
    terminalreporter.section("every method under every condition")
    first = max(map(len, cells))
    for condition, line in {"": {name: name for name in names}, **cells}.items():
        columns = (f"{line.get(name, ''):>{max(len(name), 8)}}" for name in names)
        terminalreporter.write_line("  ".join((f"{condition:<{first}}", *columns)))
    for reason, mark in reasons.items():
        terminalreporter.write_line(f"{mark}: {reason}")


def _verdict(outcome: str, properties: dict[str, Any], report: Any, reasons: dict[str, str]) -> str:
    if outcome == "passed":
        return "refused" if REFUSED in properties else "ok"
    if outcome != "skipped":
        return "FAILED"
    reason = report.longrepr[2].removeprefix("Skipped: ")
    return reasons.setdefault(reason, f"skip ({len(reasons) + 1})")
