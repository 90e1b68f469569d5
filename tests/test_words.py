"""Words that the project does not use: each has a plainer one."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What not to write, and what to write instead. Only words without a legitimate use in this project.
WORDS = {
    r"beside plain": "relative to plain",
    r"in the place of": "instead of",
    r"\banew\b": "again; new",
    r"\bat hand\b": "available",
    r"\bgoes on where it was\b": "resumes",
    r"\bcomes? back as it was\b": "is restored",
    r"\bleaves? it aside\b": "ignores it",
    r"\bway down\b": "decay",
    r"\bin passing\b": "on the fly",
    r"\bheld against\b": "compared with",
    r"\bsurroundings\b": "environment",
}
TEXTS = [
    *(ROOT / "src").rglob("*.py"),
    *(ROOT / "src").rglob("*.md"),
    *(ROOT / "benchmarks").glob("*.py"),
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "docs").rglob("*.ipynb"),
    *(ROOT / "docs").rglob("*.py"),
]


def found(text: str) -> list[str]:
    return [f"{word} -> {plain}" for word, plain in WORDS.items() if re.search(word, text, re.IGNORECASE)]


@pytest.mark.parametrize("path", sorted(TEXTS), ids=lambda path: str(path.relative_to(ROOT)))
def test_plain_words(path):
    assert found(path.read_text(encoding="utf-8")) == []


def test_the_check_sees_a_word():
    assert found("measured Anew") == [r"\banew\b -> again; new"]
