from dataclasses import replace

import pytest
from backpass.experiments.overrides import Reduction, replace_setting
from backpass.experiments.plan import SEARCHES, Line, Plan, compare_plan, read_plan, search_plan, table_plan, write_plan

from backpass.errors import InputError
from backpass.experiments.recipes import RECIPES, TABLES, get_table
from backpass.training.recipe import Recipe, Run

RECIPE = RECIPES["digits"]


def test_a_comparison_has_a_cell_for_each_method_and_seed():
    plan = compare_plan(RECIPE, ["sgs", "plain", "pgt"], [3, 4])
    assert [line.baseline for line in plan.lines] == [1, None, 1]
    assert [cell.folder for cell in plan.cells()] == [f"{m}-seed{s}" for s in (3, 4) for m in ("sgs", "plain", "pgt")]
    assert plan.cells()[0].run == Run(RECIPE, "sgs", 3)


def test_nothing_to_compare():
    with pytest.raises(InputError, match=r"at least one method and one seed, got \[\] and \[0\]"):
        compare_plan(RECIPE, [], [0])
    with pytest.raises(InputError, match="got 'foo': unknown 'foo'"):
        compare_plan(RECIPE, ["foo"], [0])


def test_a_search_has_a_line_for_each_value_beside_plain():
    plan = search_plan("sgs.k", RECIPE, [0])
    assert [line.method for line in plan.lines] == ["plain"] + ["sgs"] * 6
    assert [line.recipe.sgs.k for line in plan.lines[1:]] == [2, 3, 4, 5, 6, 7]
    assert [line.baseline for line in plan.lines] == [None] + [0] * 6
    assert {line.recipe.data.validation for line in plan.lines} == {0.2}
    assert plan.lines[1].recipe == replace(plan.lines[0].recipe, sgs=replace(RECIPE.sgs, k=2.0))
    assert [cell.folder for cell in plan.cells()][:2] == ["plain-seed0", "sgs.k-=-2.0-sgs-seed0"]
    assert plan.notes == ("accuracy on 20 % of the training images, held out",)


def test_a_search_over_anything_else():
    plan = search_plan("optimizer.lr", RECIPE, [0], values=["0.1", "1"])
    assert [(line.method, line.recipe.optimizer.lr, line.baseline) for line in plan.lines] == [
        ("plain", 0.1, None),
        ("plain", 1.0, None),
    ]
    assert [line.method for line in search_plan("pgt.alpha", RECIPE, [0], method="sgs+pgt").lines][1] == "sgs+pgt"
    with pytest.raises(
        InputError, match=r"expected values to try for 'epochs'; only sgs.k; sgs.alpha,sgs.beta; pgt.alpha have a grid"
    ):
        search_plan("epochs", RECIPE, [0])
    with pytest.raises(InputError, match="expected at least one seed"):
        search_plan("sgs.k", RECIPE, [])


def test_a_search_over_a_fixed_scaling_covers_both_of_its_settings():
    plan = search_plan("sgs.alpha,sgs.beta", RECIPE, [0])
    pairs = [(line.recipe.sgs.alpha, line.recipe.sgs.beta) for line in plan.lines]
    assert pairs == [(None, None), *SEARCHES["sgs.alpha,sgs.beta"]]
    given = search_plan("sgs.alpha,sgs.beta", RECIPE, [0], values=["0.5,0.25", "1, 2"])
    assert [(line.label, line.method) for line in given.lines[1:]] == [
        ("sgs.alpha = 0.5, sgs.beta = 0.25", "sgs"),
        ("sgs.alpha = 1, sgs.beta = 2", "sgs"),
    ]
    assert given.lines[1].recipe.sgs == replace(RECIPE.sgs, alpha=0.5, beta=0.25)
    assert given.lines[2].recipe.sgs == replace(RECIPE.sgs, alpha=1.0, beta=2.0)
    with pytest.raises(InputError, match=r"a value for each of sgs.alpha,sgs.beta, joined .*, got '0.5'"):
        search_plan("sgs.alpha,sgs.beta", RECIPE, [0], values=["0.5"])


def test_a_search_over_half_of_a_fixed_scaling_needs_the_other_half():
    beside = replace(RECIPE, sgs=replace(RECIPE.sgs, beta=0.25))
    cells = search_plan("sgs.alpha", beside, [0], values=["0.5", "1"]).cells()
    assert [(cell.run.method, cell.run.recipe.sgs.alpha) for cell in cells] == [
        ("plain", None),
        ("sgs", 0.5),
        ("sgs", 1),
    ]
    with pytest.raises(InputError, match=r"alpha and sgs.beta together, .* got sgs.alpha=0.5, sgs.beta=None"):
        search_plan("sgs.alpha", RECIPE, [0], values=["0.5"]).cells()


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("sgs.q", 1, "unknown setting 'q' of SgsSettings; expected one of k, measure"),
        ("agc", 1, "'agc' is a group of settings; expected one of agc.clip_factor, "),
        ("epochs.x", 1, "'epochs' is a single setting, it has no 'x'"),
        ("epochs", "many", "expected epochs to be of type int, got 'many'"),
        ("epochs", 1.5, "expected epochs to be of type int, got 1.5"),
        ("sgs.alpha", "half", "expected alpha to be of type float, got 'half'"),
        ("data.limit_train", "1.5", "expected limit_train to be of type int, got 1.5"),
    ],
)
def test_settings_that_do_not_exist_or_fit(key, value, text):
    with pytest.raises(InputError, match=text):
        replace_setting(RECIPE, key, value)


