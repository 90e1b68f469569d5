import io
import json

import pytest
import torch
from torch import nn

from backpass.errors import InputError
from backpass.reparam import (
    ACBlock,
    DyRepBlock,
    block_map,
    restore_blocks,
)
from reference.reparam_cases import Residual, X, randomise, trained


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


def test_normalisation_settings_of_a_block_that_a_user_made_come_back() -> None:
    model = nn.Sequential(ACBlock(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.1, momentum=0.3)))
    restored = restore_blocks(nn.Sequential(nn.Conv2d(3, 4, 3)), block_map(model))
    norms = [module for module in restored.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(0.1, 0.3)}


def test_a_block_map_of_another_network_is_refused() -> None:
    blocks = block_map(trained())
    with pytest.raises(InputError, match=r"nn.Conv2d at 'conv1', where the block map has a dbb block, got nothing"):
        restore_blocks(nn.Sequential(), blocks)
    model = Residual()
    model.bn1 = nn.ReLU()
    with pytest.raises(InputError, match=r"nn.BatchNorm2d at 'bn1', which .* took over, got a ReLU"):
        restore_blocks(model, blocks)
    assert type(model.conv1) is nn.Conv2d
