"""A gradient is scaled once for each step, whoever asks for it and however the loop accumulates."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from backpass.errors import BackpassWarning, StateError
from backpass.sgs import SpatialGradientScaling, gradients

CENTRE = torch.tensor([[0.5, 0.5, 0.5], [0.5, 5.0, 0.5], [0.5, 0.5, 0.5]])
ONCE_PER_STEP = r"scaled before the last backward\(\) or clipping.*\(0\.weight\); with gradient accumulation, call"


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 1))


def backward(model: nn.Module) -> None:
    model(torch.ones(1, 1, 5, 5)).sum().backward()


def controller(model: nn.Module, **options: Any) -> SpatialGradientScaling:
    return SpatialGradientScaling(model, scaling=CENTRE, **options)


def test_scaling_at_every_micro_batch_is_refused() -> None:
    model = net()
    sgs, optimizer = controller(model), torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # also in a step after the first
        backward(model)
        sgs.scale_gradients()
        optimizer.step()
        optimizer.zero_grad()
    backward(model)
    sgs.scale_gradients()
    backward(model)
    before = model[0].weight.grad.clone()
    with pytest.raises(StateError, match=ONCE_PER_STEP):
        sgs.scale_gradients()
    assert torch.equal(model[0].weight.grad, before)


def test_gradients_of_an_earlier_step_are_left_alone_and_new_ones_scaled() -> None:
    model = nn.ModuleList([nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3)])
    sgs, x = controller(model), torch.rand(1, 1, 5, 5)
    (model[0](x) + model[1](x)).sum().backward()
    sgs.scale_gradients()
    old, new = model[0].weight.grad.clone(), model[1].weight.grad.clone()
    model[1].zero_grad()
    model[1](x).sum().backward()
    sgs.scale_gradients()
    assert torch.equal(model[0].weight.grad, old)
    assert torch.equal(model[1].weight.grad, new)
    model[1].zero_grad()
    (model[0](x) + model[1](x)).sum().backward()  # the first is added to, and the second new
    with pytest.warns(BackpassWarning, match=r"^0\.weight: .* are scaled twice now, .* scale_gradients\(optimizer\)"):
        sgs.scale_gradients()
    torch.testing.assert_close(model[1].weight.grad, new)


def test_steps_and_zeroing_that_count_no_write_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, where fused steps and the zeroing of several gradients at once leave versions as they are."""
    monkeypatch.setattr(torch, "_foreach_zero_", lambda tensors: [tensor.data.zero_() for tensor in tensors])
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, fused=True)
    sgs = controller(model)
    hook = register_optimizer_step_post_hook(gradients._note_step)
    try:
        scaled = []
        for _ in range(3):
            optimizer.zero_grad(set_to_none=False)
            backward(model)
            sgs.scale_gradients()
            scaled.append(model[0].weight.grad.clone())
            optimizer.step()
        assert all(torch.equal(grad, scaled[0]) for grad in scaled)
        sgs.remove()
        backward(model)
        sgs.scale_gradients()
        backward(model)
        with pytest.raises(StateError, match=ONCE_PER_STEP):
            sgs.scale_gradients()
    finally:
        hook.remove()


def test_the_readme_line_under_accelerates_accumulation_is_refused() -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4)
    model = net()
    sgs = controller(model)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))

    def loop(scale: Callable[[], None]) -> Tensor | None:
        optimizer.zero_grad()
        for _ in range(4):
            with accelerator.accumulate(model):
                accelerator.backward(model(torch.ones(1, 1, 5, 5)).sum())
                scale()
                optimizer.step()
        return model[0].weight.grad[0, 0]

    with pytest.raises(StateError, match=r"if accelerator\.sync_gradients"):
        loop(sgs.scale_gradients)
    model.zero_grad()
    accelerator.step = 0
    plain = loop(lambda: None).clone()
    scaled = loop(lambda: sgs.scale_gradients() if accelerator.sync_gradients else None)
    ratio = scaled / plain
    torch.testing.assert_close(ratio / ratio.mean(), CENTRE / CENTRE.mean())


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_skipped_steps_and_accumulation_are_allowed(set_to_none: bool, kind: Any) -> None:
    model = net()
    sgs, optimizer = controller(model), kind(model.parameters(), lr=0.1)
    for step in range(4):
        for _ in range(2):
            backward(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        sgs.scale_gradients()
        if step % 2:  # as a GradScaler does where gradients overflow
            optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)


def test_the_old_gradients_of_frozen_kernels_are_left_alone() -> None:
    model = nn.Sequential(net(), nn.Flatten(), nn.LazyLinear(2))
    backward(model)
    sgs = controller(model)
    sgs.scale_gradients()
    old = [parameter.grad.clone() for parameter in model[0].parameters()]
    model[0].requires_grad_(False)
    model[2].zero_grad()
    backward(model)
    sgs.scale_gradients()
    assert all(torch.equal(parameter.grad, kept) for parameter, kept in zip(model[0].parameters(), old, strict=True))


def test_a_second_controller_on_the_same_kernels_is_refused() -> None:
    model = net()
    backward(model)
    controller(model).scale_gradients()
    with pytest.raises(StateError, match=r"got those that are scaled already.*remove\(\) a controller"):
        controller(model).scale_gradients()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    with pytest.raises(StateError, match=ONCE_PER_STEP):
        controller(model).scale_gradients()


def test_two_controllers_share_a_model() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3))
    backward(model)
    plain = [conv.weight.grad.clone() for conv in model]
    for pattern in ("0", "1"):
        controller(model, include=[pattern]).scale_gradients()
    for conv, grad in zip(model, plain, strict=True):
        assert torch.equal(conv.weight.grad, grad * CENTRE)


def test_a_gradient_keeps_only_its_own_mark() -> None:
    model = net()
    backward(model)
    controller(model).scale_gradients()
    assert not any(vars(p) for p in model.parameters())
