import math

import pytest
import torch
from torch.nn import functional as F

from backpass.pgt import (
    power_grad_binary_cross_entropy_with_logits,
    power_grad_cross_entropy,
)
from reference.power_grad import cross_entropy_gradient
from reference.power_grad_cases import (
    CROSS_ENTROPY_OPTIONS,
    WEIGHT,
    C,
    N,
    cases,
    gradient,
    labels,
    seeded,
)


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
