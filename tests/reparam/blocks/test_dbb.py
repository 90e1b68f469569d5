import torch
from torch import nn

from backpass.reparam import DiverseBranchBlock
from reference.reparam_cases import images, randomise

DENSE, DEPTHWISE = nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.Conv2d(4, 4, 3, padding=1, groups=4)


def test_the_authors_block_has_its_branches() -> None:
    dense, depthwise = DiverseBranchBlock(DENSE), DiverseBranchBlock(DEPTHWISE)
    assert list(dense.branches) == ["kxk", "1x1", "1x1_kxk", "1x1_avg"]
    assert list(depthwise.branches) == ["kxk", "1x1_kxk", "1x1_avg"]
    assert dense.branches["1x1_kxk"].pointwise.weight.shape == (4, 2, 1, 1)
    assert depthwise.branches["1x1_kxk"].pointwise.weight.shape == (8, 1, 1, 1)
    assert depthwise.branches["1x1_avg"].pointwise is None


def test_single_init_keeps_the_function() -> None:
    conv, norm = nn.Conv2d(4, 6, 3, padding=1).eval(), randomise(nn.BatchNorm2d(6)).eval()
    x = images(2, 4, 5, 5)
    expected = norm(conv(x))
    torch.testing.assert_close(DiverseBranchBlock(conv, norm, init="single")(x), expected)
    assert not torch.allclose(DiverseBranchBlock(conv, norm)(x), expected, atol=0.1)


def test_torch_fx_can_trace_it() -> None:
    block = DiverseBranchBlock(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)).eval()
    x = images(2, 4, 5, 5)
    torch.testing.assert_close(torch.fx.symbolic_trace(block)(x), block(x))
