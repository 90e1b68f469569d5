"""A kept study holds its command, its table and every result, and no path of a machine."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from backpass.experiments.plan import compare_plan

from backpass.experiments.recipes import RECIPES
from backpass.experiments.study import run_study
from backpass.training.recipe import DataSettings, Runtime

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "keep.py"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study that says that its images came from a folder."""
    folder = tmp_path_factory.mktemp("study")
    recipe = replace(RECIPES["digits"], epochs=1, data=DataSettings(limit_train=64, limit_test=20))
    run_study(compare_plan(recipe, ["plain", "pgt"], [0]), folder, runtime=Runtime(device="cpu"))
    for path in [folder / "study.json", *folder.rglob("result.json")]:
        path.write_text(path.read_text().replace('"name": "digits"', '"name": "folder:/some/where"'))
    return folder


def keep(*words):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, words)], capture_output=True, text=True, check=False)


def test_what_is_kept(study, tmp_path):
    command = ["backpass", "compare", "--data.name", "folder:/some/where", "--data.label", "a name"]
    done = keep("--note", "other work ran beside it", study, tmp_path / "kept.json", "--", *command)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "kept.json").read_text()
    content = json.loads(text)
    assert content["command"] == "backpass compare --data.name folder:PATH --data.label 'a name'"
    assert "/some/where" not in text
    assert content["complete"]
    assert content["table"]["notes"] == ["other work ran beside it"]
    assert [row["method"] for row in content["table"]["rows"]] == ["plain", "pgt"]
    assert sorted(run["run"]["method"] for run in content["runs"]) == ["pgt", "plain"]


def test_a_study_that_was_cut_short_says_so(study, tmp_path):
    cut = shutil.copytree(study, tmp_path / "cut")
    (cut / "pgt-seed0" / "result.json").unlink()
    assert keep(cut, tmp_path / "kept.json", "backpass", "compare").returncode == 0
    assert json.loads((tmp_path / "kept.json").read_text())["complete"] is False


def test_a_folder_without_results_is_named(tmp_path):
    done = keep(tmp_path, tmp_path / "kept.json", "backpass", "compare")
    assert done.returncode == 1
    assert f"expected a study with results in {tmp_path}, found none" in done.stderr
