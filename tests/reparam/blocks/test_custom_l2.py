import pytest
import torch
from torch import nn

from backpass.errors import InputError
from backpass.reparam import RepVGGBlock, custom_l2, custom_l2_kernels, custom_l2_loss
from reference.reparam_cases import randomise


def in_loops(block: RepVGGBlock) -> float:
    main, point = block.branches["kxk"], block.branches["1x1"]
    total = 0.0
    for o in range(3):
        t3, t1 = ((b.norm.weight[o] / torch.sqrt(b.norm.running_var[o] + b.norm.eps)).item() for b in (main, point))
        for i in range(2):
            for h in range(3):
                for w in range(3):
                    tap = main.conv.weight[o, i, h, w].item()
                    if (h, w) != (1, 1):
                        total += tap**2
                    elif t3 or t1:
                        total += (tap * t3 + point.conv.weight[o, i, 0, 0].item() * t1) ** 2 / (t3**2 + t1**2)
    return total


def test_custom_l2_equals_its_formula_in_loops() -> None:
    block = randomise(RepVGGBlock(nn.Conv2d(2, 3, 3, padding=1))).double()
    assert custom_l2(block).item() == pytest.approx(in_loops(block), rel=1e-12)


def test_channels_whose_gammas_are_zero_keep_loss_and_gradients_finite() -> None:
    block = randomise(RepVGGBlock(nn.Conv2d(2, 3, 3, padding=1))).double()
    with torch.no_grad():
        for name in ("kxk", "1x1"):
            block.branches[name].norm.weight[1] = 0.0
    loss = custom_l2(block)
    assert loss.item() == pytest.approx(in_loops(block), rel=1e-12)
    loss.backward()
    assert all(kernel.grad.isfinite().all() for kernel in custom_l2_kernels(block))
    assert not block.branches["1x1"].conv.weight.grad[1].any()


def test_custom_l2_reaches_kernels_and_not_normalisations() -> None:
    model = nn.Sequential(randomise(RepVGGBlock(nn.Conv2d(2, 3, 3, padding=1))), nn.Conv2d(3, 3, 3))
    loss = custom_l2_loss(model, weight_decay=0.1)
    torch.testing.assert_close(loss, 0.05 * custom_l2(model[0]))
    loss.backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {"0.branches.kxk.conv.weight", "0.branches.1x1.conv.weight"}
    assert {id(p) for p in custom_l2_kernels(model)} == {
        id(p) for name, p in model.named_parameters() if name in with_gradient
    }


def test_custom_l2_without_blocks_says_how_to_get_them() -> None:
    with pytest.raises(
        InputError, match=r'got Sequential without any; make them with reparameterize\(model, "repvgg"\)'
    ):
        custom_l2_loss(nn.Sequential(nn.Conv2d(2, 2, 3)), 1e-4)