def test_settings_are_read_as_their_type():
    assert replace_setting(Recipe(), "clip_norm", "0.5").clip_norm == 0.5
    assert replace_setting(Recipe(), "optimizer.nesterov", "True").optimizer.nesterov is True
    assert replace_setting(Recipe(), "sgs.measure", "autocorrelation").sgs.measure == "autocorrelation"
    assert replace_setting(Recipe(), "sgs.alpha", "1") == replace_setting(Recipe(), "sgs.alpha", 1.0)
    assert replace_setting(Recipe(), "sgs.branches", "('3x3', '1x1')").sgs.branches == ("3x3", "1x1")
    assert replace_setting(Recipe(), "data.root", "2024").data.root == "2024"
    assert replace_setting(Recipe(clip_norm=1.0), "clip_norm", "None").clip_norm is None
    assert set(SEARCHES) == {"sgs.k", "sgs.alpha,sgs.beta", "pgt.alpha"}


def test_a_table_has_baseline_method_and_peers_of_each_row():
    plan = table_plan(get_table("sgs-table-1"), range(2))
    assert [(line.label, line.method, line.baseline, line.paper) for line in plan.lines[:4]] == [
        ("VGG-16, CIFAR-10", "plain", None, pytest.approx(0.949)),
        ("VGG-16, CIFAR-10", "sgs", 0, pytest.approx(0.952)),
        ("VGG-16, CIFAR-10", "dbb_dyrep", 0, pytest.approx(0.95)),
        ("VGG-16, CIFAR-10", "dyrep", 0, pytest.approx(0.95)),
    ]
    assert [cell.folder for cell in plan.cells()][:5] == [
        "VGG-16-CIFAR-10-plain-seed0",
        "VGG-16-CIFAR-10-sgs-seed0",
        "VGG-16-CIFAR-10-dbb_dyrep-seed0",
        "VGG-16-CIFAR-10-dyrep-seed0",
        "VGG-16-CIFAR-100-plain-seed0",
    ]


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_every_table_runs_exactly_its_runs(table):
    plan = table_plan(table, [0, 1])
    cells = plan.cells()
    assert sorted(map(repr, (cell.run for cell in cells))) == sorted(map(repr, table.runs([0, 1])))
    assert len({cell.folder for cell in cells}) == len(cells)
    for line in plan.lines:
        if line.method in table.methods and line.baseline is not None:
            assert plan.lines[line.baseline].method in table.methods


def test_a_shared_baseline_is_run_once():
    plan = table_plan(get_table("sgs-table-5"), [0])
    assert [(line.label, line.method, line.baseline) for line in plan.lines[:3]] == [
        ("all rows", "plain", None),
        ("k = 2", "sgs", 0),
        ("k = 3", "sgs", 0),
    ]


def test_rows_that_are_not_chosen_are_shown_and_not_run():
    table = get_table("sgs-table-4")
    plan = table_plan(table, [0], rows=["VGG-1[13]", "Xception"])
    assert [line.label for line in plan.lines if line.recipe] == ["VGG-11"] * 2 + ["VGG-13"] * 2 + ["Xception"] * 2
    assert len(plan.lines) == 34
    with pytest.raises(InputError, match=r"no row of sgs-table-4 is called 'VGG'; expected one of 'VGG-11', 'VGG-13'"):
        table_plan(table, [0], rows=["VGG"])


def test_a_reduction_shortens_the_runs_and_says_so():
    reduction = Reduction(epochs=10, limit_train=100, data="folder:x", data_label="CIFAR-10 (JPEG)")
    plan = table_plan(get_table("pgt-results"), [0], reduction=reduction, rows=["ResNet-18"])
    (recipe,) = {line.recipe for line in plan.lines if line.recipe and line.method == "plain"}
    assert (recipe.epochs, recipe.data.limit_train, recipe.data.name, recipe.data.limit_test) == (
        10,
        100,
        "folder:x",
        None,
    )
    schedule = recipe.schedule
    assert (schedule.warmup_epochs, schedule.cooldown_epochs, schedule.step_epochs) == pytest.approx((0.5, 1.0, 3.0))
    assert plan.notes[1:] == (
        "not as in the paper: epochs 10",
        "not as in the paper: training images 100",
        "not as in the paper: data CIFAR-10 (JPEG)",
    )
    assert Reduction().notes() == ()
    assert Reduction().apply(RECIPE) == RECIPE


def test_plans_survive_their_file(tmp_path):
    assert read_plan(tmp_path) is None
    plan = table_plan(get_table("sgs-table-6"), [0, 1], rows=["Ada*"])
    write_plan(plan, tmp_path)
    assert read_plan(tmp_path) == plan
    (tmp_path / "study.json").write_text('{"title": 1, "rows": []}')
    with pytest.raises(InputError, match=r"study\.json is not a readable plan of a study: .*got \['rows'\]"):
        read_plan(tmp_path)


def test_names_that_look_alike_have_folders_of_their_own():
    plan = Plan("t", (Line("Adagrad", "sgs", RECIPE), Line("Adagrad*", "sgs", replace(RECIPE, epochs=1))), (0,))
    assert [cell.folder for cell in plan.cells()] == ["Adagrad-sgs-seed0", "Adagrad-sgs-1-seed0"]
