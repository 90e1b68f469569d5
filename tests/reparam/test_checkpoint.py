import io
import json

import pytest
import torch
from torch import nn

from backpass.errors import InputError, StateError
from backpass.reparam import (
    BLOCKS,
    DyRepBlock,
    block_map,
    fuse,
    load_state_dict,
    reparameterize,
    restore_blocks,
    to_plain,
)
from reference.reparam_cases import Residual, images, randomise

X = images(2, 3, 9, 9)


def trained(name: str = "dbb", **options) -> nn.Module:
    return randomise(reparameterize(Residual(), name, **options), seed=3).eval()


def same(model: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(model.eval()(X), other(X), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_training_checkpoint_loads_into_every_form(name: str) -> None:
    model = trained(name)
    state, blocks = model.state_dict(), block_map(model)
    fused_form, training_form = fuse(reparameterize(Residual(), name).eval()), reparameterize(Residual(), name)
    for target in (Residual(), fused_form, training_form):
        load_state_dict(target, state, blocks=blocks)
        same(target, model)
    assert all(torch.equal(tensor, state[key]) for key, tensor in training_form.state_dict().items())


@pytest.mark.parametrize("name", BLOCKS)
def test_the_plain_form_loads_strictly_into_the_plain_model(name: str) -> None:
    model, plain = trained(name), Residual()
    plain.load_state_dict(to_plain(model).state_dict(), strict=True)
    same(plain, model)
    assert not plain.conv2.bias.any()
    assert isinstance(model.conv1, BLOCKS[name])


def test_block_maps_survive_json_and_safe_loading() -> None:
    blocks = block_map(trained("dbb_dyrep", branches=["1x1", "kxk", "id"]))
    assert blocks["conv2"] == {
        "block": "dbb_dyrep",
        "options": {"branches": ["1x1", "kxk", "id"]},
        "absorbed": "bn2",
        "had_bias": True,
        "eps": 1e-5,
        "momentum": 0.1,
    }
    assert json.loads(json.dumps(blocks)) == blocks
    file = io.BytesIO()
    torch.save(blocks, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == blocks


def test_blocks_are_restored_inside_a_wrapper_and_inside_each_other() -> None:
    inner = trained("dbb_dyrep")
    inner.conv1.branches["1x1_kxk"].conv = DyRepBlock(inner.conv1.branches["1x1_kxk"].conv, branches=["kxk", "1x1_avg"])
    model = nn.Sequential(randomise(inner)).eval()
    blocks = block_map(model)
    assert list(blocks) == ["0.conv1", "0.conv1.branches.1x1_kxk.conv", "0.conv2"]
    assert blocks["0.conv1"]["absorbed"] == "0.bn1"
    restored = restore_blocks(nn.Sequential(Residual()), blocks).eval()
    restored.load_state_dict(model.state_dict())
    assert torch.equal(restored(X), model(X))
    assert block_map(restored) == blocks


def test_normalisation_settings_come_back_in_the_fused_form() -> None:
    plain = Residual()
    plain.bn1.eps, plain.bn1.momentum = 1e-2, 0.3
    model = randomise(reparameterize(plain, "acb")).eval()
    target = fuse(reparameterize(Residual(), "acb").eval())
    load_state_dict(target, model.state_dict(), blocks=block_map(model))
    same(target, model)


def test_a_branchless_checkpoint_does_not_load_into_a_training_form() -> None:
    model = trained()
    for state in (Residual().state_dict(), fuse(model).state_dict()):
        with pytest.raises(InputError, match=r"a dbb block at 'conv1', the checkpoint a plain convolution \(2 such"):
            load_state_dict(model, state)


def test_a_training_checkpoint_without_its_blocks_says_what_to_pass() -> None:
    with pytest.raises(InputError, match=r"a block at 'conv1', the model a plain convolution \(2 .*blocks=block_map\("):
        load_state_dict(Residual(), trained().state_dict())
    partly = reparameterize(Residual(), "dbb", include=["conv1"])
    with pytest.raises(InputError, match=r"start from the plain model"):
        load_state_dict(partly, trained().state_dict(), blocks=block_map(trained()))


def test_plain_checkpoints_load_into_plain_models_and_stay_strict() -> None:
    source, target = randomise(Residual()).eval(), Residual()
    load_state_dict(target, source.state_dict())
    same(target, source)
    with pytest.raises(RuntimeError, match="Missing key"):
        load_state_dict(target, {})


def test_a_block_map_of_another_network_is_refused() -> None:
    blocks = block_map(trained())
    with pytest.raises(InputError, match=r"a dbb block at 'conv1', where the model has nothing instead"):
        restore_blocks(nn.Sequential(), blocks)
    model = Residual()
    model.bn1 = nn.ReLU()
    with pytest.raises(InputError, match=r"'bn1' was taken over, where the model has a ReLU instead"):
        restore_blocks(model, blocks)
    assert type(model.conv1) is nn.Conv2d


def test_the_plain_form_needs_eval_mode_and_a_place_for_the_bias() -> None:
    with pytest.raises(StateError, match=r"call model.eval\(\) first"):
        to_plain(trained().train())
    grown = nn.Sequential(DyRepBlock(nn.Conv2d(3, 3, 3, bias=False))).eval()
    with pytest.raises(InputError, match=r"block '0' replaced a convolution without bias .*use fuse\(model\)"):
        to_plain(grown)
    with_bias = randomise(nn.Sequential(DyRepBlock(nn.Conv2d(3, 3, 3)))).eval()
    torch.testing.assert_close(to_plain(with_bias)(X), with_bias(X), rtol=1e-4, atol=1e-4)


def test_a_checkpoint_of_a_block_with_two_names_loads_into_every_form() -> None:
    def tied() -> nn.Module:
        conv, norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        return nn.Sequential(conv, norm, nn.ReLU(), conv, norm)

    model = randomise(reparameterize(tied(), "acb"), seed=3).eval()
    for target in (reparameterize(tied(), "acb"), tied(), fuse(reparameterize(tied(), "acb").eval())):
        load_state_dict(target, model.state_dict(), blocks=block_map(model))
        same(target, model)
        assert target[3] is target[0]
    load_state_dict(reparameterize(tied(), "acb"), model.state_dict())
