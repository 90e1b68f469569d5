import math

import pytest

pytest.importorskip("numpy")
import numpy as np
import torch
from torch.nn import functional as F

from backpass.errors import InputError
from backpass.pgt import (
    PowerGradCrossEntropyLoss,
    power_grad_binary_cross_entropy_with_logits,
    power_grad_cross_entropy,
)
from reference.power_grad_cases import (
    C,
    labels,
)

Z = torch.zeros(4, C)


BAD_CALLS = {
    "alpha": (Z, labels(4), {"alpha": 0.0}, "expected alpha to be a finite number above 0, got 0.0"),
    "reduction": (Z, labels(4), {"reduction": "avg"}, "one of 'none', 'mean', 'sum', got 'avg'"),
    "smoothing": (Z, labels(4), {"label_smoothing": 1.5}, "expected label_smoothing between 0 and 1, got 1.5"),
    "integer logits": (Z.long(), labels(4), {}, "floating-point logits, got torch.int64 of shape (4, 5)"),
    "no class axis": (torch.tensor(1.0), torch.tensor(1), {}, "got a scalar"),
    "weight": (Z, labels(4), {"weight": torch.ones(3)}, "shape (5,), got (3,) for input of shape (4, 5)"),
    "target length": (
        Z,
        labels(3),
        {},
        "class indices of shape (4,) or class probabilities of shape (4, 5), that of input, got shape (3,)",
    ),
    "one-hot integers": (
        Z,
        F.one_hot(labels(4), C),
        {},
        "floating point, got torch.int64; call .float() on one-hot rows",
    ),
    "float labels": (
        Z,
        labels(4).float(),
        {},
        "expected class indices in torch.int64, got torch.float32; call target.long()",
    ),
    "int32 labels": (Z, labels(4).int(), {}, "expected class indices in torch.int64, got torch.int32"),
    "ignored probabilities": (
        Z,
        Z,
        {"ignore_index": 1},
        "expected class indices with ignore_index=1, got class probabilities of shape (4, 5)",
    ),
    "labels": (
        Z,
        torch.tensor([0, 7, -1, -100]),
        {},
        "from 0 to 4 (the logits have 5 classes) or ignore_index=-100, got [-1, 7];",
    ),
    "a label": (Z[0], torch.tensor(5), {}, "(the logits have 5 classes) or ignore_index=-100, got [5];"),
    "label maps": (torch.zeros(2, C, 3), torch.full((2, 3), 9), {"label_smoothing": 0.1}, "got [9];"),
}


@pytest.mark.parametrize(("input", "target", "options", "message"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_cross_entropy_errors(input, target, options, message):
    with pytest.raises(InputError) as error:
        power_grad_cross_entropy(input, target, **({"alpha": 0.3} | options))
    assert message in str(error.value)


BAD_BINARY_CALLS = {
    "alpha": (Z, Z, {"alpha": -1}, "above 0, got -1"),
    "reduction": (Z, Z, {"reduction": "avg"}, "got 'avg'"),
    "integer logits": (Z.int(), Z, {}, "got torch.int32 of shape (4, 5)"),
    "target": (Z, Z[0], {}, "expected target of the shape of input, (4, 5), got (5,)"),
    "weight": (Z, Z, {"weight": torch.ones(4)}, "expected weight to broadcast to the shape of input, (4, 5), got (4,)"),
    "integer target": (
        Z,
        Z.long(),
        {},
        "expected target to hold probabilities in floating point, got torch.int64; call target.float()",
    ),
    "bool target": (Z, Z > 0, {}, "probabilities in floating point, got torch.bool; call target.float()"),
    "pos_weight": (
        Z,
        Z,
        {"pos_weight": torch.ones(2, 4, 5)},
        "expected pos_weight to broadcast to the shape of input, (4, 5), got (2, 4, 5)",
    ),
}


@pytest.mark.parametrize(
    ("input", "target", "options", "message"), BAD_BINARY_CALLS.values(), ids=BAD_BINARY_CALLS.keys()
)
def test_binary_errors(input, target, options, message):
    with pytest.raises(InputError) as error:
        power_grad_binary_cross_entropy_with_logits(input, target, **({"alpha": 0.3} | options))
    assert message in str(error.value)


@pytest.mark.parametrize("alpha", [0, 0.0, -0.3, math.inf, math.nan, True, "0.3", None, torch.tensor(0.3)])
@pytest.mark.parametrize("function", [power_grad_cross_entropy, power_grad_binary_cross_entropy_with_logits])
def test_an_alpha_that_is_no_exponent_is_refused(function, alpha):
    with pytest.raises(InputError) as error:
        function(Z, Z, alpha=alpha)
    assert f"expected alpha to be a finite number above 0, got {alpha!r}" in str(error.value)


@pytest.mark.parametrize("alpha", [1, np.float32(0.5), np.float64(2.0)])
def test_alpha_may_be_any_real_number(alpha):
    assert type(PowerGradCrossEntropyLoss(alpha).alpha) is float
    assert PowerGradCrossEntropyLoss(alpha).alpha == alpha
