"""Every Python snippet of the README files runs, each in a namespace of its own."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", *sorted((ROOT / "src" / "backpass").rglob("README.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def snippets(text: str) -> Iterator[str]:
    """Yield each block, moved down to its own line number, so that a traceback points into the file."""
    for match in BLOCK.finditer(text):
        yield "\n" * text.count("\n", 0, match.start(1)) + match[1]


@pytest.mark.parametrize(
    ("path", "snippet"),
    [
        pytest.param(path, snippet, id=f"{path.relative_to(ROOT)}-{number}")
        for path in READMES
        for number, snippet in enumerate(snippets(path.read_text(encoding="utf-8")), start=1)
    ],
)
def test_snippet_runs(path: Path, snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, str(path), "exec"), {"__name__": "__main__"})


def test_snippets_are_found_with_their_line_numbers() -> None:
    text = "# Title\n\n```python\nx = 1\n```\n\n```sh\nls\n```\n\n```python\nraise KeyError(x)\n```\n"
    first, second = snippets(text)
    assert first == "\n\n\nx = 1\n"
    assert second.count("\n") == 12
    with pytest.raises(NameError, match="name 'x' is not defined"):
        exec(compile(second, "text", "exec"), {})


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_readme_has_a_snippet(path: Path) -> None:
    assert list(snippets(path.read_text(encoding="utf-8")))


def test_the_readme_shows_the_published_numbers_as_stored() -> None:
    """The lines ``| subject | baseline | method | table: label |`` of the README against the tables."""
    pytest.importorskip("pydantic")
    from backpass.experiments import get_table

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| .* \| ([^|]+) \| ([^|]+) \| ([a-z0-9-]+): ([^|]+) \|$", text, re.MULTILINE)
    assert len(lines) == 6
    for baseline, method, name, label in lines:
        entries = {entry.key: entry for entry in get_table(name).entries}
        (entry,) = [e for e in entries.values() if e.label == label and e.baseline is not None]
        for text, published in ((baseline, entries[entry.baseline].published), (method, entry.published)):
            value, _, std = text.partition(" ± ")
            assert (float(value), float(std) if std else None) == (published.value, published.std)
