import math

import pytest

pytest.importorskip("hypothesis")
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from backpass.pgt import (
    power_grad_cross_entropy,
)
from reference.power_grad import cross_entropy_gradient
from reference.power_grad_cases import (
    CROSS_ENTROPY_OPTIONS,
    PROBABILITY_OPTIONS,
    WEIGHT,
    C,
    N,
    cases,
    gradient,
    labels,
    seeded,
)


@settings(max_examples=50, derandomize=True)
@given(
    batch=st.sampled_from([(), (0,), (1,), (7,), (3, 4), (2, 3, 2)]),
    classes=st.integers(1, 6),
    probabilities=st.booleans(),
    weighted=st.booleans(),
    reduction=st.sampled_from(["none", "mean", "sum"]),
    label_smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    ignore_index=st.sampled_from([-100, -1, 0]),
    seed=st.integers(0, 10**6),
)
def test_value_is_that_of_cross_entropy(
    batch, classes, probabilities, weighted, reduction, label_smoothing, ignore_index, seed
):
    shape = (*batch[:1], classes, *batch[1:])
    z = 5 * seeded(*shape, seed=seed, dtype=torch.float32)
    weight = seeded(classes, seed=seed + 1, dtype=torch.float32).abs() if weighted else None
    if probabilities:
        target, ignore_index = (
            torch.softmax(seeded(*shape, seed=seed + 2, dtype=torch.float32), 1 if batch else 0),
            -100,
        )
    else:
        target = labels(*batch, classes=classes, seed=seed)
        if ignore_index < 0:
            target = target.masked_fill(seeded(*batch, seed=seed + 3) > 1, ignore_index)
    options = (weight, None, ignore_index, None, reduction, label_smoothing)
    want = F.cross_entropy(z, target, *options)
    got = power_grad_cross_entropy(z, target, weight, ignore_index, reduction, label_smoothing, alpha=0.3)
    assert got.dtype == want.dtype
    assert torch.equal(got.nan_to_num(123.0), want.nan_to_num(123.0))


@cases(CROSS_ENTROPY_OPTIONS)
@pytest.mark.parametrize("alpha", [0.25, 1.0, 2.0])
def test_gradient_is_the_definition_by_powers(options, alpha):
    z, target = seeded(N, C).requires_grad_(), torch.tensor([0, 1, 2, 2, 4, 3])
    got = gradient(power_grad_cross_entropy(z, target, **options, alpha=alpha), z)
    want = cross_entropy_gradient(z.detach(), target, alpha, **options)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


@cases(PROBABILITY_OPTIONS)
def test_gradient_with_class_probabilities_is_the_definition_by_powers(options):
    # The rows do not sum to one: the target mass T enters the definition.
    z, target = seeded(N, C).requires_grad_(), seeded(N, C, seed=1).abs()
    got = gradient(power_grad_cross_entropy(z, target, **options, alpha=0.3), z)
    want = cross_entropy_gradient(z.detach(), target, 0.3, **options)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


@cases(CROSS_ENTROPY_OPTIONS)
@pytest.mark.parametrize("shape", [(C,), (N, C), (N, C, 3, 2)], ids=str)
def test_gradient_is_that_of_cross_entropy_of_scaled_logits(options, shape):
    z, target = seeded(*shape).requires_grad_(), labels(*shape[:1], *shape[2:]) if len(shape) > 1 else torch.tensor(1)
    got = gradient(power_grad_cross_entropy(z, target, **options, alpha=0.3), z)
    want = gradient(F.cross_entropy(0.3 * z, target, **options) / 0.3, z)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14, equal_nan=True)


def test_hand_case():
    # p = (4/5, 1/5); the square roots 2 : 1 give (2/3, 1/3), so the gradient is (2/3 - 1, 1/3).
    z = torch.tensor([[math.log(4.0), 0.0]], dtype=torch.float64, requires_grad=True)
    loss = power_grad_cross_entropy(z, torch.tensor([0]), alpha=0.5)
    assert loss.item() == pytest.approx(math.log(5 / 4), rel=1e-15)
    torch.testing.assert_close(gradient(loss, z), torch.tensor([[-1 / 3, 1 / 3]], dtype=torch.float64))


