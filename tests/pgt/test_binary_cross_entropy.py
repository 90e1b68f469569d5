import pytest
import torch
from torch.nn import functional as F

from backpass.pgt import (
    power_grad_binary_cross_entropy_with_logits,
)
from reference.power_grad import binary_cross_entropy_gradient
from reference.power_grad_cases import BINARY_OPTIONS, C, N, cases, gradient, labels, seeded


@cases(BINARY_OPTIONS)
@pytest.mark.parametrize("scale", [1, 30])
def test_value_is_that_of_binary_cross_entropy(options, scale):
    z, target = scale * seeded(N, C), seeded(N, C, seed=1).sigmoid()
    got = power_grad_binary_cross_entropy_with_logits(z, target, **options, alpha=0.3)
    want = F.binary_cross_entropy_with_logits(z, target, **options)
    assert torch.equal(got, want)


@cases(BINARY_OPTIONS)
@pytest.mark.parametrize("alpha", [0.25, 1.0, 2.0])
def test_binary_gradient_is_the_definition_by_powers(options, alpha):
    z, target = seeded(N, C).requires_grad_(), seeded(N, C, seed=1).sigmoid()
    got = gradient(power_grad_binary_cross_entropy_with_logits(z, target, **options, alpha=alpha), z)
    want = binary_cross_entropy_gradient(z.detach(), target, alpha, **options)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


@cases(BINARY_OPTIONS)
def test_binary_gradient_is_that_of_scaled_logits(options):
    z, target = seeded(N, C).requires_grad_(), seeded(N, C, seed=1).sigmoid()
    got = gradient(power_grad_binary_cross_entropy_with_logits(z, target, **options, alpha=0.3), z)
    want = gradient(F.binary_cross_entropy_with_logits(0.3 * z, target, **options) / 0.3, z)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


def test_binary_alpha_one_changes_nothing_and_alpha_below_one_does():
    z, target = seeded(N, C).requires_grad_(), labels(N, C, classes=2).double()
    plain = gradient(F.binary_cross_entropy_with_logits(z, target), z)
    same = gradient(power_grad_binary_cross_entropy_with_logits(z, target, alpha=1.0), z)
    torch.testing.assert_close(same, plain, rtol=1e-12, atol=1e-15)
    changed = gradient(power_grad_binary_cross_entropy_with_logits(z, target, alpha=0.3), z)
    assert (changed - plain).abs().max() > 1e-3


def test_binary_second_derivative():
    z, target = seeded(3, 2).requires_grad_(), labels(3, 2, classes=2).double()
    assert torch.autograd.gradgradcheck(
        lambda z: power_grad_binary_cross_entropy_with_logits(z, target, alpha=0.3), (z,)
    )
