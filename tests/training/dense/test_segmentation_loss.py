from functools import partial

import pytest
import torch
import torch.nn.functional as F

from backpass.pgt import power_grad_cross_entropy
from backpass.training.dense.segmentation_loss import segmentation_loss


def heads():
    return tuple(torch.randn(2, 4, 5, 6, requires_grad=True) for _ in range(2))


def labels():
    target = torch.randint(4, (2, 5, 6))
    target[torch.rand(target.shape) < 0.3] = 255
    return target


def slow_cross_entropy(logits, target):
    terms = [
        -logits[n].log_softmax(0)[target[n, y, x], y, x]
        for n in range(2)
        for y in range(5)
        for x in range(6)
        if target[n, y, x] != 255
    ]
    return torch.stack(terms).mean()


def test_main_head_and_a_fraction_of_the_auxiliary_one():
    (main, auxiliary), target = heads(), labels()
    expected = slow_cross_entropy(main, target) + 0.4 * slow_cross_entropy(auxiliary, target)
    torch.testing.assert_close(segmentation_loss((main, auxiliary), target), expected)
    torch.testing.assert_close(segmentation_loss(main, target), slow_cross_entropy(main, target))
    half = slow_cross_entropy(main, target) + 0.5 * slow_cross_entropy(auxiliary, target)
    torch.testing.assert_close(segmentation_loss((main, auxiliary), target, auxiliary_weight=0.5), half)


def test_nothing_labelled_is_no_loss():
    output, target = heads(), torch.full((2, 5, 6), 255)
    loss = segmentation_loss(output, target)
    loss.backward()
    assert loss.item() == 0
    assert all((head.grad == 0).all() for head in output)
    assert F.cross_entropy(output[0], target, ignore_index=255).isnan()


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_the_power_grad_transform_acts_on_both_heads(alpha):
    output, target = heads(), labels()
    criterion = partial(power_grad_cross_entropy, alpha=alpha)
    loss = segmentation_loss(output, target, criterion=criterion)
    torch.testing.assert_close(loss, segmentation_loss(output, target))
    loss.backward()
    kept = (target != 255)[:, None]
    one_hot = F.one_hot(torch.where(target == 255, 0, target), 4).permute(0, 3, 1, 2)
    for head, weight in zip(output, (1, 0.4), strict=True):
        expected = weight * ((alpha * head).softmax(1) - one_hot) * kept / kept.sum()
        torch.testing.assert_close(head.grad, expected)
