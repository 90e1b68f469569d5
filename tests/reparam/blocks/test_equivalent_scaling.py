import copy
import math

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
from backpass.reparam.dyrep.growth import grow
from reference.reparam_cases import images, randomise

STEPS = 30
LR = 0.01
TINY = 1e-100  # Adam's epsilon, which is outside the equality


def hand_over(block: ReparamBlock) -> None:
    """Freeze every normalisation, so that each branch keeps one constant factor."""
    block.eval()
    for _, branch in block.items():
        branch.norm.requires_grad_(False)


def train_branches(block: ReparamBlock, x: Tensor, optimizer_options: dict, kind: type = torch.optim.SGD) -> Tensor:
    optimizer = kind([p for p in block.parameters() if p.requires_grad], **optimizer_options)
    for _ in range(STEPS):
        optimizer.zero_grad()
        block(x).square().mean().backward()
        optimizer.step()
    return block.fused_kernel_bias(dtype=torch.float64)[0].detach()


def split(block: ReparamBlock) -> tuple[Tensor, Tensor, Tensor]:
    """The part of the fused kernel that is trained, the fixed identity, and the bias."""
    kernel, bias = (tensor.detach() for tensor in block.fused_kernel_bias(dtype=torch.float64))
    # The identity branch has no kernel to train, so it stays outside the trained kernel.
    trained = block.fused_kernel_bias(without=["id"], dtype=torch.float64)[0].detach()
    return trained.clone().requires_grad_(), kernel - trained, bias


def loss(block: ReparamBlock, kernel: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return F.conv2d(x, kernel, bias, padding=block.geometry.padding).square().mean()


def train_one_kernel(
    block: ReparamBlock, scaling: Tensor, x: Tensor, optimizer_options: dict, penalty: float = 0.0
) -> Tensor:
    """The same function as one convolution, whose gradient is scaled tap by tap before each step."""
    trained, fixed, bias = split(block)
    optimizer = torch.optim.SGD([trained], **optimizer_options)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (loss(block, trained + fixed, bias, x) + penalty / 2 * trained.square().sum()).backward()
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


def frozen(kind: type[ReparamBlock]) -> ReparamBlock:
    """A block whose branches have factors of both signs, one for each output channel."""
    block = randomise(kind(nn.Conv2d(3, 3, 3, padding=1, bias=False))).double()
    hand_over(block)
    return block


@pytest.mark.parametrize("kind", [ACBlock, RepVGGBlock])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.3},
        {"momentum": 0.9, "weight_decay": 0.1},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ],
)
def test_constant_branch_factors_enter_squared(kind: type[ReparamBlock], options: dict) -> None:
    block = frozen(kind)
    x = images(2, 3, 5, 6).double()
    options = {"lr": 0.01, **options}
    scaling = equivalent_scaling(block, branch_scales(block))
    assert scaling.shape == (3, 1, 3, 3)
    expected = train_one_kernel(copy.deepcopy(block), scaling, x, options)
    unscaled = train_one_kernel(copy.deepcopy(block), equivalent_scaling(block), x, options)
    actual = train_branches(block, x, options)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)
    assert (actual - unscaled).abs().max() > 1e-3


def test_weight_decay_must_stay_unscaled_and_off_the_identity() -> None:
    x = images(2, 3, 5, 6).double()
    decay, options = 0.3, {"lr": 0.01, "momentum": 0.9}
    block = frozen(RepVGGBlock)
    scaling = equivalent_scaling(block, branch_scales(block))
    exact = train_one_kernel(copy.deepcopy(block), scaling, x, options | {"weight_decay": decay})
    in_the_loss = train_one_kernel(copy.deepcopy(block), scaling, x, options, penalty=decay)
    kernel, bias = (tensor.detach() for tensor in block.fused_kernel_bias(dtype=torch.float64))
    whole = kernel.clone().requires_grad_()
    optimizer = torch.optim.SGD([whole], **options, weight_decay=decay)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(block, whole, bias, x).backward()
        whole.grad.mul_(scaling)
        optimizer.step()
    actual = train_branches(block, x, options | {"weight_decay": decay})
    torch.testing.assert_close(actual, exact, rtol=1e-12, atol=1e-13)
    assert (actual - in_the_loss).abs().max() > 1e-2
    assert (actual - whole.detach()).abs().max() > 1e-2


def adam_one_kernel(
    block: ReparamBlock,
    x: Tensor,
    *,
    update: Tensor | float = 1.0,
    gradient: Tensor | float = 1.0,
    decay: float = 0.0,
    scaled_decay: bool = False,
    eps: float = TINY,
) -> Tensor:
    """One convolution trained with AdamW, whose update or gradient is scaled tap by tap."""
    trained, fixed, bias = split(block)
    optimizer = torch.optim.AdamW([trained], lr=LR, eps=eps, weight_decay=decay if scaled_decay else 0.0)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(block, trained + fixed, bias, x).backward()
        trained.grad.mul_(gradient)
        before = trained.detach().clone()
        optimizer.step()
        kept = 1.0 if scaled_decay else 1.0 - LR * decay
        with torch.no_grad():
            trained.copy_(kept * before + update * (trained - before))
    return (trained + fixed).detach()


