import pytest
import torch
import torch.nn.functional as F
from torch import nn

from backpass.errors import InputError, MissingExtraError
from backpass.models import count_macs, count_parameters, create_model
from backpass.models.pspnet import PyramidPooling

FULL, HALF = "full", "half"


def dilations(model, stage):
    """Return the dilations of the 3x3 convs of a stage, checking that each keeps the size of its map."""
    convs = [m for m in model.backbone[stage].modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert all(conv.padding == conv.dilation and conv.stride == (1, 1) for conv in convs)
    return [conv.dilation[0] for conv in convs]


@pytest.mark.parametrize(
    ("name", "deep_stem", "parameters", "deployed", "giga_macs", "spatial_convs"),
    [
        ("pspnet18", False, 16_764_262, 16_169_043, 133.41, 19),
        ("pspnet18", True, 16_912_742, 16_317_523, 147.97, 21),
        ("pspnet34", False, 26_872_422, 26_277_203, 216.99, 35),
        ("pspnet34", True, 27_020_902, 26_425_683, 231.55, 37),
        ("pspnet50", False, 48_956_262, 46_591_571, 350.00, 19),
        ("pspnet50", True, 49_080_038, 46_715_347, 363.78, 21),
    ],
)
def test_cost_with_both_stems_and_without_the_auxiliary_head(
    name, deep_stem, parameters, deployed, giga_macs, spatial_convs
):
    with torch.device("meta"):
        model = create_model(name, deep_stem=deep_stem)
        bare = create_model(name, deep_stem=deep_stem, auxiliary=False)
    assert count_parameters(model) == parameters
    assert count_parameters(bare) == deployed
    assert count_macs(model, (3, 713, 713)) == count_macs(bare, (3, 713, 713))
    assert count_macs(model, (3, 713, 713)) / 1e9 == pytest.approx(giga_macs, abs=0.006)
    assert sum(isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1 for m in model.modules()) == spatial_convs


@pytest.mark.parametrize(
    ("name", "first_block", "layer3", "layer4"),
    [
        ("pspnet18", FULL, [2] * 4, [4] * 4),
        ("pspnet18", HALF, [1, 2, 2, 2], [2, 4, 4, 4]),
        ("pspnet34", FULL, [2] * 12, [4] * 6),
        ("pspnet34", HALF, [1] + [2] * 11, [2] + [4] * 5),
        ("pspnet50", FULL, [2] * 6, [4] * 3),
        ("pspnet50", HALF, [1] + [2] * 5, [2, 4, 4]),
    ],
)
def test_both_dilations_of_the_first_blocks(name, first_block, layer3, layer4):
    with torch.device("meta"):
        model = create_model(name, first_block=first_block)
        maps = model.backbone(torch.empty(1, 3, 65, 73))
    assert dilations(model, "layer3") == layer3
    assert dilations(model, "layer4") == layer4
    assert [m.shape[-2:] for m in maps] == [(9, 10)] * 2
    assert all(m.dilation == (1, 1) for m in model.backbone["layer2"].modules() if isinstance(m, nn.Conv2d))


def test_full_dilation_is_the_default_and_changes_the_output():
    full, half = create_model("pspnet18"), create_model("pspnet18", first_block=HALF)
    named = create_model("pspnet18", first_block=FULL)
    half.load_state_dict(full.state_dict())
    named.load_state_dict(full.state_dict())
    x = torch.randn(1, 3, 33, 33)
    with torch.no_grad():
        assert torch.equal(full.eval()(x), named.eval()(x))
        assert not torch.allclose(full(x), half.eval()(x))


def test_an_unknown_variant():
    with pytest.raises(InputError, match="'full' or 'half', got 'semseg'; choose"):
        create_model("pspnet18", first_block="semseg")


def test_the_auxiliary_head_is_for_training():
    model = create_model("pspnet18", num_classes=4)
    x = torch.randn(2, 3, 41, 33)
    logits, auxiliary = model.train()(x)
    assert logits.shape == auxiliary.shape == (2, 4, 41, 33)
    assert model.eval()(x).shape == (2, 4, 41, 33)
    logits, auxiliary = model.all_heads(x)
    torch.testing.assert_close(logits, model(x))
    assert not torch.allclose(auxiliary, logits)
    bare = create_model("pspnet18", num_classes=4, auxiliary=False)
    assert bare.train()(x).shape == (2, 4, 41, 33)
    assert len(bare.all_heads(x)) == 1


def test_forward_step_by_step(in_float64):
    model = in_float64(create_model("pspnet18", num_classes=4))
    x = torch.randn(2, 3, 33, 41, dtype=torch.float64)
    maps = model.backbone.maxpool(F.relu(model.backbone.bn1(model.backbone.conv1(x))))
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        maps = model.backbone[stage](maps)
    conv, bn, _, _, last = model.head
    hidden = F.relu(bn(conv(model.pyramid(maps))))
    expected = F.interpolate(last(hidden), size=(33, 41), mode="bilinear", align_corners=True)
    torch.testing.assert_close(model(x), expected)
    # With sides of 8n + 1 pixels, every eighth pixel is one of the map.
    torch.testing.assert_close(model(x)[..., ::8, ::8], last(hidden))


def test_pyramid_pooling_step_by_step(in_float64):
    pyramid = in_float64(PyramidPooling(8))
    x = torch.randn(2, 8, 12, 12, dtype=torch.float64)
    out = pyramid(x)
    assert out.shape == (2, 16, 12, 12)
    assert torch.equal(out[:, :8], x)
    _, conv, bn, _ = pyramid.branches[0]
    whole = F.relu(bn(conv(x.mean((2, 3), keepdim=True))))
    torch.testing.assert_close(out[:, 8:10], whole.expand(2, 2, 12, 12))
    _, conv, bn, _ = pyramid.branches[3]
    sixths = F.relu(bn(conv(F.avg_pool2d(x, 2))))
    torch.testing.assert_close(out[:, 14:, 0, 0], sixths[:, :, 0, 0])
    torch.testing.assert_close(out[:, 14:, -1, -1], sixths[:, :, -1, -1])


def test_the_backbone_has_the_names_of_the_classifier():
    classifier, model = create_model("timm/resnet18"), create_model("pspnet18")
    result = model.backbone.load_state_dict(classifier.state_dict(), strict=False)
    assert result.missing_keys == []
    assert result.unexpected_keys == ["fc.weight", "fc.bias"]
    assert (model.backbone["layer4"][1].bn2.weight == 0).all()  # as timm's classifier has it
    assert (create_model("pspnet18").backbone["layer4"][1].bn2.weight == 1).all()


def test_without_timm(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    for name in ("pspnet18", "pose_resnet18"):
        with pytest.raises(MissingExtraError, match="models with a dense output need timm, which is not installed"):
            create_model(name)
