"""What the release says of itself agrees: version, changelog, citation, supported versions of Python, workflows."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import backpass
from backpass.__main__ import main

yaml: Any = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_version_has_one_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert "version" not in PROJECT
    assert "version" in PROJECT["dynamic"]
    assert version("backpass") == backpass.__version__ == CITATION["version"]
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"backpass {backpass.__version__}\n"


def test_the_changelog_begins_with_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (\d+\.\d+\.\d+) \((unreleased|\d{4}-\d\d-\d\d)\)$", changelog, re.MULTILINE)
    assert len(headings) == changelog.count("\n## ")
    released, _, development = backpass.__version__.partition(".dev")
    newest, date = headings[0]
    assert newest == released
    assert (date == "unreleased") == bool(development)
    assert CITATION.get("date-released") == (None if development else date)
    assert all(date != "unreleased" for _, date in headings[1:])


def test_the_citation_names_both_papers() -> None:
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["license"] == PROJECT["license"]
    assert CITATION["message"]
    assert CITATION["authors"] == [{"name": author["name"]} for author in PROJECT["authors"]]
    cited = {reference["title"]: reference for reference in CITATION["references"]}
    assert set(cited) == {
        "Reparameterization through Spatial Gradient Scaling",
        "Altering Backward Pass Gradients improves Convergence",
    }
    assert all(reference["authors"] and reference["type"] and reference["year"] for reference in cited.values())


def test_the_versions_of_python_agree() -> None:
    oldest = PROJECT["requires-python"].removeprefix(">=")
    classified = [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert classified == [f"3.{minor}" for minor in range(11, 11 + len(classified))]
    assert classified[0] == oldest
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert tools["mypy"]["python_version"] == oldest
    script = (ROOT / ".ci" / "versions").read_text(encoding="utf-8")
    assert re.findall(r"python=(3\.\d+)", script) == [oldest, classified[-1]]
    assert f"Python {oldest} or newer" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_what_is_promised_of_a_library_is_promised_once() -> None:
    """The lower bounds of a library agree wherever pyproject.toml names it."""
    file = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = [*PROJECT["dependencies"], *file["dependency-groups"]["dev"]]
    named += [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    bounds: dict[str, set[str]] = {}
    for line in named:
        name, _, bound = line.partition(">=")
        assert bound, line
        bounds.setdefault(re.sub(r"\[.*\]", "", name), set()).add(bound)
    assert {name: bound for name, bound in bounds.items() if len(bound) > 1} == {}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_have_few_rights_and_pinned_actions(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        may_publish = job.get("environment", {}).get("name") == "pypi"
        assert job.get("permissions") == ({"id-token": "write"} if may_publish else None), name
        for step in job["steps"]:
            assert re.search(r"@(v\d+|release/v1)$", step.get("uses", "x@v1")), step
            for script in re.findall(r"\.ci/\S+", step.get("run", "")):
                assert (ROOT / script).exists(), script
    assert ".ci/run" in path.read_text(encoding="utf-8") or path.stem == "release"


def test_there_are_workflows_for_changes_and_for_releases() -> None:
    assert [path.stem for path in WORKFLOWS] == ["ci", "release"]


def test_the_version_needs_no_extra() -> None:
    hidden = "import sys; sys.modules['tyro'] = None; from backpass.__main__ import main; sys.exit(main(['--version']))"
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"backpass {backpass.__version__}\n")
