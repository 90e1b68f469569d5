import copy

import pytest
import torch
from torch import nn

from backpass.errors import InputError
from backpass.reparam import ACBlock
from reference.reparam_cases import images, randomise


def test_all_gammas_are_scaled_and_single_leaves_the_square_branch_alone() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    third = ACBlock(conv, gamma=1 / 3)
    assert {gamma for _, b in third.items() for gamma in b.norm.weight.tolist()} == {torch.tensor(1 / 3).item()}
    single = ACBlock(conv, init="single")
    assert {name: b.norm.weight.unique().tolist() for name, b in single.items()} == {
        "kxk": [1.0],
        "kx1": [0.0],
        "1xk": [0.0],
    }


def test_single_init_keeps_the_function() -> None:
    conv, norm = nn.Conv2d(4, 6, 3, padding=1).eval(), randomise(nn.BatchNorm2d(6)).eval()
    x = images(2, 4, 5, 5)
    expected = norm(conv(x))
    for gamma in (1.0, 1 / 3):
        torch.testing.assert_close(ACBlock(conv, copy.deepcopy(norm), gamma=gamma, init="single")(x), expected)
    assert not torch.allclose(ACBlock(conv, norm)(x), expected, atol=0.1)


def test_an_unknown_init_is_refused() -> None:
    with pytest.raises(InputError, match=r'"default" or "single", got \'zero\''):
        ACBlock(nn.Conv2d(4, 4, 3), init="zero")
