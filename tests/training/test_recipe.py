import json

import pytest
import torch
from backpass.experiments.cells import from_plain, to_plain

from backpass.errors import InputError
from backpass.sgs import alpha_beta_scaling
from backpass.training.recipe import Recipe, Run, SgsSettings


def test_scalings_are_measured_unless_one_is_fixed():
    assert SgsSettings(k=3.0, measure="autocorrelation").fixed_scaling() is None


def test_a_fixed_scaling_has_mean_1():
    assert torch.equal(SgsSettings(alpha=0.5, beta=0.25).fixed_scaling(), alpha_beta_scaling(0.5, 0.25))
    as_repvgg = SgsSettings(branches=("3x3", "1x1")).fixed_scaling()
    torch.testing.assert_close(as_repvgg, torch.tensor([[0.9] * 3, [0.9, 1.8, 0.9], [0.9] * 3]))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"alpha": 0.5}, "sgs.alpha and sgs.beta together, .*, got sgs.alpha=0.5, sgs.beta=None"),
        ({"beta": 0.5}, "sgs.alpha and sgs.beta together, .*, got sgs.alpha=None, sgs.beta=0.5"),
        ({"alpha": 0.5, "branches": ("3x3",)}, r"without them, got sgs.alpha=0.5, .*branches=\('3x3',\)"),
        ({"alpha": 0.5, "beta": 0.5, "branches": ("3x3",)}, "or sgs.branches without them"),
        (
            {"alpha": 0.5, "beta": 0.5, "measure": "autocorrelation"},
            "got both; leave out sgs.measure='autocorrelation'",
        ),
        ({"branches": ("3x3", "1x1"), "k": 3.0}, "got both; leave out sgs.k=3.0$"),
        ({"alpha": 0.0, "beta": 0.5}, "alpha and beta to be finite numbers > 0, got 0.0 and 0.5"),
        ({"branches": ("3x3", "2x3")}, "branch '2x3' cannot be centred"),
        ({"branches": ("3*3",)}, "a branch's kernel size such as '3x3' or '1x3', got '3[*]3'"),
    ],
)
def test_contradictions_are_refused_before_anything_is_computed(settings, text):
    recipe = Recipe(sgs=SgsSettings(**settings))
    for method in ("sgs", "sgs+pgt"):
        with pytest.raises(InputError, match=text):
            Run(recipe, method)
    assert Run(recipe, "pgt").recipe == recipe


@pytest.mark.parametrize("settings", [{"alpha": 0.5, "beta": 0.25}, {"branches": ("3x3", "1x3", "3x1")}])
def test_runs_with_a_fixed_scaling_survive_json(settings):
    run = Run(Recipe(sgs=SgsSettings(**settings)), "sgs")
    assert from_plain(Run, json.loads(json.dumps(to_plain(run)))) == run
