import numpy as np
import pytest

from backpass.errors import InputError
from backpass.experiments import RECIPES, Tuning, compare_study, parse_space

RECIPE = RECIPES["digits"]


def test_every_method_with_every_seed():
    study = compare_study(RECIPE, ["sgs", "plain", "pgt"], [3, 4])
    assert [(entry.key, entry.baseline) for entry in study.entries] == [
        ("sgs", "plain"),
        ("plain", None),
        ("pgt", "plain"),
    ]
    assert [run.folder for run in study.runs()] == [f"{m}-seed{s}" for s in (3, 4) for m in ("sgs", "plain", "pgt")]
    assert study.title == "digits_net on digits"


def test_a_method_given_twice_counts_once_and_the_baseline_stays_plain():
    study = compare_study(RECIPE, ["sgs", "sgs", "plain", "pgt"], [0, 0])
    assert [(entry.key, entry.baseline) for entry in study.entries] == [
        ("sgs", "plain"),
        ("plain", None),
        ("pgt", "plain"),
    ]
    assert study.seeds == (0,)


def test_without_plain_nothing_is_compared():
    assert [entry.baseline for entry in compare_study(RECIPE, ["sgs", "pgt"], [0]).entries] == [None, None]


def test_a_setting_that_no_method_has_is_refused():
    both = parse_space(["lr=0.05,0.1", "k=3,5"])
    for space in (both, both[1:]):
        with pytest.raises(InputError, match=r"tune that one of plain, pgt has, got sgs\.k; leave them out, or give a"):
            compare_study(RECIPE, ["plain", "pgt"], [0], space=space)
    with pytest.raises(InputError, match=r"got sgs\.alpha,sgs\.beta; leave"):
        compare_study(RECIPE, ["plain"], [0], space=(("sgs.alpha,sgs.beta", ("1,2", "2,1")),))
    gamma = parse_space(["reparam.acb_gamma=0.3,1"])
    with pytest.raises(InputError, match=r"that one of plain, dbb, repvgg has, got reparam\.acb_gamma"):
        compare_study(RECIPE, ["plain", "dbb", "repvgg"], [0], space=gamma)
    unequal = Tuning(unequal=True)
    found = compare_study(RECIPE, ["plain", "acb", "dbb"], [0], space=gamma, tuning=unequal)
    assert [entry.space for entry in found.entries] == [(), gamma, ()]
    with pytest.raises(InputError, match=r"unknown setting 'gamma' of ReparamSettings"):
        compare_study(RECIPE, ["acb"], [0], space=parse_space(["reparam.gamma=0.3,1"]))


def test_a_method_without_a_setting_to_tune_is_refused_unless_budgets_may_differ():
    space = parse_space(["sgs.k=3,5"])
    with pytest.raises(InputError, match=r"gets the same budget, got none for plain; add one such as lr, or allow"):
        compare_study(RECIPE, ["plain", "sgs"], [0], space=space)
    assert compare_study(RECIPE, ["plain", "sgs"], [0], space=space, tuning=Tuning(unequal=True)).tuning is not None


def test_options_of_a_tuning_that_tunes_nothing_are_refused():
    with pytest.raises(InputError, match=r"expected settings to tune with tuning\.trials, got none; give them"):
        compare_study(RECIPE, ["plain"], [0], tuning=Tuning(trials=6))
    assert compare_study(RECIPE, ["plain"], [0], tuning=Tuning()).tuning is None


def test_seeds_of_numpy_are_seeds():
    study = compare_study(RECIPE, ["plain"], np.arange(2))
    assert (study.seeds, {type(seed) for seed in study.seeds}) == ((0, 1), {int})


def test_nothing_to_compare():
    with pytest.raises(InputError, match=r"at least one method and one seed, got \[\] and \[0\]"):
        compare_study(RECIPE, [], [0])
    with pytest.raises(InputError, match="got 'foo' with the unknown 'foo'"):
        compare_study(RECIPE, ["foo"], [0])
