import pytest
import torch
from torch import nn

from backpass.errors import InputError
from backpass.reparam import DiverseBranchBlock, DyRepBlock
from backpass.reparam.branches import BatchNormAndPad
from backpass.reparam.dbb import DYREP_BRANCHES
from reference.reparam_cases import images, randomise

DENSE, DEPTHWISE = nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.Conv2d(4, 4, 3, padding=1, groups=4)


def test_the_authors_block_has_its_branches() -> None:
    dense, depthwise = DiverseBranchBlock(DENSE), DiverseBranchBlock(DEPTHWISE)
    assert list(dense.branches) == ["kxk", "1x1", "1x1_kxk", "1x1_avg"]
    assert list(depthwise.branches) == ["kxk", "1x1_kxk", "1x1_avg"]
    assert dense.branches["1x1_kxk"].pointwise.weight.shape == (4, 2, 1, 1)
    assert depthwise.branches["1x1_kxk"].pointwise.weight.shape == (8, 1, 1, 1)
    assert depthwise.branches["1x1_avg"].pointwise is None


def test_the_inner_pointwise_starts_as_the_identity_and_follows_the_dtype() -> None:
    pointwise = DiverseBranchBlock(DENSE).branches["1x1_kxk"].pointwise
    x = images(2, 4, 3, 3)
    assert torch.equal(pointwise(x), x)
    assert "identity" not in pointwise.state_dict()
    assert pointwise.half()(x.half()).dtype == torch.float16
    with torch.no_grad():
        pointwise.weight[0, 1] = 2.0
    expected = x.half().clone()
    expected[:, 0] += 2 * x.half()[:, 1]
    torch.testing.assert_close(pointwise(x.half()), expected)


def test_single_init_keeps_the_function() -> None:
    conv, norm = nn.Conv2d(4, 6, 3, padding=1).eval(), randomise(nn.BatchNorm2d(6)).eval()
    x = images(2, 4, 5, 5)
    expected = norm(conv(x))
    torch.testing.assert_close(DiverseBranchBlock(conv, norm, init="single")(x), expected)
    assert not torch.allclose(DiverseBranchBlock(conv, norm)(x), expected, atol=0.1)


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


def test_the_border_follows_the_running_statistics_of_this_step_without_gradient() -> None:
    layer = BatchNormAndPad(randomise(nn.BatchNorm2d(3)), (1, 2)).double()
    x = images(4, 3, 5, 6).double().requires_grad_()
    out = layer.train()(x)
    norm = layer.norm
    border = norm.bias - norm.running_mean * norm.weight / torch.sqrt(norm.running_var + norm.eps)
    assert out.shape == (4, 3, 7, 10)
    edges = torch.ones(7, 10, dtype=torch.bool)
    edges[1:-1, 2:-2] = False
    torch.testing.assert_close(out[:, :, edges], border.view(1, 3, 1).expand(4, 3, int(edges.sum())))
    out[:, :, edges].sum().backward()
    assert not x.grad.any()
    assert not norm.weight.grad.any()
    out = layer(x)
    out.square().sum().backward()
    assert x.grad.any()
