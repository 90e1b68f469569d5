import pytest
import torch

from backpass.models import create_model
from backpass.models.mobilenetv2 import InvertedResidual


@pytest.mark.parametrize(
    ("channels", "stride", "expansion", "adds"),
    [((4, 4), 1, 6, True), ((4, 4), 2, 6, False), ((4, 6), 1, 6, False), ((4, 4), 1, 1, True)],
)
def test_the_input_is_added_where_the_shape_is_kept(channels, stride, expansion, adds, in_float64):
    block = in_float64(InvertedResidual(*channels, stride, expansion))
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    expand, bn1, _, depthwise, bn2, _, project, bn3 = block.residual
    bn1.weight.data *= 20  # so that ReLU6 has something to cut
    bn2.weight.data *= 20
    assert expand.out_channels == depthwise.groups == 4 * expansion
    out = bn1(expand(x)).clamp(0, 6)
    out = bn2(depthwise(out)).clamp(0, 6)
    out = bn3(project(out))
    torch.testing.assert_close(block(x), out + x if adds else out)


def test_sides_of_the_map():
    with torch.device("meta"):
        model = create_model("mobilenetv2")
        x = model.stem(torch.empty(1, 3, 32, 32))
        assert x.shape == (1, 32, 34, 34)
        assert model.last(model.blocks(x)).shape == (1, 1280, 5, 5)


def test_stem_and_head_step_by_step(in_float64):
    model = in_float64(create_model("mobilenetv2", num_classes=4))
    model.stem[1].weight.data *= 20  # so that ReLU6 has something to cut
    model.last[1].weight.data *= 20
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    conv, bn, _ = model.stem
    out = model.blocks(bn(conv(x)).clamp(0, 6))
    conv, bn, _ = model.last
    out = bn(conv(out)).clamp(0, 6).flatten(2).mean(2)
    torch.testing.assert_close(model(x), out @ model.classifier.weight[:, :, 0, 0].T + model.classifier.bias)