@pytest.mark.parametrize("kind", [ACBlock, RepVGGBlock])
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_under_adamw_branch_factors_scale_the_update_by_their_size(kind: type[ReparamBlock], decay: float) -> None:
    block = frozen(kind)
    x = images(2, 3, 5, 6).double()
    scaling = equivalent_scaling(block, branch_scales(block), optimizer="adam")
    expected = adam_one_kernel(copy.deepcopy(block), x, update=scaling, decay=decay)
    squares = adam_one_kernel(
        copy.deepcopy(block), x, update=equivalent_scaling(block, branch_scales(block)), decay=decay
    )
    start = block.fused_kernel_bias(dtype=torch.float64)[0].detach()
    actual = train_branches(block, x, {"lr": LR, "eps": TINY, "weight_decay": decay}, torch.optim.AdamW)
    assert (actual - start).abs().max() > 0.05
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)
    assert (actual - squares).abs().max() > 1e-2


def test_under_adamw_a_scaled_gradient_has_no_effect() -> None:
    block = frozen(ACBlock)
    x = images(2, 3, 5, 6).double()
    plain = adam_one_kernel(block, x)
    for optimizer in ("sgd", "adam"):
        factor = equivalent_scaling(block, branch_scales(block), optimizer=optimizer)
        scaled = adam_one_kernel(block, x, gradient=factor)
        torch.testing.assert_close(scaled, plain, rtol=1e-9, atol=1e-10)
    branches = train_branches(block, x, {"lr": LR, "eps": TINY, "weight_decay": 0.0}, torch.optim.AdamW)
    assert (branches - plain).abs().max() > 1e-2


def test_under_adamw_a_scaled_decay_a_large_epsilon_and_a_decay_in_the_gradient_break_the_equality() -> None:
    x = images(2, 3, 5, 6).double()
    block = frozen(ACBlock)
    scaling = equivalent_scaling(block, branch_scales(block), optimizer="adam")

    def deviation(single: Tensor, kind: type = torch.optim.AdamW, **options: float) -> float:
        branches = train_branches(copy.deepcopy(block), x, {"lr": LR, **options}, kind)
        return (branches - single).abs().max().item()

    scaled_decay = adam_one_kernel(block, x, update=scaling, decay=0.5, scaled_decay=True)
    assert deviation(scaled_decay, eps=TINY, weight_decay=0.5) > 1e-2
    for eps, low, high in ((1e-8, 0.0, 1e-4), (1e-1, 1e-3, math.inf)):
        single = adam_one_kernel(block, x, update=scaling, eps=eps)
        assert low < deviation(single, eps=eps, weight_decay=0.0) < high
    decayed = adam_one_kernel(block, x, update=scaling, decay=0.5)
    assert deviation(decayed, torch.optim.Adam, eps=TINY, weight_decay=0.5) > 1e-2


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
    scales["kx1"] = -2.0
    adam = equivalent_scaling(ACBlock(conv), scales, optimizer="adam")
    assert adam[2, 0].tolist() == [[1, 3, 1], [4, 6, 4], [1, 3, 1]]


def test_blocks_outside_the_lemma_are_refused() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    with pytest.raises(InputError, match=r"got a dbb block whose branches 1x1_kxk, 1x1_avg chain two layers"):
        equivalent_scaling(DiverseBranchBlock(conv))
    parallel = DyRepBlock(conv, branches=["1x1", "kxk", "1xk", "kx1", "id"])
    assert equivalent_scaling(parallel).tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
    grow(nn.Sequential(parallel), "0.branches.kxk.conv", generator=torch.Generator(), prepare=lambda block: None)
    with pytest.raises(InputError, match=r"got a dbb_dyrep block whose branches kxk chain two layers or hold a block"):
        equivalent_scaling(parallel)
    with pytest.raises(InputError, match=r"scales of the branches kxk, kx1, 1xk, got 3x3"):
        equivalent_scaling(ACBlock(conv), {"3x3": 1.0})
    with pytest.raises(InputError, match=r'expected optimizer to be "sgd" or "adam", got \'lion\''):
        equivalent_scaling(ACBlock(conv), optimizer="lion")
    with pytest.raises(InputError, match=r"branch kx1 to be a number or of shape \(4,\), got shape \(3,\)"):
        equivalent_scaling(ACBlock(conv), {"kx1": torch.ones(3)})
