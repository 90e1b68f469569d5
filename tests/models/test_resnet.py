import pytest
import torch
from torch import nn

from backpass.models import create_model


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_equals_torchvision_with_a_cifar_stem(name, in_float64):
    models = pytest.importorskip("torchvision.models")
    model = in_float64(create_model(name, num_classes=5))
    oracle = getattr(models, name)(num_classes=5)
    oracle.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    oracle.maxpool = nn.Identity()
    oracle.double().eval().load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(2, 3, 12, 10, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), oracle(x))


def test_the_bottleneck_strides_in_its_3x3_conv():
    with torch.device("meta"):
        block = create_model("resnet50").layer2[0]
    assert (block.conv1.stride, block.conv2.stride, block.conv3.stride) == ((1, 1), (2, 2), (1, 1))
    assert block.downsample[0].stride == (2, 2)


def test_the_map_is_halved_three_times():
    with torch.device("meta"):
        model = create_model("resnet18")
        x = model.conv1(torch.empty(1, 3, 32, 32))
        sides = [x.shape[-1]]
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
            x = stage(x)
            sides.append(x.shape[-1])
    assert sides == [32, 32, 16, 8, 4]
