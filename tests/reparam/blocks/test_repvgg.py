import pytest
from torch import nn

from backpass.errors import InputError
from backpass.reparam import RepVGGBlock


@pytest.mark.parametrize(
    ("conv", "names"),
    [
        (nn.Conv2d(4, 4, 3, padding=1), ["kxk", "1x1", "id"]),
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4), ["kxk", "1x1", "id"]),
        (nn.Conv2d(4, 4, 3, stride=2, padding=1), ["kxk", "1x1"]),
        (nn.Conv2d(4, 8, 3, padding=1), ["kxk", "1x1"]),
    ],
)
def test_the_identity_branch_is_there_where_shapes_allow(conv: nn.Conv2d, names: list[str]) -> None:
    assert list(RepVGGBlock(conv).branches) == names


def test_random_init_draws_gamma_around_a_tenth_and_beta_around_zero() -> None:
    block = RepVGGBlock(nn.Conv2d(400, 400, 3, padding=1, groups=400), init="random")
    for _, branch in block.items():
        assert branch.norm.weight.mean().item() == pytest.approx(0.1, abs=0.02)
        assert branch.norm.weight.std().item() == pytest.approx(0.1, abs=0.02)
        assert branch.norm.bias.mean().item() == pytest.approx(0.0, abs=0.02)
        assert branch.norm.bias.std().item() == pytest.approx(0.1, abs=0.02)
    with pytest.raises(InputError, match=r"got 'timm'"):
        RepVGGBlock(nn.Conv2d(4, 4, 3, padding=1), init="timm")
