import pytest
import torch
import torch.nn.functional as F

from backpass.models import create_model
from backpass.models.xception import SeparableConv2d, XceptionBlock


def residual(block, activated):
    """Separable conv and BN again and again, ReLUs between, as the in-place original computes them."""
    layers = list(block.residual)
    out = activated
    for layer in layers:
        if isinstance(layer, SeparableConv2d):
            out = F.conv2d(out, layer.depthwise.weight, padding=1, groups=out.shape[1])
            out = torch.einsum("oi,nihw->nohw", layer.pointwise.weight[:, :, 0, 0], out)
        else:
            out = layer(out)
    return out


@pytest.mark.parametrize("pool_stride", [None, 1, 2])
def test_shortcut_sees_the_activated_input(pool_stride, in_float64):
    widths = (4, 4, 4) if pool_stride is None else (6, 6)
    block = in_float64(XceptionBlock(4, widths, pool_stride))
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    assert (x < 0).any()
    before = x.clone()
    activated = x.clamp(min=0)
    expected = residual(block, activated) + block.shortcut(activated)
    torch.testing.assert_close(block(x), expected)
    assert torch.equal(x, before)
    assert not torch.allclose(expected, residual(block, activated) + block.shortcut(x))


def test_raw_shortcut_sees_the_raw_input(in_float64):
    block = in_float64(XceptionBlock(4, (6, 6), pool_stride=2, raw_shortcut=True))
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(block(x), residual(block, x.clamp(min=0)) + block.shortcut(x))


def test_equals_a_block_with_an_in_place_relu(in_float64):
    block = in_float64(XceptionBlock(4, (4, 4, 4), pool_stride=None))
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    shared = x.clone()
    out = block.residual(F.relu_(shared))  # changes `shared`, which the shortcut reads next
    torch.testing.assert_close(block(x), out + shared)


def test_the_layout():
    with torch.device("meta"):
        blocks = create_model("xception").blocks
        sides = [32]
        x = torch.empty(1, 64, 32, 32)
        for block in blocks:
            x = block(x)
            sides.append(x.shape[-1])
    assert sides == [32, 16, 8, *[8] * 9, 4]
    assert [block.raw_shortcut for block in blocks] == [False] * 11 + [True]


def test_stem_and_exit_step_by_step(in_float64):
    model = in_float64(create_model("xception", num_classes=4))
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    conv1, bn1, _, conv2, bn2, _ = model.stem
    out = bn1(conv1(x)).clamp(min=0)
    out = bn2(conv2(out)).clamp(min=0)
    out = model.blocks(out)
    sep1, bn1, _, sep2, bn2 = model.last
    out = bn1(sep1(out)).clamp(min=0)
    out = bn2(sep2(out)).clamp(min=0)
    out = out.flatten(2).mean(2)
    torch.testing.assert_close(model(x), out @ model.fc.weight.T + model.fc.bias)
