"""A kept study holds its command, study, records and notes, and no path of a machine."""

import json
import shutil
import sys
from dataclasses import replace

import pytest

from backpass.experiments.comparison import compare_study
from backpass.experiments.recipes import RECIPES
from backpass.experiments.record import Record, read_record
from backpass.experiments.running import run_study
from backpass.experiments.serialization import from_json
from backpass.experiments.study import Study, read_study
from backpass.training.recipe import DataSettings, Runtime


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study whose files have it that its images came from a folder."""
    folder = tmp_path_factory.mktemp("study")
    recipe = replace(RECIPES["digits"], epochs=1, data=DataSettings(limit_train=64, limit_test=20))
    run_study(compare_study(recipe, ["plain", "pgt"], [0]), folder, runtime=Runtime(device="cpu"))
    for path in [folder / "study.json", *folder.rglob("result.json")]:
        text = path.read_text().replace('"name": "digits"', '"name": "folder:/some/where"')
        text = text.replace('"root": null', '"root": "/home/me/images"').replace("on digits", "on folder:/some/where")
        assert text.count("/some/where") > 0
        path.write_text(text)
    return folder


@pytest.fixture
def keep(benchmark_module, monkeypatch):
    """Runs the script with these words, the second being the file that it writes; returns the file's text."""

    def keep(*words):
        monkeypatch.setattr(sys, "argv", ["keep.py", *map(str, words)])
        benchmark_module("keep").main()
        return words[1].read_text()

    return keep


def test_what_is_kept(study, tmp_path, keep):
    command = ["backpass", "compare", "--data.name", "folder:/some/where", "--data.label", "a name"]
    command += ["--data.root=/home/me/images"]
    text = keep(study, tmp_path / "kept.json", "--note", "other programs ran", "--", *command)
    content = json.loads(text)
    assert content["command"] == ("backpass compare --data.name folder:PATH --data.label 'a name' --data.root=PATH")
    assert "/some/where" not in text
    assert "/home/me" not in text
    assert str(study) not in text
    assert content["complete"]
    assert content["notes"] == ["other programs ran"]

    kept = from_json(Study, json.dumps(content["study"]), "study")
    assert kept.title == "digits_net on folder:PATH"
    assert [entry.method for entry in kept.entries] == ["plain", "pgt"]
    known = read_study(study)
    for entry, before in zip(kept.entries, known.entries, strict=True):
        data = replace(before.recipe.data, name="folder:PATH", root="PATH")
        assert entry == replace(before, recipe=replace(before.recipe, data=data))
    records = [from_json(Record, json.dumps(record), "record") for record in content["records"]]
    before = [read_record(study / run.folder / "result.json") for run in known.runs()]
    assert [(r.entry, r.history, r.environment) for r in records] == [
        (r.entry, r.history, r.environment) for r in before
    ]
    assert [record.run.recipe for record in records] == [entry.recipe for entry in kept.entries]


def test_relative_paths_are_replaced_and_other_words_are_not(study, tmp_path, keep):
    folder = shutil.copytree(study, tmp_path / "relative")
    for path in [folder / "study.json", *folder.rglob("result.json")]:
        path.write_text(path.read_text().replace("/some/where", "data").replace("/home/me/images", "train"))
    command = ["backpass", "compare", "--data.name", "folder:data", "--data.root=train", "--data.limit-train", "64"]
    content = json.loads(keep(folder, tmp_path / "kept.json", "--", *command))
    assert content["command"] == "backpass compare --data.name folder:PATH --data.root=PATH --data.limit-train 64"
    data = content["study"]["entries"][0]["recipe"]["data"]
    assert (data["name"], data["root"], data["limit_train"]) == ("folder:PATH", "PATH", 64)


def test_a_study_that_was_cut_short_says_so(study, tmp_path, keep):
    cut = shutil.copytree(study, tmp_path / "cut")
    (cut / "pgt-seed0" / "result.json").unlink()
    content = json.loads(keep(cut, tmp_path / "kept.json", "backpass", "compare"))
    assert content["complete"] is False
    assert [record["run"]["method"] for record in content["records"]] == ["plain"]


def test_a_folder_without_records_is_named(tmp_path, keep):
    with pytest.raises(SystemExit, match=f"expected a study with records in {tmp_path}, found none"):
        keep(tmp_path, tmp_path / "kept.json", "backpass", "compare")


@pytest.mark.parametrize(
    ("name", "paths"), [("camvid:/some/where", ["/some/where"]), ("package.module:function", []), ("digits", [])]
)
def test_paths_of_data_sets_are_no_import_paths(name, paths, benchmark_module):
    assert list(benchmark_module("keep")._paths(DataSettings(name=name))) == paths
