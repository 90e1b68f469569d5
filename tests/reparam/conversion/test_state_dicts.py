from collections import OrderedDict

import pytest
import torch
from torch import nn

from backpass.errors import InputError
from backpass.reparam import (
    BLOCKS,
    DyRepBlock,
    block_map,
    fuse,
    load_state_dict,
    reparameterize,
    restore_blocks,
)
from reference.reparam_cases import Residual, assert_same, randomise, trained


@pytest.mark.parametrize("name", BLOCKS)
def test_a_training_checkpoint_loads_into_every_form(name: str) -> None:
    model = trained(name)
    state, blocks = model.state_dict(), block_map(model)
    fused_form, training_form = fuse(reparameterize(Residual(), name).eval()), reparameterize(Residual(), name)
    for target in (Residual(), fused_form, training_form):
        load_state_dict(target, state, blocks=blocks)
        assert_same(target, model)
    assert all(torch.equal(tensor, state[key]) for key, tensor in training_form.state_dict().items())


def test_normalisation_settings_come_back_in_the_fused_form() -> None:
    plain = Residual()
    plain.bn1.eps, plain.bn1.momentum = 1e-2, 0.3
    model = randomise(reparameterize(plain, "acb")).eval()
    target = fuse(reparameterize(Residual(), "acb").eval())
    load_state_dict(target, model.state_dict(), blocks=block_map(model))
    assert_same(target, model)


def test_a_branchless_checkpoint_does_not_load_into_a_training_form() -> None:
    model = trained()
    for state in (Residual().state_dict(), fuse(model).state_dict()):
        with pytest.raises(InputError, match=r"a block \(dbb\) at 'conv1', got .* with a plain convolution \(2 such"):
            load_state_dict(model, state)


def test_a_checkpoint_of_a_wrapped_model_names_the_prefix() -> None:
    model = reparameterize(Residual(), "acb")
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=r"got the prefix 'module.' in the checkpoint alone; use the module inside"):
        load_state_dict(model, state)
    with pytest.raises(InputError, match=r"got the prefix 'module.' in the model alone"):
        load_state_dict(nn.DataParallel(model), model.state_dict())
    with pytest.raises(InputError, match=r"got the prefix 'module.' in the checkpoint alone"):
        load_state_dict(Residual(), state, blocks=block_map(model))
    load_state_dict(nn.DataParallel(model), state)


def test_a_checkpoint_of_some_blocks_is_not_taken_for_a_wrapped_one() -> None:
    def net() -> nn.Module:
        return nn.Sequential(OrderedDict(conv1=nn.Conv2d(3, 3, 3), norm=nn.BatchNorm2d(3), layer=Residual()))

    model, whole = reparameterize(net(), "acb", include=["layer.*"]), reparameterize(net(), "acb")
    with pytest.raises(InputError, match=r"a block \(acb\) at 'conv1', got .* with a plain convolution"):
        load_state_dict(whole, model.state_dict())


def test_a_block_that_replaced_no_normalisation_needs_a_fused_form() -> None:
    def plain() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))

    model = nn.Sequential(DyRepBlock(nn.Conv2d(3, 4, 3, padding=1, bias=False)), nn.BatchNorm2d(4))
    randomise(model).eval()
    state, blocks = model.state_dict(), block_map(model)
    with pytest.raises(InputError, match=r"a bias at '0'.* load the checkpoint into fuse\(restore_blocks"):
        load_state_dict(plain(), state, blocks=blocks)
    fused = fuse(restore_blocks(plain(), blocks).eval())
    load_state_dict(fused, state, blocks=blocks)
    assert_same(fused, model)


def test_a_training_checkpoint_without_its_blocks_says_what_to_pass() -> None:
    with pytest.raises(InputError, match=r"plain convolution at 'conv1', got .* a block \(2 .*blocks=block_map\("):
        load_state_dict(Residual(), trained().state_dict())
    partly = reparameterize(Residual(), "dbb", include=["conv1"])
    with pytest.raises(InputError, match=r"start from the plain model"):
        load_state_dict(partly, trained().state_dict(), blocks=block_map(trained()))


def test_plain_checkpoints_load_into_plain_models_and_stay_strict() -> None:
    source, target = randomise(Residual()).eval(), Residual()
    load_state_dict(target, source.state_dict())
    assert_same(target, source)
    with pytest.raises(RuntimeError, match="Missing key"):
        load_state_dict(target, {})


@pytest.mark.parametrize("conv_bias", [False, True])
def test_plain_and_fused_checkpoints_do_not_load_into_each_other(conv_bias: bool) -> None:
    def plain() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3, bias=conv_bias), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))

    fused = fuse(reparameterize(plain(), "acb").eval())
    with pytest.raises(InputError, match=r"with the normalisation '1', got a fused one .*\(1 .*into the fused form"):
        load_state_dict(plain(), fused.state_dict())
    with pytest.raises(InputError, match=r"without the normalisation '1', got a plain one .*\(1 .*into the plain mod"):
        load_state_dict(fused, plain().state_dict())


def test_other_differences_stay_those_of_pytorch() -> None:
    state = Residual().state_dict()
    target = randomise(Residual()).eval()
    load_state_dict(target, {key: tensor for key, tensor in state.items() if "num_batches" not in key})
    del state["bn1.weight"], state["fc.weight"]
    with pytest.raises(RuntimeError, match="Missing key"):
        load_state_dict(target, state)


def test_a_checkpoint_of_a_block_with_two_names_loads_into_every_form() -> None:
    def tied() -> nn.Module:
        conv, norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        return nn.Sequential(conv, norm, nn.ReLU(), conv, norm)

    model = randomise(reparameterize(tied(), "acb"), seed=3).eval()
    for target in (reparameterize(tied(), "acb"), tied(), fuse(reparameterize(tied(), "acb").eval())):
        load_state_dict(target, model.state_dict(), blocks=block_map(model))
        assert_same(target, model)
        assert target[3] is target[0]
    load_state_dict(reparameterize(tied(), "acb"), model.state_dict())
