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
