import pytest

from backpass.errors import InputError
from backpass.experiments import RECIPES, compare_study

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


def test_nothing_to_compare():
    with pytest.raises(InputError, match=r"at least one method and one seed, got \[\] and \[0\]"):
        compare_study(RECIPE, [], [0])
    with pytest.raises(InputError, match="got 'foo': unknown 'foo'"):
        compare_study(RECIPE, ["foo"], [0])
