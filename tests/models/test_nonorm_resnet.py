import pytest
import torch
from torch import nn

from backpass.models import create_model


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_nonorm_equals_torchvision_with_identities(name):
    models = pytest.importorskip("torchvision.models")
    model = create_model(f"nonorm_{name}", num_classes=5).double().eval()
    oracle = getattr(models, name)(num_classes=5, norm_layer=lambda channels: nn.Identity()).double().eval()
    oracle.load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(1, 3, 40, 36, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), oracle(x))


def test_nonorm_initialisation():
    model = create_model("nonorm_resnet18")
    conv = model.layer4[1].conv2
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
