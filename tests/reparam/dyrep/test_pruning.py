import pytest
import torch
from torch import Tensor, nn

from backpass.reparam import DyRep, DyRepBlock
from backpass.reparam.blocks.dbb_dyrep import DYREP_BRANCHES
from backpass.reparam.dyrep.pruning import branch_weights, prune, weak_branches
from reference.reparam_cases import Residual, images, randomise

X = images(6, 3, 9, 9)


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def test_weights_are_relative_gammas() -> None:
    block = DyRepBlock(nn.Conv2d(2, 2, 3, padding=1), branches=["kxk", "1x1", "1xk"])
    for name, gamma in {"kxk": [1.0, -3.0], "1x1": [0.5, -0.5], "1xk": [0.0, 0.0]}.items():
        with torch.no_grad():
            block.branches[name].norm.weight.copy_(torch.tensor(gamma))
    assert branch_weights(block) == {"1x1": 0.25, "1xk": 0.0}


@pytest.mark.parametrize(
    ("weights", "weak"),
    [
        ({"a": 0.01, "b": 0.01, "c": 0.01}, []),  # freshly grown: no spread
        ({"a": 0.05, "b": 0.2}, ["a"]),
        ({"a": 0.12, "b": 0.5}, []),  # below the mean, but not below 0.1
        ({"a": 0.07, "b": 0.09, "c": 0.03}, ["c"]),  # spread 0.031, mean 0.063
        ({"a": 0.05, "b": 0.07}, []),  # spread 0.014
        ({"a": 0.05}, []),
        ({}, []),
    ],
)
def test_weak_branches_of_known_weights(weights: dict[str, float], weak: list[str]) -> None:
    assert weak_branches(weights) == weak


@pytest.mark.parametrize("names", [["1x1"], ["1x1_kxk", "id", "1x1_avg"]])
def test_pruning_keeps_the_function_in_eval_mode(names: list[str]) -> None:
    model = nn.Sequential(randomise(DyRepBlock(nn.Conv2d(3, 3, 3, padding=1), branches=DYREP_BRANCHES))).eval()
    block, expected = model[0], model(X)
    kernel = block.main.conv.weight
    prune(block, names)
    assert model[0] is block
    assert set(block.branches) == set(DYREP_BRANCHES) - set(names)
    assert relative(model(X), expected) < 1e-5
    assert block.main.conv.weight is kernel
    norm = block.main.norm
    assert [t.unique().tolist() for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)] == [
        [1.0], [0.0], [0.0], [1.0],
    ]  # fmt: skip


def test_pruning_around_a_nested_block_keeps_it_and_the_function() -> None:
    block = DyRepBlock(nn.Conv2d(3, 3, 3, padding=1), branches=DYREP_BRANCHES)
    block.main.conv = DyRepBlock(block.main.conv, branches=["kxk", "1xk", "id"])
    model = nn.Sequential(randomise(block)).eval()
    expected, inner = model(X), block.main.conv
    row = inner.branches["1xk"].conv.weight.detach().clone()
    prune(block, ["1x1", "kx1"])
    assert block.main.conv is inner
    assert torch.equal(inner.branches["1xk"].conv.weight, row)
    assert relative(model(X), expected) < 1e-5


def test_a_block_inside_a_cut_branch_is_neither_pruned_nor_reported() -> None:
    torch.manual_seed(0)
    model = Residual()
    model.conv2 = DyRepBlock(model.conv2, branches=DYREP_BRANCHES)
    outer = model.conv2.branches
    inner = outer["1x1_kxk"].conv = DyRepBlock(outer["1x1_kxk"].conv, branches=["1x1_kxk", "1x1_avg", "kxk"])
    dyrep = DyRep(model, torch.optim.SGD(model.parameters(), lr=0.1), metric="snip")
    with torch.no_grad():
        for name, branch in [*outer.items(), *inner.branches.items()]:
            branch.norm.weight.fill_({"kxk": 1.0, "1x1": 0.5, "1x1_avg": 0.5}.get(name, 0.01))
    model(X).square().sum().backward()
    dyrep.record()
    assert dyrep.adjust([X]).cut == {"conv2": ["1x1_kxk", "1xk", "kx1", "id"]}
    assert set(inner.branches) == {"1x1_kxk", "1x1_avg", "kxk"}