def test_alpha_one_changes_nothing_and_alpha_below_one_does():
    z, target = seeded(N, C).requires_grad_(), labels(N)
    plain = gradient(F.cross_entropy(z, target), z)
    torch.testing.assert_close(
        gradient(power_grad_cross_entropy(z, target, alpha=1.0), z), plain, rtol=1e-12, atol=1e-15
    )
    changed = gradient(power_grad_cross_entropy(z, target, alpha=0.3), z)
    assert (changed - plain).abs().max() > 0.01
    # The direction of the change: towards the uniform distribution.
    transformed = changed * N + F.one_hot(target, C)
    uniform = torch.full_like(transformed, 1 / C)
    assert ((transformed - uniform).norm(dim=1) < (torch.softmax(z, 1) - uniform).norm(dim=1)).all()


def test_target_probabilities_get_the_plain_gradient():
    z = seeded(N, C)
    target = torch.softmax(seeded(N, C, seed=1), 1).requires_grad_()
    got = gradient(power_grad_cross_entropy(z, target, label_smoothing=0.1, alpha=0.3), target)
    torch.testing.assert_close(got, gradient(F.cross_entropy(z, target, label_smoothing=0.1), target))


def test_class_weights_get_the_plain_gradient():
    z, target = seeded(N, C).requires_grad_(), torch.softmax(seeded(N, C, seed=1), 1)
    weight = WEIGHT.clone().requires_grad_()
    loss = power_grad_cross_entropy(z, target, weight, alpha=0.3)
    of_logits, of_weight = torch.autograd.grad(loss, (z, weight))
    torch.testing.assert_close(of_weight, gradient(F.cross_entropy(z, target, weight), weight))
    torch.testing.assert_close(of_logits, gradient(power_grad_cross_entropy(z, target, WEIGHT, alpha=0.3), z))


@pytest.mark.parametrize("target", [labels(3), torch.softmax(seeded(3, C, seed=1), 1)], ids=["labels", "probabilities"])
def test_second_derivative(target):
    z = seeded(3, C).requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda z: power_grad_cross_entropy(z, target, label_smoothing=0.1, alpha=0.3), (z,)
    )


def test_the_first_derivative_is_not_that_of_the_value():
    z, target = seeded(3, C).requires_grad_(), labels(3)
    assert not torch.autograd.gradcheck(
        lambda z: power_grad_cross_entropy(z, target, alpha=0.3), (z,), raise_exception=False
    )


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # from within torch.func
@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_hessian_is_that_of_scaled_logits(alpha):
    z, target = seeded(4), torch.tensor(1)
    want = torch.func.hessian(lambda z: F.cross_entropy(alpha * z, target) / alpha)(z)
    got = torch.func.hessian(lambda z: power_grad_cross_entropy(z, target, alpha=alpha))(z)
    torch.testing.assert_close(got, want)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # from within torch.func
def test_forward_mode_gives_the_same_derivative():
    z, target, direction = seeded(N, C), labels(N), seeded(N, C, seed=3)
    value, slope = torch.func.jvp(lambda z: power_grad_cross_entropy(z, target, alpha=0.3), (z,), (direction,))
    assert torch.equal(value, F.cross_entropy(z, target))
    torch.testing.assert_close(slope, (cross_entropy_gradient(z, target, 0.3) * direction).sum())


def test_batched_gradients_of_an_unbatched_loss():
    z, target = seeded(3, C).requires_grad_(), labels(3)
    losses = power_grad_cross_entropy(z, target, reduction="none", alpha=0.3)
    directions = torch.eye(3, dtype=torch.float64)
    batched = torch.autograd.grad(losses, z, directions, is_grads_batched=True, retain_graph=True)[0]
    one_by_one = [torch.autograd.grad(losses, z, direction, retain_graph=True)[0] for direction in directions]
    torch.testing.assert_close(batched, torch.stack(one_by_one))


