import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from backpass.errors import InputError
from backpass.pgt import (
    PowerGradBCEWithLogitsLoss,
    PowerGradCrossEntropyLoss,
    power_grad_binary_cross_entropy_with_logits,
    power_grad_cross_entropy,
)
from reference.power_grad import binary_cross_entropy_gradient, cross_entropy_gradient

N, C = 6, 5


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def labels(*shape: int, classes: int = C, seed: int = 0) -> Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


def gradient(loss: Tensor, z: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), z)[0]


WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.0, 3.0], dtype=torch.float64)
CROSS_ENTROPY_OPTIONS = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "weight": {"weight": WEIGHT},
    "smoothing": {"label_smoothing": 0.1},
    "all smoothing": {"label_smoothing": 1.0},
    "ignored": {"ignore_index": 2},
    "everything": {"weight": WEIGHT, "label_smoothing": 0.2, "ignore_index": 2},
    "everything, sum": {"weight": WEIGHT, "label_smoothing": 0.2, "ignore_index": 2, "reduction": "sum"},
}
PROBABILITY_OPTIONS = {
    name: options for name, options in CROSS_ENTROPY_OPTIONS.items() if "ignore_index" not in options
}
BINARY_OPTIONS = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "weight": {"weight": seeded(N, C, seed=5).abs()},
    "sample weight": {"weight": seeded(N, 1, seed=5).abs()},
    "pos_weight": {"pos_weight": WEIGHT},
    "everything": {"weight": seeded(N, 1, seed=5).abs(), "pos_weight": WEIGHT, "reduction": "sum"},
}


def cases(options: dict) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("options", options.values(), ids=options.keys())


# The value


@settings(max_examples=50, deadline=None, derandomize=True)
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


@cases(BINARY_OPTIONS)
@pytest.mark.parametrize("scale", [1, 30])
def test_value_is_that_of_binary_cross_entropy(options, scale):
    z, target = scale * seeded(N, C), seeded(N, C, seed=1).sigmoid()
    got = power_grad_binary_cross_entropy_with_logits(z, target, **options, alpha=0.3)
    want = F.binary_cross_entropy_with_logits(z, target, **options)
    assert torch.equal(got, want)


# The gradient


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


@cases(BINARY_OPTIONS)
@pytest.mark.parametrize("alpha", [0.25, 1.0, 2.0])
def test_binary_gradient_is_the_definition_by_powers(options, alpha):
    z, target = seeded(N, C).requires_grad_(), seeded(N, C, seed=1).sigmoid()
    got = gradient(power_grad_binary_cross_entropy_with_logits(z, target, **options, alpha=alpha), z)
    want = binary_cross_entropy_gradient(z.detach(), target, alpha, **options)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


@cases(CROSS_ENTROPY_OPTIONS)
@pytest.mark.parametrize("shape", [(C,), (N, C), (N, C, 3, 2)], ids=str)
def test_gradient_is_that_of_cross_entropy_of_scaled_logits(options, shape):
    z, target = seeded(*shape).requires_grad_(), labels(*shape[:1], *shape[2:]) if len(shape) > 1 else torch.tensor(1)
    got = gradient(power_grad_cross_entropy(z, target, **options, alpha=0.3), z)
    want = gradient(F.cross_entropy(0.3 * z, target, **options) / 0.3, z)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14, equal_nan=True)


@cases(BINARY_OPTIONS)
def test_binary_gradient_is_that_of_scaled_logits(options):
    z, target = seeded(N, C).requires_grad_(), seeded(N, C, seed=1).sigmoid()
    got = gradient(power_grad_binary_cross_entropy_with_logits(z, target, **options, alpha=0.3), z)
    want = gradient(F.binary_cross_entropy_with_logits(0.3 * z, target, **options) / 0.3, z)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


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


def test_binary_alpha_one_changes_nothing_and_alpha_below_one_does():
    z, target = seeded(N, C).requires_grad_(), labels(N, C, classes=2).double()
    plain = gradient(F.binary_cross_entropy_with_logits(z, target), z)
    same = gradient(power_grad_binary_cross_entropy_with_logits(z, target, alpha=1.0), z)
    torch.testing.assert_close(same, plain, rtol=1e-12, atol=1e-15)
    changed = gradient(power_grad_binary_cross_entropy_with_logits(z, target, alpha=0.3), z)
    assert (changed - plain).abs().max() > 1e-3


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


def test_binary_second_derivative():
    z, target = seeded(3, 2).requires_grad_(), labels(3, 2, classes=2).double()
    assert torch.autograd.gradgradcheck(
        lambda z: power_grad_binary_cross_entropy_with_logits(z, target, alpha=0.3), (z,)
    )


# What must not enter: batch size, loss scale, accumulation


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


