from dataclasses import replace

import pytest

from backpass.__main__ import main
from backpass.errors import InputError
from backpass.experiments import RECIPES, Reduction, get_table, run_study, table_study
from backpass.experiments.run import load_data
from backpass.experiments.tables import TABLES
from training.folders import write_folder

RECIPE = RECIPES["digits"]


def test_as_many_seeds_as_in_the_paper():
    assert {name: table_study(table).seeds for name, table in TABLES.items()} == {
        name: tuple(range(5 if name == "sgs-table-1" else 3)) for name in TABLES
    }
    assert table_study(get_table("sgs-table-1"), [7]).seeds == (7,)
    with pytest.raises(InputError, match="expected at least one seed"):
        table_study(get_table("sgs-table-1"), [])


def test_table_1_runs_what_the_paper_ran_itself():
    study = table_study(get_table("sgs-table-1"), [0])
    assert [(run.folder, run.run.method, run.run.recipe.data.name) for run in study.runs()] == [
        (f"{label}-{name}-seed0", method, data)
        for label, data in (("CIFAR-10", "cifar10"), ("CIFAR-100", "cifar100"))
        for name, method in (("Origin", "plain"), ("DBB", "dbb_dyrep"), ("DyRep", "dyrep"), ("SGS", "sgs"))
    ]
    assert [entry.baseline for entry in study.entries[:6]] == [None, *["CIFAR-10-Origin"] * 5]


def test_a_shared_baseline_is_run_once():
    study = table_study(get_table("sgs-table-5"), [0], entries=["VGG-11, Adagrad*"])
    assert [run.entry for run in study.runs()] == [
        "VGG-11-Adagrad-plain",
        "VGG-11-Adagrad-sgs",
        "VGG-11-Adagrad-update-sgs",
    ]
    assert [run.run.recipe.sgs.apply for run in study.runs()] == ["gradient", "gradient", "update"]


def test_a_chosen_entry_brings_the_runs_it_shares():
    study = table_study(get_table("sgs-table-5"), [0], entries=["VGG-11, Adagrad[*]"])
    assert [run.entry for run in study.runs()] == ["VGG-11-Adagrad-plain", "VGG-11-Adagrad-update-sgs"]


def test_entries_that_are_not_chosen_are_shown_and_not_run():
    table = get_table("sgs-table-4")
    study = table_study(table, [0], entries=["VGG-1[13]", "Xception"])
    assert [e.label for e in study.entries if e.recipe] == ["VGG-11"] * 2 + ["VGG-13"] * 2 + ["Xception"] * 2
    assert len(study.entries) == 34
    with pytest.raises(
        InputError, match=r"no entry of sgs-table-4 is called 'VGG'; expected one of 'VGG-11', 'VGG-13'"
    ):
        table_study(table, [0], entries=["VGG"])


def test_a_chosen_entry_brings_its_baseline():
    study = table_study(get_table("sgs-table-1"), [0], entries=["CIFAR-100, SGS"])
    assert [run.entry for run in study.runs()] == ["CIFAR-100-Origin", "CIFAR-100-SGS"]


def test_a_table_that_cannot_be_run_is_refused_with_its_reason(tmp_path):
    table = get_table("sgs-table-1")
    study = table_study(replace(table, entries=tuple(replace(e, recipe=None, note="no model") for e in table.entries)))
    assert study.runs() == []
    with pytest.raises(InputError, match=r"at least one run, got none .*no model"):
        run_study(study, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("name", "data"), [("sgs-table-7", "cityscapes"), ("sgs-table-8", "mpii")])
