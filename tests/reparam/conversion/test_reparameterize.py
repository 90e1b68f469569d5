import pytest
import torch
from torch import Tensor, nn

from backpass.errors import BackpassWarning, InputError, NoEffectWarning
from backpass.reparam import (
    BLOCKS,
    ACBlock,
    DyRepBlock,
    fuse,
    plan_conversion,
    reparameterize,
    to_plain,
)
from reference.reparam_cases import Residual, Untraceable, images, randomise


@pytest.mark.parametrize("name", BLOCKS)
def test_convolutions_become_blocks_and_their_normalisations_identities(name: str) -> None:
    model = Residual()
    converted = reparameterize(model, name)
    assert type(converted.conv1) is type(converted.conv2) is BLOCKS[name]
    assert type(converted.bn1) is type(converted.bn2) is nn.Identity
    assert type(converted.shortcut[0]) is nn.Conv2d
    assert type(model.conv1) is nn.Conv2d
    assert converted.conv1.absorbed == (converted.bn1,)
    assert not any("absorbed" in key for key in converted.state_dict())
    out = converted.train()(images(4, 3, 8, 8))
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in converted.parameters())


def test_converting_twice_equals_converting_once() -> None:
    once = reparameterize(Residual(), "acb")
    keys = list(once.state_dict())
    with pytest.warns(NoEffectWarning, match=r"1 skipped: its kernel must be square.*\n    shortcut.0"):
        twice = reparameterize(once, "acb")
    assert list(twice.state_dict()) == keys
    with pytest.warns(NoEffectWarning, match=r"no layer of Linear; it has no nn.Conv2d outside of blocks"):
        reparameterize(nn.Linear(2, 2), "acb")


def test_single_init_keeps_the_function_of_a_trained_model() -> None:
    model = randomise(Residual()).eval()
    x = images(4, 3, 9, 9)
    torch.testing.assert_close(reparameterize(model, "acb", init="single")(x), model(x), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(reparameterize(model, "acb")(x), model(x), atol=0.1)


def test_a_residual_that_starts_at_zero_still_does() -> None:
    model = Residual()
    nn.init.zeros_(model.bn2.weight)
    converted = reparameterize(model, "repvgg")
    out = converted.conv2(images(4, 8, 5, 5))
    assert not out.any()
    assert converted.conv1(images(4, 3, 9, 9)).any()


def test_options_reach_the_blocks() -> None:
    model = reparameterize(Residual(), "dbb_dyrep", branches=("kxk", "1xk"))
    assert list(model.conv2.branches) == ["kxk", "1xk"]
    assert reparameterize(Residual(), "acb", gamma=0.25).conv1.main.norm.weight.unique().tolist() == [0.25]


def test_a_probe_opens_models_that_cannot_be_traced() -> None:
    with pytest.warns(NoEffectWarning, match=r"could not be traced"):
        reparameterize(Untraceable(), "acb")
    model = reparameterize(Untraceable(), "acb", probe=images(1, 3, 8, 8))
    assert isinstance(model.conv1, ACBlock)


class Tapped(nn.Module):
    """Cannot be traced, and returns what lies between a convolution and its normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[-1] < 5:
            raise ValueError("too small")
        for position, layer in enumerate(self.features):
            x = layer(x)
            if position == 2:
                tap = x
        return x, tap


def test_pairs_from_parts_of_the_trace_are_doubted_and_a_probe_settles_them() -> None:
    with pytest.warns(BackpassWarning, match=r"not certain: .* as a whole \(Tapped: .*; pass probe=<an input>"):
        reparameterize(Tapped(), "acb")
    plan = plan_conversion(Tapped(), "acb")
    assert plan.converted == {"features.0": "features.1", "features.2": "features.3"}
    assert f"not certain: {plan.doubt}" in str(plan).splitlines()
    x = images(2, 3, 8, 8)
    settled = plan_conversion(Tapped(), "acb", probe=x)
    assert (settled.converted, settled.doubt) == ({"features.0": "features.1"}, None)
    model = randomise(Tapped()).eval()
    single = reparameterize(model, "acb", init="single", probe=x)
    for before, after in zip(model(x), single(x), strict=True):
        torch.testing.assert_close(after, before)


def test_a_layer_with_two_names_becomes_one_block() -> None:
    shared, norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
    model = reparameterize(nn.Sequential(shared, norm, nn.ReLU(), shared, norm), "dbb_dyrep")
    assert isinstance(model[0], DyRepBlock)
    assert model[3] is model[0]
    assert type(model[1]) is type(model[4]) is nn.Identity


def test_unknown_names_and_options_are_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"one of the blocks acb, repvgg, dbb, dbb_dyrep, got 'obb'"):
        reparameterize(Residual(), "obb")
    with pytest.raises(InputError, match=r"options of acb, which are gamma, init, got branches"):
        reparameterize(Residual(), "acb", branches=["kxk"])


def test_in_place_keeps_the_parameters_that_an_optimizer_may_hold() -> None:
    model = Residual()
    weights = [model.conv1.weight, model.bn1.weight, model.fc.weight]
    assert reparameterize(model, "dbb", inplace=True) is model
    ids = {id(parameter) for parameter in model.parameters()}
    assert all(id(weight) in ids for weight in weights)


class ProcessGroup:
    """Like torch's: has no copy."""

    def __deepcopy__(self, memo: dict) -> None:
        raise TypeError("cannot pickle ProcessGroup")


def test_models_with_a_process_group_are_converted_and_fused_as_copies() -> None:
    group = ProcessGroup()
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.SyncBatchNorm(3, process_group=group)).eval()
    converted = reparameterize(model, "acb")
    assert converted[0] is not model[0]
    assert {branch.norm.process_group for _, branch in converted[0].items()} == {group}
    x = images(2, 3, 8, 8)
    torch.testing.assert_close(fuse(converted)(x), converted(x))
    assert to_plain(converted)[1].process_group is group
