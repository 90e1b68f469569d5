from dataclasses import replace

import pytest
import torch
import tyro

from backpass.errors import InputError
from backpass.experiments.serialization import from_json, to_json
from backpass.models import count_parameters
from backpass.sgs import alpha_beta_scaling
from backpass.training.recipe import Recipe, Run, Runtime, SgsSettings
from backpass.training.trainer import Trainer


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
    assert from_json(Run, to_json(run), "here") == run


ARGUMENTS = (("act", "relu"), ("rate", 0.5), ("width", 2), ("zero_init_last", False))


def test_arguments_of_the_model_come_from_the_command_line_and_survive_json():
    line = "--model-args zero_init_last False width 2 rate 0.5 act relu --epochs 3"
    recipe = tyro.cli(Recipe, args=line.split())
    assert recipe == Recipe(model_args=ARGUMENTS, epochs=3)
    assert [type(value) for _, value in recipe.model_args] == [str, float, int, bool]
    for each in (recipe, Recipe()):
        restored = from_json(Recipe, to_json(each), "here")
        assert restored == each
        assert hash(restored) == hash(each)


def test_the_order_of_the_models_arguments_does_not_matter():
    assert Recipe(model_args=ARGUMENTS[::-1]) == Recipe(model_args=ARGUMENTS)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((("width", 2), ("width", 3)), r"got \['width', 'width'\]: each name counts once"),
        ((("num_classes", 2),), r"got \['num_classes'\]: the data set determines num_classes and in_channels"),
    ],
)
def test_arguments_of_the_model_that_contradict_are_refused(arguments, text):
    with pytest.raises(InputError, match=text):
        Recipe(model_args=arguments)


def test_arguments_reach_the_model(recipe, images):
    def enlarged(split):
        return replace(split, images=split.images.repeat_interleave(4, 2).repeat_interleave(4, 3))

    large = replace(images, train=enlarged(images.train), test=enlarged(images.test), image_size=(32, 32))

    def parameters(model, *arguments):
        run = Run(replace(recipe, model=model, model_args=arguments))
        return count_parameters(Trainer(run, large, runtime=Runtime(device="cpu")).model)

    assert parameters("vgg11_small", ("hidden_layers", 2)) > parameters("vgg11_small")
    with pytest.raises(
        InputError,
        match=r"'digits_net', which are num_classes, in_channels, got others: .*hidden_layers.*: --model-args alone",
    ):
        parameters("digits_net", ("hidden_layers", 2))
