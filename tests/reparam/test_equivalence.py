import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backpass.errors import InputError
from backpass.reparam import (
    ACBlock,
    DiverseBranchBlock,
    DyRepBlock,
    ReparamBlock,
    RepVGGBlock,
    branch_scales,
    equivalent_scaling,
)
from reference.reparam_cases import images, randomise

STEPS = 30


def hand_over(block: ReparamBlock) -> None:
    """Freeze every normalisation, so that each branch keeps one constant factor."""
    block.eval()
    for _, branch in block.items():
        branch.norm.requires_grad_(False)


def train_branches(block: ReparamBlock, x: Tensor, optimizer_options: dict) -> Tensor:
    optimizer = torch.optim.SGD([p for p in block.parameters() if p.requires_grad], **optimizer_options)
    for _ in range(STEPS):
        optimizer.zero_grad()
        block(x).square().mean().backward()
        optimizer.step()
    return block.fused_kernel_bias(dtype=torch.float64)[0].detach()


def train_one_kernel(block: ReparamBlock, scaling: Tensor, x: Tensor, optimizer_options: dict) -> Tensor:
    """The same function as one convolution, whose gradient is scaled tap by tap before each step."""
    kernel, bias = (tensor.detach() for tensor in block.fused_kernel_bias(dtype=torch.float64))
    # The identity branch has no kernel to train, so it stays outside the trained kernel.
    fixed = kernel - block.fused_kernel_bias(without=["id"], dtype=torch.float64)[0].detach()
    trained = (kernel - fixed).requires_grad_()
    optimizer = torch.optim.SGD([trained], **optimizer_options)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.conv2d(x, trained + fixed, bias, padding=block.geometry.padding).square().mean().backward()
        trained.grad.mul_(scaling)
        optimizer.step()
    return (trained + fixed).detach()


@pytest.mark.parametrize("kind", [ACBlock, RepVGGBlock])
@pytest.mark.parametrize(
    "options",
    [{"momentum": 0.9, "weight_decay": 0.01}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}, {}],
)
def test_lemma_1_training_branches_equals_scaling_one_gradient(kind: type[ReparamBlock], options: dict) -> None:
    block = randomise(kind(nn.Conv2d(3, 3, 3, padding=1, bias=False))).double()
    for _, branch in block.items():
        # var = 1 - eps makes the branch factor gamma / sigma exactly gamma; 1 is the lemma without normalisation.
        nn.init.ones_(branch.norm.weight)
        nn.init.constant_(branch.norm.running_var, 1 - branch.norm.eps)
    hand_over(block)
    x = images(2, 3, 5, 6).double()
    options = {"lr": 0.05, **options}
    expected = train_one_kernel(copy.deepcopy(block), equivalent_scaling(block), x, options)
    start = block.fused_kernel_bias(dtype=torch.float64)[0].detach()
    actual = train_branches(block, x, options)
    assert (actual - start).abs().max() > 0.05
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)


def test_constant_branch_factors_enter_squared() -> None:
    block = randomise(ACBlock(nn.Conv2d(3, 3, 3, padding=1, bias=False))).double()
    hand_over(block)
    x = images(2, 3, 5, 6).double()
    options = {"lr": 0.02, "momentum": 0.9}
    scaling = equivalent_scaling(block, branch_scales(block))
    assert scaling.shape == (3, 1, 3, 3)
    expected = train_one_kernel(copy.deepcopy(block), scaling, x, options)
    unscaled = train_one_kernel(copy.deepcopy(block), equivalent_scaling(block), x, options)
    actual = train_branches(block, x, options)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)
    assert (actual - unscaled).abs().max() > 1e-3


def test_scalings_known_by_hand() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    acb = equivalent_scaling(ACBlock(conv))
    assert acb.tolist() == [[1, 2, 1], [2, 3, 2], [1, 2, 1]]
    torch.testing.assert_close(
        acb / acb.mean(), torch.tensor([[0.6, 1.2, 0.6], [1.2, 1.8, 1.2], [0.6, 1.2, 0.6]]).double()
    )
    assert equivalent_scaling(RepVGGBlock(conv)).tolist() == [[1, 1, 1], [1, 2, 1], [1, 1, 1]]
    scales = {"kx1": 2.0, "1xk": torch.tensor([0.0, 0.0, 3.0, 0.0])}
    assert equivalent_scaling(ACBlock(conv), scales)[2, 0].tolist() == [[1, 5, 1], [10, 14, 10], [1, 5, 1]]
    assert equivalent_scaling(ACBlock(conv), scales)[0, 0].tolist() == [[1, 5, 1], [1, 5, 1], [1, 5, 1]]


def test_blocks_outside_the_lemma_are_refused() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    with pytest.raises(InputError, match=r"branches 1x1_kxk, 1x1_avg of this dbb block chain two layers"):
        equivalent_scaling(DiverseBranchBlock(conv))
    parallel = DyRepBlock(conv, branches=["1x1", "kxk", "1xk", "kx1", "id"])
    assert equivalent_scaling(parallel).tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
    with pytest.raises(InputError, match=r"scales names 3x3, the block has kxk, kx1, 1xk"):
        equivalent_scaling(ACBlock(conv), {"3x3": 1.0})
    with pytest.raises(InputError, match=r"branch kx1 must be a number or of shape \(4,\), got shape \(3,\)"):
        equivalent_scaling(ACBlock(conv), {"kx1": torch.ones(3)})