# Where it runs


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "target", [labels(N), torch.softmax(seeded(N, C, seed=1), 1).float()], ids=["labels", "probabilities"]
)
def test_autocast_reads_the_logits_in_float32(dtype, target):
    z = seeded(N, C).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        loss = power_grad_cross_entropy(z, target, alpha=0.3)
        assert torch.equal(loss, F.cross_entropy(z, target))
        binary = power_grad_binary_cross_entropy_with_logits(z, torch.ones(N, C), alpha=0.3)
    assert loss.dtype == binary.dtype == torch.float32
    got = gradient(loss, z)
    assert got.dtype == dtype
    exact = z.detach().float().requires_grad_()
    want = gradient(power_grad_cross_entropy(exact, target, alpha=0.3), exact)
    assert torch.equal(got, want.to(dtype))


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


@cases(CROSS_ENTROPY_OPTIONS | {"probabilities": {}})
def test_compiled_equals_eager(options, request):
    z, target = seeded(N, C).requires_grad_(), labels(N)
    if "probabilities" in request.node.name:
        target = torch.softmax(seeded(N, C, seed=1), 1)
    torch.compiler.reset()
    compiled = torch.compile(power_grad_cross_entropy, backend="aot_eager", fullgraph=True)
    for alpha in (0.3, 0.25):
        got = compiled(z, target, **options, alpha=alpha)
        want = power_grad_cross_entropy(z, target, **options, alpha=alpha)
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(gradient(got, z), gradient(want, z), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("label", [0, 1], ids=["a class left in", "a class masked out"])
def test_masked_logits(label):
    z = torch.tensor([[1.0, -math.inf, 0.0]], requires_grad=True)
    loss = power_grad_cross_entropy(z, torch.tensor([label]), alpha=0.25)
    assert torch.equal(loss, F.cross_entropy(z, torch.tensor([label])))
    first, third = torch.softmax(torch.tensor([0.25, 0.0]), 0)
    want = torch.tensor([[first, 0.0, third]]) - F.one_hot(torch.tensor([label]), 3)
    torch.testing.assert_close(gradient(loss, z), want)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted, smoothed, some ignored"])
@pytest.mark.parametrize("batch", [(), (0,), (N,), (N, 3), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_equals_eager_for_every_shape_of_labels(weighted, batch, reduction, dtype):
    options = {"weight": WEIGHT.to(dtype), "label_smoothing": 0.2, "ignore_index": 2} if weighted else {}
    z = seeded(*batch[:1], C, *batch[1:], dtype=dtype).requires_grad_()
    torch.compiler.reset()
    compiled = torch.compile(power_grad_cross_entropy, backend="aot_eager", fullgraph=True)
    for target in (labels(*batch), torch.full(batch, 2)):  # 2 is the class ignored
        got, want = (
            loss(z, target, **options, reduction=reduction, alpha=0.3) for loss in (compiled, power_grad_cross_entropy)
        )
        assert torch.equal(got, want) or bool(want.isnan().all())
        tolerance = 1e-6 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(gradient(got, z), gradient(want, z), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_compiled_under_autocast_computes_in_float32(dtype):
    z, target = seeded(N, C, dtype=torch.float32).requires_grad_(), labels(N)
    torch.compiler.reset()
    compiled = torch.compile(power_grad_cross_entropy, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", dtype=dtype):
        got = compiled(z, target, reduction="sum", label_smoothing=0.1, alpha=0.3)
    want = power_grad_cross_entropy(z, target, reduction="sum", label_smoothing=0.1, alpha=0.3)
    assert torch.equal(got, want)
    torch.testing.assert_close(gradient(65536 * got, z), gradient(65536 * want, z), rtol=1e-6, atol=1e-2)


def test_compiled_keeps_masked_logits():
    z = torch.tensor([[1.0, -math.inf, 0.0]], requires_grad=True)
    compiled = torch.compile(power_grad_cross_entropy, backend="aot_eager", fullgraph=True)
    got = compiled(z, torch.tensor([0]), alpha=0.3)
    want = power_grad_cross_entropy(z, torch.tensor([0]), alpha=0.3)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradient(got, z), gradient(want, z))


def test_binary_compiled_equals_eager():
    z, target = seeded(N, C).requires_grad_(), seeded(N, C, seed=1).sigmoid()
    compiled = torch.compile(power_grad_binary_cross_entropy_with_logits, backend="aot_eager", fullgraph=True)
    got = compiled(z, target, pos_weight=WEIGHT, alpha=0.3)
    want = power_grad_binary_cross_entropy_with_logits(z, target, pos_weight=WEIGHT, alpha=0.3)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradient(got, z), gradient(want, z))


@cases(
    {name: {k: v for k, v in options.items() if k != "reduction"} for name, options in CROSS_ENTROPY_OPTIONS.items()}
)
def test_per_sample_gradients_by_vmap(options):
    z, target = seeded(N, C), torch.tensor([0, 1, 4, 1, 4, 0])
    one = torch.func.grad(lambda z, target: power_grad_cross_entropy(z, target, **options, alpha=0.3))
    got = torch.func.vmap(one)(z, target)
    torch.testing.assert_close(got, torch.stack([one(row, label) for row, label in zip(z, target, strict=True)]))
    want = cross_entropy_gradient(z[:1], target[:1], 0.3, **options)
    torch.testing.assert_close(got[:1], want)


def test_binary_per_sample_gradients_by_vmap():
    z, target = seeded(N, C), labels(N, C, classes=2).double()
    one = torch.func.grad(lambda z, t: power_grad_binary_cross_entropy_with_logits(z, t, alpha=0.3))
    torch.testing.assert_close(torch.func.vmap(one)(z, target), (torch.sigmoid(0.3 * z) - target) / C)


# The modules


def test_modules_are_the_functions():
    z, target = seeded(N, C), torch.tensor([0, 1, 2, 2, 4, 3])
    options = CROSS_ENTROPY_OPTIONS["everything"]
    module = pickle.loads(pickle.dumps(PowerGradCrossEntropyLoss(0.3, **options)))
    assert torch.equal(module(z, target), power_grad_cross_entropy(z, target, **options, alpha=0.3))
    assert isinstance(module, nn.CrossEntropyLoss)
    assert list(module.state_dict()) == ["weight"]
    assert repr(module) == "PowerGradCrossEntropyLoss(alpha=0.3)"
    options = BINARY_OPTIONS["everything"]
    binary = PowerGradBCEWithLogitsLoss(0.3, **options)
    target = seeded(N, C, seed=1).sigmoid()
    assert torch.equal(binary(z, target), power_grad_binary_cross_entropy_with_logits(z, target, **options, alpha=0.3))
    assert isinstance(binary, nn.BCEWithLogitsLoss)


def test_module_gradient_follows_its_alpha():
    z, target = seeded(N, C).requires_grad_(), labels(N)
    got = gradient(PowerGradCrossEntropyLoss(alpha=0.25)(z, target), z)
    torch.testing.assert_close(got, cross_entropy_gradient(z.detach(), target, 0.25))


# The errors

Z = torch.zeros(4, C)
BAD_CALLS = {
    "alpha": (Z, labels(4), {"alpha": 0.0}, "alpha must be a finite number above 0, got 0.0"),
    "reduction": (Z, labels(4), {"reduction": "avg"}, "one of 'none', 'mean', 'sum', got 'avg'"),
    "smoothing": (Z, labels(4), {"label_smoothing": 1.5}, "label_smoothing must lie between 0 and 1, got 1.5"),
    "integer logits": (Z.long(), labels(4), {}, "floating-point logits, got torch.int64 of shape (4, 5)"),
    "no class axis": (torch.tensor(1.0), torch.tensor(1), {}, "got a scalar"),
    "weight": (Z, labels(4), {"weight": torch.ones(3)}, "shape (5,), got (3,) for input of shape (4, 5)"),
    "target length": (
        Z,
        labels(3),
        {},
        "class indices of shape (4,) or class probabilities of shape (4, 5), got shape (3,)",
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
        "class indices must be torch.int64, got torch.float32; call target.long()",
    ),
    "int32 labels": (Z, labels(4).int(), {}, "class indices must be torch.int64, got torch.int32"),
    "ignored probabilities": (
        Z,
        Z,
        {"ignore_index": 1},
        "ignore_index=1 needs class indices, got class probabilities of shape (4, 5)",
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
    "target": (Z, Z[0], {}, "target must have the shape of input, (4, 5), got (5,)"),
    "weight": (Z, Z, {"weight": torch.ones(4)}, "weight must broadcast to the shape of input, (4, 5), got (4,)"),
    "pos_weight": (
        Z,
        Z,
        {"pos_weight": torch.ones(2, 4, 5)},
        "pos_weight must broadcast to the shape of input, (4, 5), got (2, 4, 5)",
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
    assert f"alpha must be a finite number above 0, got {alpha!r}" in str(error.value)


@pytest.mark.parametrize("alpha", [1, np.float32(0.5), np.float64(2.0)])
def test_alpha_may_be_any_real_number(alpha):
    assert type(PowerGradCrossEntropyLoss(alpha).alpha) is float
    assert PowerGradCrossEntropyLoss(alpha).alpha == alpha


@pytest.mark.parametrize("module", [PowerGradCrossEntropyLoss, PowerGradBCEWithLogitsLoss])
def test_modules_refuse_bad_options_when_built(module):
    with pytest.raises(InputError, match="got 0"):
        module(alpha=0)
    with pytest.raises(InputError, match="got 'avg'"):
        module(alpha=0.3, reduction="avg")
