import torch
import torch.nn.functional as F

from backpass.models.shufflenet import ShuffleUnit


def branch(unit, x):
    out = unit.bn1(unit.conv1(x)).clamp(min=0)
    width = out.shape[1]
    # Channel c of group g comes to place c * groups + g.
    places = [(c % 3) * (width // 3) + c // 3 for c in range(width)]
    out = unit.bn2(unit.conv2(out[:, places]))
    return unit.bn3(unit.conv3(out))


def test_unit_at_stride_one(in_float64):
    unit = in_float64(ShuffleUnit(24, 24, stride=1))
    x = torch.randn(2, 24, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(unit(x), (x + branch(unit, x)).clamp(min=0))


def test_unit_at_stride_two_puts_the_pooled_input_first(in_float64):
    unit = in_float64(ShuffleUnit(24, 60, stride=2))
    x = torch.randn(2, 24, 6, 8, dtype=torch.float64)
    pooled = F.conv2d(x, torch.full((24, 1, 3, 3), 1 / 9, dtype=torch.float64), stride=2, padding=1, groups=24)
    out = unit(x)
    assert out.shape == (2, 60, 3, 4)
    torch.testing.assert_close(out[:, :24], pooled.clamp(min=0))
    torch.testing.assert_close(out[:, 24:], branch(unit, x).clamp(min=0))


def test_groups():
    unit = ShuffleUnit(24, 240, stride=2)
    assert (unit.conv1.groups, unit.conv2.groups, unit.conv3.groups) == (3, 60, 3)