def test_a_fine_tuned_entry_brings_its_pretraining_which_keeps_its_data(name, data):
    table = get_table(name)
    label = table.entries[2].label
    reduction = Reduction(epochs=7, data=f"{data}:x", limit_train=50)
    study = table_study(table, [0], reduction=reduction, entries=[f"{label}: sgs in pretraining alone"])
    recipes = {run.entry: run.run.recipe for run in study.runs()}
    assert [key.removeprefix(label.replace(" ", "-")) for key in recipes] == [
        *("-pretraining-plain", "-pretraining-sgs", "-plain-then-plain", "-sgs-then-plain")
    ]
    first, _, plain, own = recipes.values()
    assert (first.data.name, first.data.limit_train, first.epochs) == ("imagenet", None, 7)
    assert (plain.data.name, plain.data.limit_train, plain.epochs) == (f"{data}:x", 50, 7)
    starts = [recipe.weights.source for recipe in (plain, own)]
    assert starts == [f"study:{key}-seed0" for key in list(recipes)[:2]]
    whole = table.entries[2].recipe
    assert own.schedule.milestones == tuple(7 / whole.epochs * milestone for milestone in whole.schedule.milestones)


@pytest.mark.parametrize("name", ["sgs-table-7", "sgs-table-8"])
def test_the_data_of_pretraining_can_be_given_and_loaded(name, tmp_path, capsys):
    write_folder(tmp_path, {"train": {"a": 3, "b": 3}, "test": {"a": 1, "b": 1}})
    given = f"folder:{tmp_path}"
    study = table_study(get_table(name), [0], reduction=Reduction(limit_train=2, pretraining_data=given))
    pretraining = [run.run.recipe for run in study.runs() if run.needs is None]
    assert len(pretraining) == 6
    assert {len(load_data(recipe.data).train) for recipe in pretraining} == {6}
    assert f"not as in the paper: pretraining data {given}" in study.notes
    assert main(["reproduce", name, "--pretraining-data", given, "--dry-run"]) == 0
    assert "not as in the paper: pretraining data" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(
        InputError, match="pretraining with a table that has it, got 'x' with sgs-table-4; leave it out"
    ):
        table_study(get_table("sgs-table-4"), reduction=Reduction(pretraining_data="x"))


@pytest.mark.parametrize(
    ("table", "given", "noted"),
    [
        ("pgt-results", {"data": "imagenet:/data/imagenet"}, []),
        ("pgt-results", {"data": "imagenet:/x", "data_label": "ImageNet-100"}, ["data ImageNet-100"]),
        ("pgt-results", {"data": "folder:/x"}, ["data folder:/x"]),
        ("sgs-table-1", {"data": "cifar10"}, ["data cifar10"]),  # half of it is on CIFAR-100
        ("sgs-table-7", {"data": "cityscapes:/x", "pretraining_data": "imagenet:/x"}, []),
        ("sgs-table-7", {"data": "camvid:/x"}, ["data camvid:/x"]),
    ],
)
def test_the_place_of_the_papers_own_data_is_no_difference(table, given, noted):
    notes = table_study(get_table(table), [0], reduction=Reduction(**given)).notes
    assert [note for note in notes if "not as in the paper" in note] == [f"not as in the paper: {n}" for n in noted]


def test_a_reduction_shortens_the_runs_and_is_noted():
    reduction = Reduction(epochs=10, limit_train=100, data="folder:x", data_label="CIFAR-10 (JPEG)")
    study = table_study(get_table("pgt-results"), [0], reduction=reduction, entries=["ResNet-18"])
    (recipe,) = {entry.recipe for entry in study.entries if entry.recipe and entry.method == "plain"}
    assert (recipe.epochs, recipe.data.limit_train, recipe.data.name, recipe.data.limit_test) == (
        10,
        100,
        "folder:x",
        None,
    )
    schedule = recipe.schedule
    assert (schedule.warmup_epochs, schedule.cooldown_epochs, schedule.step_epochs) == pytest.approx((0.5, 1.0, 3.0))
    assert study.notes[-3:] == (
        "not as in the paper: epochs 10",
        "not as in the paper: training images 100",
        "not as in the paper: data CIFAR-10 (JPEG)",
    )
    photographs = Reduction(data="folder:x", image_size=64)
    assert photographs.apply(RECIPE).data == replace(RECIPE.data, name="folder:x", image_size=64)
    assert "not as in the paper: pixels a side 64" in photographs.notes()
    assert Reduction().notes() == ()
    assert Reduction().apply(RECIPE) == RECIPE
    assert Reduction(root="x").apply(RECIPE) == replace(RECIPE, data=replace(RECIPE.data, root="x"))
