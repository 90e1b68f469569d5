"""The recipes and tables against the facts they are made from, written down here a second time by hand."""

import json
from dataclasses import replace

import pytest
import torch

from backpass.errors import InputError
from backpass.experiments.recipes import RECIPES, TABLES, get_recipe, get_table, list_tables
from backpass.models import create_model
from backpass.reparam import ACBlock, equivalent_scaling
from backpass.training.optimization import parameter_groups
from backpass.training.recipe import AgcSettings, OptimizerSettings, PgtSettings, ScheduleSettings, SgsSettings
from backpass.training.stream import StreamAugmentation

# Plain -> SGS of Table 4.
TABLE_4 = """
    vgg11_bn 70.8 -> 73.2 | vgg13_bn 74.7 -> 76.1 | vgg16_bn 74.9 -> 76.2 | vgg19_bn 74.6 -> 76.1
    resnet18 77.8 -> 78.8 | resnet34 79.0 -> 80.0 | resnet50 79.1 -> 79.6
    shufflenet 72.4 -> 72.8 | mobilenetv2 73.9 -> 74.2
    seresnet18 78.4 -> 79.6 | seresnet34 79.3 -> 80.3
    preactresnet18 75.7 -> 76.3 | preactresnet34 77.4 -> 77.9
    pyramidnet110_a48 79.1 -> 79.9 | pyramidnet110_a84 81.1 -> 81.6 | pyramidnet110_a270 83.3 -> 83.6
    xception 79.0 -> 80.0
"""
# Model, alpha: plain -> PGT.
PGT = """
    nonorm_resnet18 0.25: 66.80 -> 67.80 | timm/resnet18 0.25: 70.21 -> 70.30 | timm/resnet50 0.3: 76.56 -> 76.89
    timm/resnet101 0.3: 77.90 -> 78.26 | timm/seresnet18 0.25: 71.09 -> 71.44 | timm/seresnet50 0.3: 77.22 -> 77.95
"""
# Label: plain -> PGT of the lines that only the README of the published code has.
PGT_README = """
    ResNet-18, step: 69.704 -> 69.844 | ResNet-50, step: 75.970 -> 76.494
    ResNet-50, label smoothing: 76.698 -> 76.968
"""


def lines(text: str) -> set[str]:
    return {line.strip() for part in text.strip().splitlines() for line in part.split("|")}


def test_names():
    names = [*(f"sgs-table-{n}" for n in range(1, 7)), "sgs-figure-7", "pgt-results", "pgt-clipping", "norm-free"]
    assert list_tables() == names
    assert list(RECIPES) == ["digits", "cifar-200", "cifar-600", "imagenet-120", "pgt-imagenet", "nf-imagenet"]


@pytest.mark.parametrize("name", list_tables())
def test_rows_are_told_apart(name):
    table = get_table(name)
    assert table.name == name
    assert {row.table for row in table.rows} == {name}
    assert len({row.label for row in table.rows}) == len(table.rows)
    assert len({row.run(row.method, 0) for row in table.rows}) == len(table.rows)


def test_missing_numbers_are_said_to_be_missing():
    rows = [row for table in TABLES.values() for row in table.rows]
    assert sum(row.paper_accuracy is None for row in rows) == 38
    for row in rows:
        complete = None not in (row.paper_accuracy, row.paper_baseline)
        assert complete == ("at hand" not in row.source), row.label


def test_unknown_tables():
    with pytest.raises(InputError, match=r"unknown table 'sgs-table4'; did you mean sgs-table-4 or "):
        get_table("sgs-table4")
    with pytest.raises(InputError, match=r"unknown table 'xyz'; expected one of sgs-table-1, .*norm-free"):
        get_table("xyz")


def test_table_1():
    first, second = get_table("sgs-table-1").rows
    methods = ("plain", "dbb_dyrep", "dyrep", "sgs", "acb")
    assert [first.published(m) for m in methods] == [94.90, 95.00, 95.00, 95.20, None]
    assert [second.published(m) for m in methods] == [73.70, 74.40, 74.10, 75.50, None]
    assert (first.recipe.data.name, second.recipe.data.name) == ("cifar10", "cifar100")
    assert first.model == second.model == "vgg16_small"
    assert get_table("sgs-table-1").seeds.startswith("mean of 5 runs; ")


def test_table_2():
    methods = ("plain", "dbb_dyrep", "dyrep", "sgs")
    numbers = [[row.published(m) for m in methods] for row in get_table("sgs-table-2").rows]
    assert numbers == [[71.13, 70.99, 71.50, 71.65], [74.17, 74.33, 74.40, 74.62], [76.95, 76.71, 77.11, 77.10]]


