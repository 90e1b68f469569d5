import pytest
import torch
import torch.nn.functional as F

from backpass.models import create_model
from backpass.models.preact_resnet import PreActBlock


def normalized(bn, x):
    shape = (1, -1, 1, 1)
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    return (x - bn.running_mean.view(shape)) * scale.view(shape) + bn.bias.view(shape)


@pytest.mark.parametrize(("channels", "stride"), [((3, 3), 1), ((3, 5), 1), ((3, 3), 2), ((3, 6), 2)])
def test_block_step_by_step(channels, stride, in_float64):
    block = in_float64(PreActBlock(*channels, stride))
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    out = normalized(block.bn1, x).clamp(min=0)
    out = F.conv2d(out, block.conv1.weight, block.conv1.bias, stride, padding=1)
    out = normalized(block.bn2, out).clamp(min=0)
    out = F.conv2d(out, block.conv2.weight, block.conv2.bias, padding=1)
    if channels == (3, 3) and stride == 1:
        shortcut = x
    else:  # the raw input, one pixel in `stride`, mixed by a matrix
        matrix = block.downsample.weight[:, :, 0, 0]
        picked = x[:, :, ::stride, ::stride]
        shortcut = torch.einsum("oi,nihw->nohw", matrix, picked) + block.downsample.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(block(x), out + shortcut)


def test_nothing_follows_the_last_block():
    model = create_model("preactresnet18").eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        out = torch.relu(model.bn1(model.conv1(x)))
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
            out = stage(out)
        assert (out < 0).any()
        torch.testing.assert_close(model(x), model.fc(out.mean((2, 3))))
