import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from backpass.training.calibration import CalibrationError


def error(logits, target, batch=64):
    calibration = CalibrationError(logits.device)
    for start in range(0, len(logits), batch):
        calibration.update(logits[start : start + batch], target[start : start + batch])
    return calibration.compute(lambda tensor: tensor).item()


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_it_equals_that_of_torchmetrics(scale):
    logits = scale * torch.randn(500, 7)
    target = torch.randint(7, (500,))
    expected = multiclass_calibration_error(logits, target, num_classes=7, n_bins=15, norm="l1").item()
    assert expected > 0.01
    assert error(logits, target) == pytest.approx(expected, abs=1e-6)


def test_by_hand():
    """Two images at 0.75, of which one is right, and two at 0.6, both right, in bins 11 and 9 of 15."""
    odds = torch.tensor([0.75, 0.75, 0.6, 0.6]).logit()
    logits = torch.stack([odds, torch.zeros(4)], 1)
    assert error(logits, torch.tensor([0, 1, 0, 0])) == pytest.approx((2 * 0.25 + 2 * 0.4) / 4)


def test_a_probability_of_one_belongs_to_the_last_bin():
    """Apart from each other, the errors of these two images would add up; in one bin they cancel in part."""
    logits = torch.tensor([[200.0, 0.0], [3.0, 0.0]])
    low = torch.tensor(3.0).sigmoid().item()
    assert low > 14 / 15
    assert error(logits, torch.tensor([1, 0])) == pytest.approx(abs(1 + low - 1) / 2)


def test_a_calibrated_model_has_none():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20000, 5, generator=generator)
    target = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    assert error(logits, target) < 0.02
    assert error(3 * logits, target) > 0.1