def test_table_4():
    rows = get_table("sgs-table-4").rows
    assert {f"{row.model} {row.paper_baseline} -> {row.paper_accuracy}" for row in rows} == lines(TABLE_4)
    assert len(rows) == 17
    assert {replace(row.recipe, model="") for row in rows} == {replace(RECIPES["cifar-200"], model="")}


def test_ablations_use_larger_batches():
    models = {
        "sgs-table-3": "vgg11_small_2h",
        **dict.fromkeys(["sgs-table-5", "sgs-table-6", "sgs-figure-7"], "vgg11_bn"),
    }
    for name, model in models.items():
        for row in get_table(name).rows:
            recipe = row.recipe
            assert (row.model, recipe.epochs, recipe.batch_size, recipe.sgs.every, recipe.sgs.batches) == (
                (model, 200, 512, 10, 2)
            )
            assert recipe.optimizer.weight_decay == 5e-4


def test_searches_differ_in_what_they_search():
    assert [(row.recipe.sgs.measure, row.recipe.sgs.branches) for row in get_table("sgs-table-3").rows] == [
        ("mutual_information", ()),
        ("autocorrelation", ()),
        ("mutual_information", ("3x3", "1x3", "3x1")),
    ]
    assert [row.recipe.sgs.k for row in get_table("sgs-table-5").rows] == [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]


def test_figure_7_is_a_square_of_fixed_scalings_beside_plain_training():
    rows = get_table("sgs-figure-7").rows
    pairs = {(row.recipe.sgs.alpha, row.recipe.sgs.beta) for row in rows}
    assert pairs | {(1.0, 1.0)} == {(a / 4, b / 4) for a in range(1, 5) for b in range(1, 5)}
    assert len(rows) == len(pairs) == 15
    assert rows[1].label == "alpha = 0.25, beta = 0.5"
    fixed = rows[1].recipe.sgs.fixed_scaling()
    assert (fixed[1, 2] / fixed[1, 1]).item() == pytest.approx(0.25)
    assert (fixed[0, 0] / fixed[1, 1]).item() == pytest.approx(0.5)


def test_the_scaling_as_acb_is_that_of_its_block():
    (row,) = [row for row in get_table("sgs-table-3").rows if row.label == "fixed, as ACB"]
    block = equivalent_scaling(ACBlock(torch.nn.Conv2d(4, 4, 3, padding=1)))
    torch.testing.assert_close(row.recipe.sgs.fixed_scaling(), (block / block.mean()).float())


def test_table_6_has_the_nine_optimizers():
    rows = {row.label: row for row in get_table("sgs-table-6").rows}
    names = {label: row.recipe.optimizer.name for label, row in rows.items()}
    assert names == {
        "SGD": "sgd",
        "SGD + momentum": "sgd",
        "Adadelta": "adadelta",
        "Adagrad": "adagrad",
        "Adagrad*": "adagrad",
        "Adam": "adam",
        "Adamax": "adamax",
        "NAdam": "nadam",
        "RAdam": "radam",
    }
    assert (rows["SGD"].recipe.optimizer.momentum, rows["SGD + momentum"].recipe.optimizer.momentum) == (0.0, 0.9)
    assert {label for label, row in rows.items() if row.recipe.sgs.apply == "update"} == {"Adagrad*"}
    assert {label: row.paper_baseline for label, row in rows.items() if row.paper_baseline} == {"SGD + momentum": 68.6}


def test_pgt_results():
    rows = get_table("pgt-results").rows
    by_readme = [row for row in rows if "README" in row.source]
    known = {
        f"{row.model} {row.recipe.pgt.alpha}: {row.paper_baseline:.2f} -> {row.paper_accuracy:.2f}"
        for row in rows
        if row not in by_readme
    }
    assert known == lines(PGT)
    assert {f"{r.label}: {r.paper_baseline:.3f} -> {r.paper_accuracy:.3f}" for r in by_readme} == lines(PGT_README)
    assert {row.label for row in rows if row.recipe.schedule.name == "step"} == {"ResNet-18, step", "ResNet-50, step"}
    assert {row.label: row.recipe.label_smoothing for row in rows if row.recipe.label_smoothing} == {
        "ResNet-50, label smoothing": 0.1
    }


