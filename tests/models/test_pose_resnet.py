import torch
import torch.nn.functional as F
from torch import nn

from backpass.models import create_model


def test_forward_step_by_step(in_float64):
    model = in_float64(create_model("pose_resnet18", num_classes=5))
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    maps = model.backbone.maxpool(F.relu(model.backbone.bn1(model.backbone.conv1(x))))
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        maps = model.backbone[stage](maps)
    assert maps.shape == (2, 512, 2, 3)
    for i in (0, 3, 6):
        deconv, bn = model.upsampling[i], model.upsampling[i + 1]
        maps = F.relu(bn(F.conv_transpose2d(maps, deconv.weight, stride=2, padding=1)))
    expected = F.conv2d(maps, model.head.weight, model.head.bias)
    assert expected.shape == (2, 5, 16, 24)
    torch.testing.assert_close(model(x), expected)


def test_initialisation_of_the_new_layers():
    model = create_model("pose_resnet18")
    weights = [m.weight for m in model.upsampling if isinstance(m, nn.ConvTranspose2d)]
    assert len(weights) == 3
    for weight in (*weights, model.head.weight):
        assert abs(weight.std().item() / 0.001 - 1) < 0.05
        assert abs(weight.mean().item()) < 1e-4
    assert (model.head.bias == 0).all()
    assert all(m.bias is None for m in model.upsampling if isinstance(m, nn.ConvTranspose2d))


def test_no_stage_is_dilated():
    with torch.device("meta"):
        model = create_model("pose_resnet50")
        assert model(torch.empty(1, 3, 256, 256)).shape == (1, 16, 64, 64)
    assert all(m.dilation == (1, 1) for m in model.modules() if isinstance(m, nn.Conv2d))


def test_the_backbone_has_the_names_of_the_classifier():
    classifier, model = create_model("timm/resnet50"), create_model("pose_resnet50")
    result = model.backbone.load_state_dict(classifier.state_dict(), strict=False)
    assert result.missing_keys == []
    assert result.unexpected_keys == ["fc.weight", "fc.bias"]
