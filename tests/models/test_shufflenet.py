import torch
import torch.nn.functional as F

from backpass.models import create_model
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


def test_stem_and_head_step_by_step(in_float64):
    model = in_float64(create_model("shufflenet", num_classes=4))
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    out = model.bn1(model.conv1(x)).clamp(min=0)
    for unit in model.units:
        out = unit(out)
    out = out.flatten(2).mean(2)
    torch.testing.assert_close(model(x), out @ model.fc.weight.T + model.fc.bias)


def test_the_first_unit_of_each_stage_halves_the_map():
    with torch.device("meta"):
        units = create_model("shufflenet").units
    assert [index for index, unit in enumerate(units) if unit.stride == 2] == [0, 4, 12]
