import pytest
import torch

from backpass.models import create_model
from backpass.models.pyramidnet import PyramidBlock


@pytest.mark.parametrize(("alpha", "first", "last"), [(48, 17, 64), (84, 18, 100), (270, 21, 286)])
def test_widths(alpha, first, last):
    with torch.device("meta"):
        model = create_model(f"pyramidnet110_a{alpha}")
    widths = [block.conv2.out_channels for block in model.blocks]
    assert (widths[0], widths[-1], len(widths)) == (first, last, 54)
    running = 16.0  # the published code adds alpha / 54 block by block
    for width in widths:
        running += alpha / 54
        assert width == round(running)
    assert [index for index, block in enumerate(model.blocks, start=1) if block.stride == 2] == [19, 37]


@pytest.mark.parametrize(("stride", "side"), [(1, 5), (2, 6), (2, 5)])
def test_block_step_by_step(stride, side, in_float64):
    block = in_float64(PyramidBlock(3, 5, stride))
    x = torch.randn(2, 3, side, side, dtype=torch.float64)
    out = block.bn2(block.conv1(block.bn1(x))).clamp(min=0)
    out = block.bn3(block.conv2(out))
    shortcut = torch.zeros_like(out)
    for row in range(out.shape[2]):
        for column in range(out.shape[3]):
            window = x[:, :, row * stride : (row + 1) * stride, column * stride : (column + 1) * stride]
            shortcut[:, :3, row, column] = window.mean((2, 3))
    torch.testing.assert_close(block(x), out + shortcut)


def test_stem_and_head_step_by_step(in_float64):
    model = in_float64(create_model("pyramidnet110_a48", num_classes=4))
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    out = model.bn1(model.conv1(x))
    assert (out < 0).any()  # no ReLU in the stem
    for block in model.blocks:
        out = block(out)
    out = model.bn2(out).clamp(min=0).flatten(2).mean(2)
    torch.testing.assert_close(model(x), out @ model.fc.weight.T + model.fc.bias)


def test_initialisation():
    conv = create_model("pyramidnet110_a48").blocks[-1].conv2
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