def test_clipping_comes_with_and_without_pgt():
    by_unit, by_norm = get_table("pgt-clipping").rows
    assert (by_unit.methods, by_unit.recipe.clip_norm) == (("agc", "pgt+agc"), None)
    assert (by_norm.methods, by_norm.recipe.clip_norm) == (("plain", "pgt"), 1.0)
    assert get_table("pgt-clipping").methods == ("agc", "plain", "pgt+agc", "pgt")


def test_norm_free_rows_clip_with_and_without_pgt_and_claim_no_number():
    rows = {row.model: row for row in get_table("norm-free").rows}
    assert list(rows) == ["nf_resnet26", "nf_resnet50", "nonorm_resnet50"]
    for row in rows.values():
        assert (row.methods, row.recipe.pgt.alpha, row.recipe.agc) == (("agc", "pgt+agc"), 0.3, AgcSettings(0.01, 1e-3))
        assert (row.paper_accuracy, row.paper_baseline) == (None, None)
        assert row.source.startswith("a table of our own")
    no_norm = rows["nonorm_resnet50"].recipe
    assert replace(no_norm, model="", pgt=PgtSettings()) == replace(
        get_recipe("pgt-imagenet"), model="", pgt=PgtSettings()
    )


def test_gains_and_biases_of_norm_free_rows_do_not_decay():
    recipe = get_recipe("nf-imagenet")
    assert recipe.optimizer == OptimizerSettings("sgd", 0.4, 0.9, True, 2e-5, False)
    assert (recipe.batch_size, recipe.epochs, recipe.label_smoothing) == (1024, 90, 0.0)
    assert recipe.schedule == ScheduleSettings("cosine", final_lr=0.0, warmup_epochs=5)
    model = create_model("nf_resnet26", num_classes=10)
    decaying, spared = parameter_groups(model, recipe.optimizer)
    names = {parameter: name.rpartition(".")[2] for name, parameter in model.named_parameters()}
    assert {names[parameter] for parameter in decaying["params"]} == {"weight"}
    assert {names[parameter] for parameter in spared["params"]} == {"bias", "gain", "skip_gain"}
    assert (decaying["weight_decay"], spared["weight_decay"]) == (2e-5, 0.0)


def test_settings_of_the_imagenet_recipes():
    sgs, pgt = get_recipe("imagenet-120"), get_recipe("pgt-imagenet")
    assert (sgs.epochs, sgs.batch_size, sgs.schedule.final_lr, sgs.schedule.warmup_epochs) == (120, 256, 1e-7, 0)
    assert sgs.optimizer == OptimizerSettings("sgd", 0.1, 0.9, True, 1e-4, False)
    assert sgs.sgs == SgsSettings(k=5.0, warmup=1, every=5, batches=2, drop_near_equal=True)
    assert sgs.stream_augmentation == StreamAugmentation(0.08, True, 0.06)
    assert (pgt.epochs, pgt.batch_size, pgt.schedule.warmup_epochs, pgt.schedule.cooldown_epochs) == (100, 1024, 5, 10)
    assert pgt.optimizer == OptimizerSettings("sgd", 0.1, 0.9, False, 5e-4, True)
    assert pgt.pgt == PgtSettings(0.25)


def test_rows_that_differ_in_an_idle_method_share_its_baseline():
    """Nine optimizers, of which Adagrad and Adagrad* share their plain run; a search has one for all its values."""
    counts = {name: len(table.runs([0])) for name, table in TABLES.items()}
    assert counts == {
        "sgs-table-1": 8,
        "sgs-table-2": 12,
        "sgs-table-3": 4,
        "sgs-table-4": 34,
        "sgs-table-5": 7,
        "sgs-table-6": 17,
        "sgs-figure-7": 16,
        "pgt-results": 18,
        "pgt-clipping": 4,
        "norm-free": 6,
    }
    k2, k3 = get_table("sgs-table-5").rows[:2]
    assert k2.run("plain", 1) == k3.run("plain", 1)
    assert k2.run("sgs", 1) != k3.run("sgs", 1)
    assert k2.run("sgs", 1).recipe == k2.recipe


def test_runs_go_through_all_rows_before_the_next_seed():
    runs = get_table("sgs-table-1").runs([3, 4])
    assert [(run.recipe.data.name, run.method, run.seed) for run in runs] == [
        (data, method, seed)
        for seed in (3, 4)
        for data in ("cifar10", "cifar100")
        for method in ("plain", "sgs", "dbb_dyrep", "dyrep")
    ]
    assert json.loads(json.dumps(runs[0].as_dict()))["recipe"]["model"] == "vgg16_small"
