import pytest
import torch

from backpass.training.dense.person_augmentation import draw_person

MPII = (0.25, 30.0, 0.6, 0.5)


def test_draws():
    torch.manual_seed(2)
    drawn = [draw_person(*MPII) for _ in range(3000)]
    scales, angles = torch.tensor([d.scale for d in drawn]), torch.tensor([d.angle for d in drawn])
    assert (scales.min().item(), scales.max().item()) == (0.75, 1.25)
    # A normal draw lies beyond one standard deviation with probability 0.317, and is clipped.
    assert ((scales == 0.75) | (scales == 1.25)).double().mean().item() == pytest.approx(0.317, abs=0.03)
    turned = angles[angles != 0]
    assert len(turned) / 3000 == pytest.approx(0.6, abs=0.03)
    assert (turned.min().item(), turned.max().item()) == (-60, 60)
    assert (turned.abs() < 30).double().mean().item() == pytest.approx(0.683, abs=0.03)
    assert sum(d.mirrored for d in drawn) / 3000 == pytest.approx(0.5, abs=0.03)
    torch.manual_seed(2)
    assert draw_person(*MPII) == drawn[0] != drawn[1]
