import torch

from backpass.models.resnet import BasicBlock
from backpass.models.se_resnet import SEBasicBlock, SqueezeExcitation


def test_squeeze_excitation_by_matrices():
    layer = SqueezeExcitation(32).double()
    x = torch.randn(2, 32, 3, 4, dtype=torch.float64)
    out = layer(x)
    for n in range(2):
        mean = x[n].flatten(1).mean(1)
        hidden = (layer.fc1.weight @ mean + layer.fc1.bias).clamp(min=0)
        assert hidden.shape == (2,)
        gate = 1 / (1 + torch.exp(-(layer.fc2.weight @ hidden + layer.fc2.bias)))
        torch.testing.assert_close(out[n], x[n] * gate[:, None, None])


def test_the_residual_is_activated_before_it_is_scaled(in_float64):
    block = in_float64(SEBasicBlock(16, 32, stride=2))
    x = torch.randn(2, 16, 6, 5, dtype=torch.float64)
    plain = BasicBlock.residual(block, x)
    assert (plain < 0).any()
    residual = block.se(plain.clamp(min=0))
    torch.testing.assert_close(block(x), (residual + block.downsample(x)).clamp(min=0))
