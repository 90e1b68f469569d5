from dataclasses import replace

import pytest

from backpass.errors import InputError
from backpass.experiments import RECIPES, search_study
from backpass.experiments.search import SEARCHES
from backpass.training.recipe import ScheduleSettings

RECIPE = RECIPES["digits"]


def test_an_entry_for_each_value_and_plain_for_comparison():
    study = search_study("sgs.k", RECIPE, [0])
    assert [entry.method for entry in study.entries] == ["plain"] + ["sgs"] * 6
    assert [entry.recipe.sgs.k for entry in study.entries[1:]] == [2, 3, 4, 5, 6, 7]
    assert [entry.baseline for entry in study.entries] == [None] + ["plain"] * 6
    assert {entry.recipe.data.validation for entry in study.entries} == {0.2}
    assert study.entries[1].recipe == replace(study.entries[0].recipe, sgs=replace(RECIPE.sgs, k=2.0))
    assert [run.folder for run in study.runs()][:2] == ["plain-seed0", "tuning-sgs-sgs.k=2.0-seed0"]
    assert study.notes == ("judged on 20 % of the training images, held out",)


def test_a_search_over_anything_else():
    study = search_study("optimizer.lr", RECIPE, [0], values=["0.1", "1"])
    assert [(entry.method, entry.recipe.optimizer.lr, entry.baseline) for entry in study.entries] == [
        ("plain", 0.1, None),
        ("plain", 1.0, None),
    ]
    assert search_study("pgt.alpha", RECIPE, [0], method="sgs+pgt").entries[1].method == "sgs+pgt"
    with pytest.raises(
        InputError,
        match=r"expected values to try for 'epochs', got none; .* sgs.k; sgs.alpha,sgs.beta; pgt.alpha have a grid",
    ):
        search_study("epochs", RECIPE, [0])
    with pytest.raises(InputError, match="expected at least one seed"):
        search_study("sgs.k", RECIPE, [])


def test_images_that_the_recipe_holds_out_are_refused_and_not_replaced():
    held_out = replace(RECIPE, data=replace(RECIPE.data, validation=0.1))
    with pytest.raises(InputError, match=r"data\.validation = 0 in a search, .*, got 0\.1; give that fraction"):
        search_study("sgs.k", held_out, [0])


def test_a_search_over_a_setting_of_several_values():
    branches = [("3x3", "1x3"), ("3x3",)]
    study = search_study("sgs.branches", RECIPE, [0], values=branches)
    assert [entry.recipe.sgs.branches for entry in study.entries[1:]] == branches
    steps, milestones = replace(RECIPE, schedule=ScheduleSettings("step")), [(5.0,), (5.0, 15.0)]
    study = search_study("schedule.milestones", steps, [0], values=milestones)
    assert [entry.recipe.schedule.milestones for entry in study.entries] == milestones


def test_a_search_over_a_fixed_scaling_covers_both_of_its_settings():
    study = search_study("sgs.alpha,sgs.beta", RECIPE, [0])
    pairs = [(entry.recipe.sgs.alpha, entry.recipe.sgs.beta) for entry in study.entries]
    assert pairs == [(None, None), *SEARCHES["sgs.alpha,sgs.beta"]]
    given = search_study("sgs.alpha,sgs.beta", RECIPE, [0], values=["0.5,0.25", "1, 2"])
    assert [(entry.label, entry.method) for entry in given.entries[1:]] == [
        ("sgs, sgs.alpha,sgs.beta = 0.5,0.25", "sgs"),
        ("sgs, sgs.alpha,sgs.beta = 1, 2", "sgs"),
    ]
    assert given.entries[1].recipe.sgs == replace(RECIPE.sgs, alpha=0.5, beta=0.25)
    assert given.entries[2].recipe.sgs == replace(RECIPE.sgs, alpha=1.0, beta=2.0)
    with pytest.raises(InputError, match=r"a value for each of sgs.alpha,sgs.beta, joined .*, got '0.5'"):
        search_study("sgs.alpha,sgs.beta", RECIPE, [0], values=["0.5"])


def test_a_search_over_half_of_a_fixed_scaling_needs_the_other_half():
    beside = replace(RECIPE, sgs=replace(RECIPE.sgs, beta=0.25))
    runs = search_study("sgs.alpha", beside, [0], values=["0.5", "1"]).runs()
    assert [(run.run.method, run.run.recipe.sgs.alpha) for run in runs] == [("plain", None), ("sgs", 0.5), ("sgs", 1)]
    with pytest.raises(InputError, match=r"alpha and sgs.beta together, .* got sgs.alpha=0.5, sgs.beta=None"):
        search_study("sgs.alpha", RECIPE, [0], values=["0.5"]).runs()


@pytest.mark.parametrize(
    ("key", "value", "method"),
    [
        ("dyrep.every", "2", "dyrep"),
        ("reparam.acb_gamma", "0.5", "acb"),
        ("agc.eps", "0.01", "agc"),
        ("optimizer.lr,sgs.k", "0.1,3", "sgs"),
        ("pgt.alpha,sgs.k", "0.5,3", "sgs+pgt"),
        ("epochs", "2", "plain"),
    ],
)
def test_the_default_method_is_the_one_that_has_the_settings(key, value, method):
    study = search_study(key, RECIPE, [0], values=[value])
    assert [entry.method for entry in study.entries] == (["plain"] if method == "plain" else ["plain", method])


@pytest.mark.parametrize(
    ("key", "method"), [("sgs.k", "pgt"), ("sgs.k", "plain"), ("optimizer.lr,pgt.alpha", "sgs"), ("dyrep.every", "acb")]
)
def test_a_method_without_the_settings_is_refused(key, method):
    message = rf"expected settings to tune that {method} has, got {key}; leave them out, or give a method that has them"
    with pytest.raises(InputError, match=message):
        search_study(key, RECIPE, [0], values=["1,1" if "," in key else "1"], method=method)


def test_settings_of_methods_that_do_not_go_together_are_refused():
    with pytest.raises(InputError, match=r"expected sgs with kernels that stay in the model, got 'sgs\+dyrep'"):
        search_study("sgs.k,dyrep.every", RECIPE, [0], values=["3,2"])


def test_a_value_given_twice_is_tried_once():
    assert len(search_study("sgs.k", RECIPE, [0], values=["3", "3"]).entries) == 2
