import copy
import math

import pytest
import torch
from torch import Tensor, nn

from backpass.reparam import ACBlock, DyRepBlock
from backpass.reparam.blocks.dbb_dyrep import DYREP_BRANCHES
from backpass.reparam.dyrep.growth import eligible_convs, grow
from backpass.reparam.dyrep.recalibration import recalibrate
from reference.reparam_cases import Residual, images, randomise

X = images(6, 3, 9, 9)


def grown(model: nn.Module, name: str, seed: int = 0) -> DyRepBlock:
    return grow(
        model,
        name,
        generator=torch.Generator().manual_seed(seed),
        prepare=lambda block: recalibrate(model, [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)], [X]),
    )


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


class Stack(nn.Module):
    """Convolutions of every kind that can grow, called one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 7, stride=2, padding=3, bias=False)
        self.same = nn.Conv2d(4, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False)
        self.grouped = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2, bias=False)
        self.unpadded = nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


def stack() -> nn.Module:
    return Stack()


@pytest.mark.parametrize("name", ["stem", "same", "depthwise", "grouped", "dilated", "unpadded"])
def test_growing_keeps_the_function_in_eval_mode(name: str) -> None:
    model = randomise(stack()).eval()
    expected = model(X)
    conv = copy.deepcopy(model.get_submodule(name))
    block = grown(model, name)
    assert model.get_submodule(name) is block
    assert len(block.branches) >= 3
    assert relative(model(X), expected) < 1e-5
    kernel, bias = block.fused_kernel_bias()
    assert relative(kernel, conv.weight) < 1e-5
    torch.testing.assert_close(bias, torch.zeros_like(bias) if conv.bias is None else conv.bias, rtol=1e-4, atol=1e-5)
    # The new branches do something: the function is kept by the kxk branch and not by their being dead.
    others = block.fused_kernel_bias(without=["kxk"])[0]
    assert relative(kernel - others, conv.weight) > 1e-4


def test_growing_in_train_mode_is_hidden_only_by_a_following_normalisation() -> None:
    model = randomise(Residual()).train()
    with torch.no_grad():
        raw, out = model.conv2(images(6, 8, 5, 5)), model(X)
        grown(model, "conv2")
        raw_change, change = relative(model.conv2(images(6, 8, 5, 5)), raw), relative(model(X), out)
    assert raw_change > 0.05
    assert change < 0.05


def test_new_branches_are_drawn_as_in_the_paper() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1))
    block = grown(model, "1")
    assert list(block.branches) == list(DYREP_BRANCHES)
    for name, branch in block.items():
        assert branch.norm.weight.unique().tolist() == [1.0 if name == "kxk" else torch.tensor(0.01).item()], name
        assert not branch.norm.bias.any()
        for layer in branch.modules():
            if isinstance(layer, nn.Conv2d) and name != "kxk":
                std = math.sqrt(2 / (layer.kernel_size[0] * layer.kernel_size[1] * 64))
                assert layer.weight.std().item() == pytest.approx(std, rel=0.05), name
    assert block.branches["1x1_kxk"].pad.norm.weight.unique().tolist() == [1.0]
    norm = block.main.norm
    assert not norm.running_mean.any()
    assert norm.running_var.unique().tolist() == [1.0]
    assert block.branches["1x1"].norm.running_mean.any()


def test_growing_depends_on_its_generator_alone() -> None:
    def state(global_seed: int, seed: int) -> dict[str, Tensor]:
        torch.manual_seed(global_seed)
        model = copy.deepcopy(base)
        before = torch.get_rng_state()
        grown(model, "conv2", seed)
        assert torch.equal(torch.get_rng_state(), before)
        return model.state_dict()

    base = randomise(Residual())
    one, same, other = state(1, 0), state(2, 0), state(1, 1)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_the_old_bias_is_reused_and_the_old_kernel_left_alone() -> None:
    model = randomise(Residual())
    conv = model.conv2
    kernel = conv.weight.detach().clone()
    block = grown(model, "conv2")
    assert block.main.conv.bias is conv.bias
    assert block.main.conv.weight is not conv.weight
    assert torch.equal(conv.weight, kernel)
    assert block.had_bias


def test_blocks_grow_inside_blocks_but_no_deeper() -> None:
    model = randomise(Residual()).eval()
    expected = model(X)
    grown(model, "conv2")
    inside = [name for name in eligible_convs(model) if name.startswith("conv2.")]
    assert inside == ["conv2.branches.1x1_kxk.conv", "conv2.branches.kxk.conv"]
    for name in inside:
        grown(model, name)
    assert list(model.conv2.branches["1x1_kxk"].conv.branches) == ["1x1_kxk", "1x1_avg", "kxk"]
    assert relative(model(X), expected) < 1e-5
    assert list(eligible_convs(model)) == ["conv1"]


def test_only_square_odd_zero_padded_kernels_are_eligible() -> None:
    model = nn.ModuleDict({
        "stem": nn.Conv2d(3, 4, 7),
        "point": nn.Conv2d(4, 4, 1),
        "flat": nn.Conv2d(4, 4, (1, 3)),
        "even": nn.Conv2d(4, 4, 2),
        "reflect": nn.Conv2d(4, 4, 3, padding_mode="reflect"),
        "lopsided": nn.Conv2d(4, 4, 4, padding="same"),
        "acb": ACBlock(nn.Conv2d(4, 4, 3)),
    })  # fmt: skip
    model["again"] = model["stem"]
    assert list(eligible_convs(model)) == ["stem", "acb.branches.kxk.conv"]


def test_frozen_convolutions_are_not_eligible() -> None:
    model = Residual()
    model.conv1.requires_grad_(False)
    assert list(eligible_convs(model)) == ["conv2"]
