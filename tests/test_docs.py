"""Every snippet of README files and of the site runs or parses; the reference has every public name."""

import importlib
import json
import pkgutil
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

import backpass

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", *sorted((ROOT / "src" / "backpass").rglob("README.md"))]
SITE = sorted((ROOT / "docs").rglob("*.md"))
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = [
    pytest.param(words[words.index("backpass") + 1 :], id=line)
    for path in [*READMES, *SITE]
    for block in SHELL.findall(path.read_text(encoding="utf-8"))
    for line in block.splitlines()
    if "backpass" in (words := shlex.split(line, comments=True))
]


def snippets(text: str) -> Iterator[str]:
    """Yield each block, moved down to its own line number, so that a traceback points into the file."""
    for match in BLOCK.finditer(text):
        yield "\n" * text.count("\n", 0, match.start(1)) + match[1]


@pytest.mark.parametrize(
    ("path", "snippet"),
    [
        pytest.param(path, snippet, id=f"{path.relative_to(ROOT)}-{number}")
        for path in [*READMES, *SITE]
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


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_line_parses(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tyro")
    from backpass import cli

    ran = []
    for command in get_args(cli.Command):
        monkeypatch.setattr(command, "__call__", lambda self: ran.append(type(self)))
    cli.run(words)
    assert len(ran) == 1


def cells(path: Path) -> list[str]:
    content = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert len(code) > 3
    assert [cell for cell in code if cell["outputs"] or cell["execution_count"] is not None] == []


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setattr(plt, "show", plt.close)
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "__main__"}
    for number, cell in enumerate(cells(path)):
        exec(compile(cell, f"{path.name}[{number}]", "exec"), namespace)


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch):
    """The module that completes the pages of the site."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_extensions"))
    monkeypatch.delitem(sys.modules, "repository_pages", raising=False)
    return importlib.import_module("repository_pages")


def test_the_reference_has_every_public_name(pages) -> None:
    pytest.importorskip("tyro")
    packages = {f"backpass.{m.name}" for m in pkgutil.iter_modules(backpass.__path__) if not m.name.startswith("_")}
    folder = ROOT / "docs" / "api"
    texts = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    modules = {name for text in texts.values() for name in re.findall(r"<!-- api: (\S+) -->", text)}
    assert {name for name in modules if name.count(".") < 2} == {"backpass", *packages} - {"backpass.cli"}
    reference = "\n".join(pages.expand(text, folder) for text in texts.values())
    documented = set(re.findall(r"(?:auto\w+|data):: (\S+)", reference)) | set(re.findall(r"`(\S+) <", reference))
    for module in modules:
        for name in getattr(importlib.import_module(module), "__all__", ()):
            assert f"{module}.{name}" in documented or f"backpass.{name}" in documented, f"{module}.{name}"


def test_pages_take_text_from_cards_and_claims(pages) -> None:
    folder = ROOT / "docs" / "methods"
    assert "`k` | 5 |" in pages.expand("<!-- card: sgs Defaults -->", folder)
    with pytest.raises(LookupError, match="expected a section 'Nothing'"):
        pages.expand("<!-- card: sgs Nothing -->", folder)
    table = pages.expand("<!-- verdicts: pgt -->", folder).splitlines()
    claims = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8").splitlines()
    own = [line for line in claims if "**" in line and line.startswith("|") and re.search(r"\| (pgt|[^|]*\(pgt\)) +\|", line)]
    assert [line.replace("../claims.md#", "#") for line in table[2:]] == own
    assert own
    assert "no claim" in pages.expand("<!-- verdicts: nothing -->", folder).lower()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[claims](../claims.md)", "[claims](../claims.md)"),
        ("[gone](../gone.md)", "[gone](../gone.md)"),
        ("[study.py](../../benchmarks/study.py)", "`benchmarks/study.py`"),
        ("[a folder](../../benchmarks)", "a folder (`benchmarks`)"),
        ("![a picture](../pictures/pgt.svg)", "![a picture](../pictures/pgt.svg)"),
    ],
)
def test_links_out_of_the_site_become_paths(text: str, shown: str, pages) -> None:
    assert pages.expand(text, ROOT / "docs" / "methods") == shown
