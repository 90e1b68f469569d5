import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from backpass.errors import InputError
from backpass.pgt.power import check_alpha, power_log_sigmoid, power_log_softmax
from reference.power_grad import power_transform, softmax


def logits(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return (3 * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()


def gradient(output: Tensor, input: Tensor, grad_output: Tensor | None = None) -> Tensor:
    return torch.autograd.grad(output, input, grad_output)[0]


@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.3, 1.0, 2.5])
def test_log_softmax_gradient_is_that_of_powers_of_probabilities(alpha):
    z = logits(6)
    powered = torch.tensor(power_transform(softmax(z.tolist()), alpha), dtype=torch.float64)
    for label in range(6):
        got = gradient(power_log_softmax(z, 0, alpha=alpha)[label], z)
        torch.testing.assert_close(got, F.one_hot(torch.tensor(label), 6) - powered, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0, 2.5])
def test_log_sigmoid_gradient_is_that_of_powers_of_probabilities(alpha):
    z = logits(20)
    got = gradient(power_log_sigmoid(z, alpha=alpha).sum(), z)
    probabilities = [1 / (1 + math.exp(-value)) for value in z.tolist()]
    want = [power_transform([1 - p, p], alpha)[0] for p in probabilities]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("alpha", [0.25, 3.0])
def test_log_softmax_gradient_is_that_of_scaled_logits(dim, alpha):
    z, grad_output = logits(3, 4, 5), logits(3, 4, 5).detach().sin()
    output = power_log_softmax(z, dim, alpha=alpha)
    assert torch.equal(output, torch.log_softmax(z, dim))
    want = gradient(torch.log_softmax(alpha * z, dim) / alpha, z, grad_output)
    torch.testing.assert_close(gradient(output, z, grad_output), want, rtol=1e-12, atol=1e-13)


def test_log_sigmoid_is_the_two_class_case():
    z = logits(9)
    pair = torch.stack([z, torch.zeros_like(z)])
    want = gradient(power_log_softmax(pair, 0, alpha=0.3)[0].sum(), z)
    output = power_log_sigmoid(z, alpha=0.3)
    assert torch.equal(output, F.logsigmoid(z))
    torch.testing.assert_close(gradient(output.sum(), z), want)


def test_log_sigmoid_gradient_of_a_sure_logit_keeps_its_precision():
    z = torch.tensor([-40.0, 40.0], requires_grad=True)
    got = gradient(power_log_sigmoid(z, alpha=0.5).sum(), z)
    torch.testing.assert_close(got, torch.tensor([1.0, math.exp(-20.0)]), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "function", [lambda z: power_log_softmax(z, 1, alpha=0.3), lambda z: power_log_sigmoid(z, alpha=0.3)]
)
def test_the_backward_pass_is_differentiable(function):
    # The first derivative is not that of the value, which shows that the check sees a wrong one; the second must be
    # the derivative of the first.
    z = logits(3, 4)
    assert not torch.autograd.gradcheck(function, (z,), raise_exception=False)
    assert torch.autograd.gradgradcheck(function, (z,))


@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_second_derivative_is_that_of_scaled_logits(alpha):
    z = logits(4)

    def hessian(function):
        return torch.autograd.functional.hessian(lambda z: function(z)[1], z)

    want = hessian(lambda z: torch.log_softmax(alpha * z, 0) / alpha)
    torch.testing.assert_close(hessian(lambda z: power_log_softmax(z, 0, alpha=alpha)), want)


def test_batched_gradients_of_an_unbatched_output():
    z = logits(2, 3)
    output = power_log_softmax(z, 1, alpha=0.3)
    directions = torch.eye(6, dtype=torch.float64).view(6, 2, 3)
    batched = torch.autograd.grad(output, z, directions, is_grads_batched=True, retain_graph=True)[0]
    one_by_one = [torch.autograd.grad(output, z, direction, retain_graph=True)[0] for direction in directions]
    torch.testing.assert_close(batched, torch.stack(one_by_one))


def test_masked_logits_get_no_gradient():
    z = torch.tensor([1.0, -math.inf, 0.0], requires_grad=True)
    output = power_log_softmax(z, 0, alpha=0.25)
    half = torch.softmax(torch.tensor([0.25, 0.0]), 0)
    torch.testing.assert_close(gradient(output[0], z), torch.tensor([1 - half[0], 0.0, -half[1]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype):
    z = logits(4, 5, dtype=dtype)
    output = power_log_softmax(z, 1, alpha=0.3)
    grad = gradient(output[:, 0].sum(), z)
    assert output.dtype == grad.dtype == dtype
    want = F.one_hot(torch.zeros(4, dtype=torch.int64), 5) - torch.softmax(0.3 * z.detach().double(), 1)
    torch.testing.assert_close(grad.double(), want, rtol=0, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("alpha", [0.3, 1, np.float32(0.5), np.float64(2.0)])
def test_check_alpha_returns_a_float(alpha):
    assert type(check_alpha(alpha)) is float
    assert check_alpha(alpha) == alpha


@pytest.mark.parametrize("alpha", [0, 0.0, -0.3, math.inf, math.nan, True, "0.3", None, torch.tensor(0.3)])
@pytest.mark.parametrize(
    "function",
    [
        check_alpha,
        lambda a: power_log_softmax(torch.zeros(2), 0, alpha=a),
        lambda a: power_log_sigmoid(torch.zeros(2), alpha=a),
    ],
)
def test_an_alpha_that_is_no_exponent_is_refused(function, alpha):
    with pytest.raises(InputError) as error:
        function(alpha)
    assert f"alpha must be a finite number above 0, got {alpha!r}" in str(error.value)