def test_per_sample_gradient_does_not_know_the_batch():
    z, target = seeded(50, C).requires_grad_(), labels(50)
    whole = gradient(power_grad_cross_entropy(z, target, reduction="sum", alpha=0.25), z)
    for n in (1, 7, 32):
        part = z.detach()[:n].requires_grad_()
        summed = gradient(power_grad_cross_entropy(part, target[:n], reduction="sum", alpha=0.25), part)
        assert torch.equal(summed, whole[:n])
        averaged = gradient(power_grad_cross_entropy(part, target[:n], alpha=0.25), part)
        torch.testing.assert_close(averaged * n, whole[:n], rtol=1e-13, atol=0)


@pytest.mark.parametrize("power", [0, 1, 10, 16, 20])
def test_loss_scale_scales_the_gradient_exactly(power):
    z, target = seeded(N, C, dtype=torch.float32).requires_grad_(), labels(N)
    loss = power_grad_cross_entropy(z, target, alpha=0.25)
    plain = torch.autograd.grad(loss, z, retain_graph=True)[0]
    scaled = torch.autograd.grad(loss * 2.0**power, z)[0]
    assert torch.equal(scaled * 2.0**-power, plain)


def test_accumulation_over_micro_batches_is_the_whole_batch():
    model = nn.Linear(3, C, dtype=torch.float64)
    x, target = seeded(12, 3), labels(12)
    power_grad_cross_entropy(model(x), target, alpha=0.25).backward()
    whole = model.weight.grad.clone()
    model.zero_grad()
    for rows in torch.arange(12).split(4):
        (power_grad_cross_entropy(model(x[rows]), target[rows], alpha=0.25) / 3).backward()
    torch.testing.assert_close(model.weight.grad, whole, rtol=1e-12, atol=1e-15)


def test_empty_batch():
    z, target = torch.zeros(0, C, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    loss = power_grad_cross_entropy(z, target, reduction="sum", alpha=0.3)
    assert loss.item() == 0
    assert gradient(loss, z).shape == (0, C)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype):
    z, target = seeded(N, C).to(dtype).requires_grad_(), labels(N)
    loss = power_grad_cross_entropy(z, target, label_smoothing=0.1, alpha=0.3)
    assert torch.equal(loss, F.cross_entropy(z, target, label_smoothing=0.1))
    want = cross_entropy_gradient(z.detach().double(), target, 0.3, label_smoothing=0.1)
    got = gradient(loss, z)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2 * torch.finfo(dtype).eps)


def test_channels_last():
    z = seeded(2, C, 3, 4).to(memory_format=torch.channels_last).requires_grad_()
    target = labels(2, 3, 4)
    loss = power_grad_cross_entropy(z, target, alpha=0.3)
    grad = gradient(loss, z)
    want = gradient(F.cross_entropy(0.3 * z, target) / 0.3, z)
    assert torch.equal(loss, F.cross_entropy(z, target))
    assert grad.stride() == want.stride()
    torch.testing.assert_close(grad, want)


@pytest.mark.parametrize("label", [0, 1], ids=["a class left in", "a class masked out"])
def test_masked_logits(label):
    z = torch.tensor([[1.0, -math.inf, 0.0]], requires_grad=True)
    loss = power_grad_cross_entropy(z, torch.tensor([label]), alpha=0.25)
    assert torch.equal(loss, F.cross_entropy(z, torch.tensor([label])))
    first, third = torch.softmax(torch.tensor([0.25, 0.0]), 0)
    want = torch.tensor([[first, 0.0, third]]) - F.one_hot(torch.tensor([label]), 3)
    torch.testing.assert_close(gradient(loss, z), want)


def test_half_precision_on_the_meta_device() -> None:
    logits = torch.zeros(2, 3, device="meta", dtype=torch.bfloat16)
    assert power_grad_cross_entropy(logits, torch.zeros(2, dtype=torch.long, device="meta"), alpha=0.3).shape == ()
