import pytest
import torch
from torch import nn

from backpass.errors import InputError, StateError
from backpass.reparam import (
    BLOCKS,
    DyRepBlock,
    to_plain,
)
from reference.reparam_cases import Residual, X, assert_same, randomise, trained


@pytest.mark.parametrize("name", BLOCKS)
def test_the_plain_form_loads_strictly_into_the_plain_model(name: str) -> None:
    model, plain = trained(name), Residual()
    plain.load_state_dict(to_plain(model).state_dict(), strict=True)
    assert_same(plain, model)
    assert not plain.conv2.bias.any()
    assert isinstance(model.conv1, BLOCKS[name])


def test_the_plain_form_needs_eval_mode_and_a_place_for_the_bias() -> None:
    with pytest.raises(StateError, match=r"call model.eval\(\) first"):
        to_plain(trained().train())
    grown = nn.Sequential(DyRepBlock(nn.Conv2d(3, 3, 3, bias=False))).eval()
    with pytest.raises(InputError, match=r"got '0' with neither, .*; use fuse\(model\)"):
        to_plain(grown)
    with_bias = randomise(nn.Sequential(DyRepBlock(nn.Conv2d(3, 3, 3)))).eval()
    torch.testing.assert_close(to_plain(with_bias)(X), with_bias(X), rtol=1e-4, atol=1e-4)
