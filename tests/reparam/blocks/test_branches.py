import torch
from torch import nn

from backpass.reparam import DiverseBranchBlock
from backpass.reparam.blocks.branches import BatchNormAndPad
from reference.reparam_cases import images, randomise

DENSE = nn.Conv2d(4, 6, 3, padding=1, groups=2)


def test_the_inner_pointwise_starts_as_the_identity_and_follows_the_dtype() -> None:
    pointwise = DiverseBranchBlock(DENSE).branches["1x1_kxk"].pointwise
    x = images(2, 4, 3, 3)
    assert torch.equal(pointwise(x), x)
    assert "identity" not in pointwise.state_dict()
    assert pointwise.half()(x.half()).dtype == torch.float16
    with torch.no_grad():
        pointwise.weight[0, 1] = 2.0
    expected = x.half().clone()
    expected[:, 0] += 2 * x.half()[:, 1]
    torch.testing.assert_close(pointwise(x.half()), expected)


def test_the_inner_pointwise_survives_the_meta_device_and_reset_parameters() -> None:
    block = DiverseBranchBlock(nn.Conv2d(4, 8, 3, padding=1, groups=2))
    x = images(2, 4, 6, 6)
    expected = block.eval()(x)
    empty = DiverseBranchBlock(nn.Conv2d(4, 8, 3, padding=1, groups=2, device="meta")).to_empty(device="cpu").eval()
    empty.load_state_dict(block.state_dict())
    assert torch.equal(empty(x), expected)
    pointwise = block.branches["1x1_kxk"].pointwise
    pointwise.reset_parameters()
    assert not pointwise.weight.any()


def test_the_border_follows_the_running_statistics_of_this_step_without_gradient() -> None:
    layer = BatchNormAndPad(randomise(nn.BatchNorm2d(3)), (1, 2)).double()
    x = images(4, 3, 5, 6).double().requires_grad_()
    out = layer.train()(x)
    norm = layer.norm
    border = norm.bias - norm.running_mean * norm.weight / torch.sqrt(norm.running_var + norm.eps)
    assert out.shape == (4, 3, 7, 10)
    edges = torch.ones(7, 10, dtype=torch.bool)
    edges[1:-1, 2:-2] = False
    torch.testing.assert_close(out[:, :, edges], border.view(1, 3, 1).expand(4, 3, int(edges.sum())))
    out[:, :, edges].sum().backward()
    assert not x.grad.any()
    assert not norm.weight.grad.any()
    out = layer(x)
    out.square().sum().backward()
    assert x.grad.any()
