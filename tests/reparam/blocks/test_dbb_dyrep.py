import pytest
from torch import nn

from backpass.errors import InputError
from backpass.reparam import DyRepBlock
from backpass.reparam.blocks.dbb_dyrep import DYREP_BRANCHES

DENSE = nn.Conv2d(4, 6, 3, padding=1, groups=2)


@pytest.mark.parametrize(
    ("conv", "names"),
    [
        (nn.Conv2d(4, 4, 3, padding=1), list(DYREP_BRANCHES)),
        (nn.Conv2d(4, 6, 3, padding=1), ["1x1", "1x1_kxk", "1x1_avg", "kxk", "1xk", "kx1"]),
        (nn.Conv2d(4, 4, 3, padding=1, stride=2), ["1x1", "1x1_kxk", "1x1_avg", "kxk", "1xk", "kx1"]),
        (nn.Conv2d(4, 4, 3, padding=0), ["1x1_kxk", "1x1_avg", "kxk"]),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), list(DYREP_BRANCHES)),
        (nn.Conv2d(4, 4, 3, padding=2, groups=4), ["1x1_kxk", "kxk"]),
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2), ["1x1", "1x1_kxk", "kxk", "1xk", "kx1", "id"]),
    ],
)
def test_the_dyrep_block_leaves_out_what_does_not_fit(conv: nn.Conv2d, names: list[str]) -> None:
    assert list(DyRepBlock(conv, branches=DYREP_BRANCHES).branches) == names


def test_the_dyrep_block_of_the_tables_has_four_branches_and_a_bias() -> None:
    block = DyRepBlock(DENSE)
    assert list(block.branches) == ["1x1", "1x1_kxk", "1x1_avg", "kxk"]
    assert block.main.conv.bias is DENSE.bias
    assert DyRepBlock(nn.Conv2d(4, 4, 3, bias=False)).main.conv.bias is not None


@pytest.mark.parametrize("branches", [["1x1", "3x3"], ["1x1"], []])
def test_unknown_or_missing_branches_are_refused(branches: list[str]) -> None:
    with pytest.raises(InputError, match=r"names from 1x1, .*, id, kxk among them, got \["):
        DyRepBlock(DENSE, branches=branches)
