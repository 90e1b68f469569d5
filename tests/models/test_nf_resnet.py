import math

import pytest
import torch
from torch import nn

from backpass.models import count_parameters, create_model
from backpass.models.nf_resnet import (
    NFBlock,
    NFResNet,
    ScaledStdConv2d,
    StochasticDepth,
    same_pad,
    scaled_relu,
    standardize_weight,
)


def nf_oracle(model: NFResNet, depths: tuple[int, ...]) -> nn.Module:
    """timm's NF-ResNet, set to DeepMind's choices, with the weights of ``model``."""
    nfnet = pytest.importorskip("timm.models.nfnet")
    config = nfnet.NfCfg(
        depths=depths,
        channels=(256, 512, 1024, 2048),
        stem_type="7x7_pool",
        stem_chs=64,
        bottle_ratio=0.25,
        group_size=None,
        num_features=0,
        gamma_in_act=True,
        same_padding=True,
        std_conv_eps=1e-30,
        skipinit=True,
        act_layer="relu",
    )
    oracle = nfnet.NormFreeNet(config, num_classes=model.fc.out_features).double().eval()

    def copy(conv, source):
        conv.weight.data.copy_(source.weight)
        conv.gain.data.copy_(source.gain.view_as(conv.gain))
        conv.bias.data.copy_(source.bias)

    copy(oracle.stem.conv, model.stem)
    for block, source in zip((b for stage in oracle.stages for b in stage), model.blocks, strict=True):
        for name in ("conv1", "conv2", "conv3"):
            copy(getattr(block, name), getattr(source, name))
        block.skipinit_gain.data.copy_(source.skip_gain)
        if source.projection is not None:
            copy(block.downsample.conv, source.projection)
            block.downsample.pool = nn.Identity()
            block.downsample.conv.stride = source.projection.stride
    oracle.head.fc.load_state_dict(model.fc.state_dict())
    return oracle


def test_nf_resnet_equals_timm_set_to_the_same_choices():
    model = create_model("nf_resnet26", num_classes=5).double().eval()
    for parameter in model.parameters():  # so that no gain is one and no bias or skip gain zero
        parameter.data += 0.2 * torch.rand_like(parameter)
    x = torch.randn(1, 3, 70, 65, dtype=torch.float64)
    with torch.no_grad():
        expected = nf_oracle(model, (2, 2, 2, 2))(x)
        torch.testing.assert_close(model(x), expected)
        assert expected.std() > 0.01


def test_the_head_of_nf_resnet_starts_small():
    head = create_model("nf_resnet26").fc
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert not head.bias.any()


@pytest.mark.parametrize(("name", "blocks"), [("nf_resnet26", 8), ("nf_resnet50", 16)])
def test_nf_resnet_has_timms_parameters_and_a_skip_gain_a_block(name, blocks):
    pytest.importorskip("timm")
    ours, theirs = create_model(name), create_model(f"timm/{name}")
    assert count_parameters(ours) == count_parameters(theirs) + blocks


def test_standardised_filters_by_hand():
    weight = torch.tensor([3.0, 1.0, -1.0, 1.0]).view(1, 1, 2, 2)  # mean 1, deviations 2 0 -2 0, norm sqrt(8)
    out = standardize_weight(weight, gain=torch.tensor([3.0])).flatten()
    torch.testing.assert_close(out, torch.tensor([3 / math.sqrt(2), 0.0, -3 / math.sqrt(2), 0.0]))


def test_standardised_filters_have_mean_zero_and_norm_gain():
    weight = torch.randn(5, 3, 2, 3, dtype=torch.float64) * 7 + 4
    gain = torch.rand(5, dtype=torch.float64) + 0.5
    out = standardize_weight(weight, gain)
    torch.testing.assert_close(out.flatten(1).sum(1), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(out.flatten(1).norm(dim=1), gain)


def test_a_constant_filter_becomes_zero_and_a_tiny_one_meets_the_bound():
    assert not standardize_weight(torch.full((2, 3, 3, 3), 5.0), torch.ones(2)).any()
    tiny = torch.tensor([1e-3, -1e-3]).view(1, 2, 1, 1)  # squared norm 2e-6, below 1e-4
    torch.testing.assert_close(standardize_weight(tiny, torch.ones(1)), tiny * 100)


def test_scaled_std_conv_starts_with_unit_gain_zero_bias_and_fan_in_weights():
    conv = ScaledStdConv2d(64, 128, 3)
    assert torch.equal(conv.gain, torch.ones(128))
    assert not conv.bias.any()
    assert conv.weight.std().item() == pytest.approx((64 * 9) ** -0.5, rel=0.02)


@pytest.mark.parametrize("side", [5, 6, 7, 8, 224])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (7, 2), (1, 2)])
def test_same_padding_gives_ceil_of_side_over_stride(side, kernel, stride):
    padded = same_pad(torch.ones(1, 1, side, side + 1), kernel, stride)
    for axis, length in ((2, side), (3, side + 1)):
        outputs = (padded.shape[axis] - kernel) // stride + 1
        assert outputs == math.ceil(length / stride)
        total = padded.shape[axis] - length
        if total:  # nothing more than needed, and the odd pixel last
            assert (outputs - 1) * stride + kernel == padded.shape[axis]
    top = int((padded.sum((0, 1, 3)) != 0).int().argmax())
    assert top == (padded.shape[2] - side) // 2


def test_stochastic_depth_drops_examples_without_rescaling():
    layer = StochasticDepth(0.25)
    x = torch.full((4000, 2, 1, 1), 3.0)
    out = layer.train()(x)
    kept = out[:, 0, 0, 0] != 0
    assert torch.equal(out, x * kept.view(-1, 1, 1, 1))
    assert kept.double().mean().item() == pytest.approx(0.75, abs=0.03)
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(StochasticDepth(0.0).train()(x), x)


def test_scaled_relu_keeps_the_variance():
    assert scaled_relu(torch.randn(1_000_000)).var().item() == pytest.approx(1, rel=0.01)


def test_block_with_skip_gain_zero_is_its_shortcut():
    x = torch.randn(2, 16, 5, 5)
    kept = NFBlock(16, 16, 1, beta=0.9, alpha=0.2, drop_rate=0.0)
    assert torch.equal(kept(x), x)
    changed = NFBlock(16, 32, 2, beta=0.9, alpha=0.2, drop_rate=0.0)
    torch.testing.assert_close(changed(x), changed.projection(scaled_relu(x) * 0.9))


def test_betas_and_drop_rates_follow_the_schedule():
    with torch.device("meta"):
        blocks = create_model("nf_resnet50").blocks
    variances = [1.0, 1.04, 1.08, 1.12, 1.04, 1.08, 1.12, 1.16, 1.04, 1.08, 1.12, 1.16, 1.20, 1.24, 1.04, 1.08]
    assert [block.beta**-2 for block in blocks] == pytest.approx(variances)
    assert [block.drop.rate for block in blocks] == pytest.approx([0.1 * i / 16 for i in range(16)])


def test_each_block_sees_unit_variance_at_the_start():
    model = create_model("nf_resnet26").eval()
    for block in model.blocks:
        block.skip_gain.data.fill_(1.0)
    x = torch.randn(2, 64, 16, 16)  # in the place of the stem's output
    with torch.no_grad():
        for block in model.blocks:
            assert (x * block.beta).var(dim=(0, 2, 3)).mean().item() == pytest.approx(1, abs=0.3)
            x = block(x)
