import pickle

import pytest
import torch
from torch import nn

from backpass.errors import InputError
from backpass.pgt import (
    PowerGradBCEWithLogitsLoss,
    PowerGradCrossEntropyLoss,
    power_grad_binary_cross_entropy_with_logits,
    power_grad_cross_entropy,
)
from reference.power_grad import binary_cross_entropy_gradient, cross_entropy_gradient
from reference.power_grad_cases import BINARY_OPTIONS, CROSS_ENTROPY_OPTIONS, C, N, gradient, labels, seeded


def test_modules_are_the_functions():
    z, target = seeded(N, C), torch.tensor([0, 1, 2, 2, 4, 3])
    options = CROSS_ENTROPY_OPTIONS["everything"]
    module = pickle.loads(pickle.dumps(PowerGradCrossEntropyLoss(0.3, **options)))
    assert torch.equal(module(z, target), power_grad_cross_entropy(z, target, **options, alpha=0.3))
    expected = cross_entropy_gradient(z, target, 0.3, **options)
    torch.testing.assert_close(gradient(module(z.requires_grad_(), target), z), expected)
    assert isinstance(module, nn.CrossEntropyLoss)
    assert list(module.state_dict()) == ["weight"]
    assert repr(module) == "PowerGradCrossEntropyLoss(alpha=0.3)"
    options = BINARY_OPTIONS["everything"]
    binary = PowerGradBCEWithLogitsLoss(0.3, **options)
    target = seeded(N, C, seed=1).sigmoid()
    assert torch.equal(binary(z, target), power_grad_binary_cross_entropy_with_logits(z, target, **options, alpha=0.3))
    expected = binary_cross_entropy_gradient(z.detach(), target, 0.3, **options)
    torch.testing.assert_close(gradient(binary(z, target), z), expected)
    assert isinstance(binary, nn.BCEWithLogitsLoss)


def test_module_gradient_follows_its_alpha():
    z, target = seeded(N, C).requires_grad_(), labels(N)
    got = gradient(PowerGradCrossEntropyLoss(alpha=0.25)(z, target), z)
    torch.testing.assert_close(got, cross_entropy_gradient(z.detach(), target, 0.25))


@pytest.mark.parametrize("module", [PowerGradCrossEntropyLoss, PowerGradBCEWithLogitsLoss])
def test_modules_refuse_bad_options_when_built(module):
    with pytest.raises(InputError, match="got 0"):
        module(alpha=0)
    with pytest.raises(InputError, match="got 'avg'"):
        module(alpha=0.3, reduction="avg")
