from dataclasses import replace

import pytest

from backpass.errors import InputError
from backpass.experiments import RECIPES, Entry, Study, compare_study, read_study
from backpass.experiments.study import StudyRun, make_key, write_study
from backpass.training.recipe import Run

RECIPE = RECIPES["digits"]
PLAIN, SGS = Entry("plain", "plain", "plain", RECIPE), Entry("sgs", "sgs", "sgs", RECIPE, "plain")


def test_entries_times_seeds_are_the_runs():
    study = Study("t", (PLAIN, SGS, Entry("x", "x", "dbb", None)), (3, 4))
    assert [run.folder for run in study.runs()] == ["plain-seed3", "sgs-seed3", "plain-seed4", "sgs-seed4"]
    assert study.runs()[1] == StudyRun("sgs", Run(RECIPE, "sgs", 3))


def test_an_entry_that_shares_runs_has_none_of_its_own():
    study = Study("t", (PLAIN, replace(PLAIN, key="twin", label="twin", runs_of="plain")), (0,))
    assert [run.entry for run in study.runs()] == ["plain"]
    assert [entry.run_key for entry in study.entries] == ["plain", "plain"]


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ((PLAIN, PLAIN), "expected every entry to have a key of its own, got 'plain' twice"),
        ((SGS,), "expected baseline of entry 'sgs' to be the key of another entry, got 'plain'; expected one of 'sgs'"),
        ((replace(PLAIN, baseline="plain"),), "expected baseline of entry 'plain' to be the key of another entry"),
        ((replace(PLAIN, runs_of="x"),), "expected runs_of of entry 'plain' to be the key of another entry, got 'x'"),
        ((replace(PLAIN, method="nope"),), "got 'nope' with the unknown 'nope'"),
        (
            (PLAIN, replace(PLAIN, key="b")),
            "a label or a method of its own, .* got 'plain' twice; give",
        ),
    ],
)
def test_entries_that_do_not_fit_together(entries, text):
    with pytest.raises(InputError, match=text):
        Study("t", entries, (0,))


def test_a_seed_twice():
    with pytest.raises(InputError, match=r"expected every seed once, got \[0, 0\]"):
        Study("t", (PLAIN,), (0, 0))


@pytest.mark.parametrize("key", ["../../x", "a/b", "..", ".", "", "a b", "/etc"])
def test_a_key_that_leads_out_of_the_folder(key):
    with pytest.raises(InputError, match="expected an entry's key of letters, digits"):
        StudyRun(key, Run(RECIPE))


@pytest.mark.parametrize(
    "parts", [("VGG-16, CIFAR-10", "sgs+pgt"), ("../../x", "plain"), ("Adagrad*", "sgs"), ("..", "a")]
)
def test_keys_name_folders(parts):
    StudyRun(make_key(*parts), Run(RECIPE))


def test_studies_survive_their_file(tmp_path):
    assert read_study(tmp_path) is None
    study = compare_study(RECIPE, ["plain", "sgs"], [0, 1])
    write_study(study, tmp_path / "new")
    assert read_study(tmp_path / "new") == study
    (tmp_path / "study.json").write_text('{"title": 1, "rows": []}')
    with pytest.raises(InputError, match=r"study\.json: expected a Study .*title = 1 .*rows = \[\]"):
        read_study(tmp_path)
