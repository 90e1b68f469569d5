"""The page of faults names tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
LINES = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| fault |")]


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split(" | ")[0].removeprefix("| "))
def test_every_fault_has_a_test(line):
    found = re.search(r"`(tests/[\w/]+\.py)::(test_\w+)` \|$", line)
    assert found is not None
    assert f"\ndef {found[2]}(" in (ROOT / found[1]).read_text(encoding="utf-8")


def test_the_faults_are_found():
    assert len(LINES) > 40
