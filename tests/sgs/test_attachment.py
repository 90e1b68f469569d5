"""``attach``: one controller for each kernel, and the inner optimizer of every wrapper."""

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from backpass.agc import AdaptiveGradientClipping
from backpass.errors import BackpassWarning, InputError, StateError
from backpass.sgs import SpatialGradientScaling

CENTRE = torch.tensor([[0.5, 0.5, 0.5], [0.5, 5.0, 0.5], [0.5, 0.5, 0.5]])


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 1, 3))


def backward(model: nn.Module) -> None:
    model(torch.ones(1, 1, 6, 6)).sum().backward()


def controller(model: nn.Module, **options: Any) -> SpatialGradientScaling:
    return SpatialGradientScaling(model, scaling=CENTRE, **options)


# One controller for each kernel


@pytest.mark.parametrize("apply", ["gradient", "update"])
def test_a_second_controller_on_the_same_optimizer_is_refused(apply: str) -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    first = controller(model, apply=apply).attach(optimizer)
    second = controller(model, apply=apply)
    with pytest.raises(StateError, match=r"expected a SGD without SpatialGradientScaling .*remove\(\) the first"):
        second.attach(optimizer)
    first.remove()
    second.attach(optimizer)


def test_controllers_of_different_kernels_share_an_optimizer() -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    for pattern in ("0", "1"):
        controller(model, include=[pattern]).attach(optimizer)
    backward(model)
    plain = [conv.weight.grad.clone() for conv in model]
    optimizer.step()
    for conv, grad in zip(model, plain, strict=True):
        assert torch.equal(conv.weight.grad, grad * CENTRE)


def test_a_second_agc_on_the_same_optimizer_is_refused() -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    AdaptiveGradientClipping(model, head=None).attach(optimizer)
    with pytest.raises(StateError, match="expected a SGD without AdaptiveGradientClipping"):
        AdaptiveGradientClipping(model, head=None).attach(optimizer)


@pytest.mark.parametrize("clip", [False, True])
def test_attached_and_called_is_refused(clip: bool) -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    sgs = controller(model)
    attachment = sgs.attach(optimizer)
    backward(model)
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    with pytest.raises(StateError, match=r"attached to SGD, whose step\(\) scales .* leave out scale_gradients\(\)"):
        sgs.scale_gradients()
    attachment.remove()
    sgs.scale_gradients()


def test_an_optimizer_that_is_gone_counts_no_more() -> None:
    model = net()
    sgs = controller(model)
    sgs.attach(SGD(model.parameters(), lr=0.1))
    backward(model)
    sgs.scale_gradients()


def test_updates_scaled_by_two_controllers_at_once_are_refused() -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    first, second = (controller(model, apply="update") for _ in range(2))
    with (
        pytest.raises(StateError, match="running already, and scaling inside it would count twice"),
        first.scaled_update(),
        second.scaled_update(),
    ):
        pass
    second.attach(optimizer)
    with pytest.raises(StateError, match="would count twice"), first.scaled_update():
        optimizer.step()


# Copies


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_controller_pickles_and_its_copy_is_attached_to_nothing(copied: Any) -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    sgs = SpatialGradientScaling(model, include=["1"])
    sgs.update([torch.randn(4, 1, 6, 6)])
    sgs.attach(optimizer)
    backward(model)
    optimizer.step()
    twin_model, twin = copied((model, sgs))
    assert torch.equal(twin.scalings["1.weight"], sgs.scalings["1.weight"])
    backward(twin_model)
    plain = twin_model[1].weight.grad.clone()
    twin.scale_gradients()
    assert torch.equal(twin_model[1].weight.grad, plain * sgs.scalings["1.weight"])
    with pytest.raises(StateError, match="attached to SGD"):
        sgs.scale_gradients()


# Wrappers


def accelerated(optimizer: Optimizer) -> Any:
    return pytest.importorskip("accelerate").Accelerator(cpu=True).prepare(optimizer)


def lightning(optimizer: Optimizer) -> Any:
    return pytest.importorskip("lightning.pytorch.core.optimizer").LightningOptimizer(optimizer)


def lookahead(optimizer: Optimizer) -> Any:
    return pytest.importorskip("timm.optim").Lookahead(optimizer)


def schedule_free(optimizer: Optimizer) -> Any:
    wrapper = pytest.importorskip("schedulefree").ScheduleFreeWrapper(optimizer)
    wrapper.train()
    return wrapper


def post_local_sgd(optimizer: Optimizer) -> Any:
    class KeepsParameters:
        def average_parameters(self, params: Any) -> None:
            """Stands for an average over processes."""

    module = pytest.importorskip("torch.distributed.optim")
    return module.PostLocalSGDOptimizer(optimizer, KeepsParameters())


class Sam(Optimizer):
    """As the common implementations of sharpness-aware minimisation: two steps, the second one by another optimizer."""

    def __init__(self, optimizer: SGD) -> None:
        super().__init__(optimizer.param_groups, {})
        self.base_optimizer = optimizer

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old"] = p.clone()
                p.add_(0.05 * p.grad / p.grad.norm())
        self.zero_grad()
        torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                p.data = self.state[p]["old"]
        self.base_optimizer.step()


@pytest.mark.parametrize("wrap", [accelerated, lightning, lookahead, schedule_free, post_local_sgd, Sam])
def test_wrapped_optimizers(wrap: Any) -> None:
    model = net()
    inner = SGD(model.parameters(), lr=0.1)
    optimizer = inner if wrap is lightning else wrap(inner)
    controller(model).attach(wrap(inner) if wrap is lightning else optimizer)
    stepped: list[Tensor] = []
    inner.register_step_pre_hook(lambda *_: stepped.append(model[0].weight.grad.clone()))
    backward(model)
    plain = model[0].weight.grad.clone()
    if wrap is Sam:
        optimizer.step(lambda: backward(model))
        of_ones = stepped[0] / CENTRE  # a map of ones gives the same plain gradient at each tap
        torch.testing.assert_close(of_ones, of_ones[..., 1:2, 1:2].expand_as(of_ones))
    else:
        optimizer.step()
        assert torch.equal(stepped[0], plain * CENTRE)


class CallsSuper(SGD):
    """A subclass whose step calls that of SGD, which calls the hooks too once an SGD has been made."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


@pytest.mark.parametrize("fused", [False, True])
def test_a_subclass_that_calls_the_step_of_its_base_class_scales_once(fused: bool) -> None:
    model = net()
    SGD(model.parameters())
    optimizer = CallsSuper(model.parameters(), lr=0.1, fused=fused)
    controller(model).attach(optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        backward(model)
        plain = model[0].weight.grad.clone()
        optimizer.step()
        assert torch.equal(model[0].weight.grad, plain * CENTRE)
    with pytest.raises(StateError, match="scaled already"):
        optimizer.step()


def test_an_object_without_an_optimizer_is_refused() -> None:
    with pytest.raises(InputError, match=r"a wrapper that holds one as optimizer, .*got Conv2d"):
        controller(net()).attach(nn.Conv2d(1, 1, 1))  # type: ignore[arg-type]


# Order with clipping


def test_agc_attached_before_is_warned_of() -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    AdaptiveGradientClipping(model, head=None).attach(optimizer)
    with pytest.warns(BackpassWarning, match=r"AdaptiveGradientClipping is attached to this SGD before"):
        controller(model).attach(optimizer)


def test_agc_attached_before_is_right_where_the_update_is_scaled() -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    AdaptiveGradientClipping(model, head=None).attach(optimizer)
    controller(model, apply="update").attach(optimizer)


def test_a_controller_that_is_not_attached_is_freed_without_the_garbage_collector() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3))
    sgs = SpatialGradientScaling(model)
    kernel = weakref.ref(model[0].weight)
    gc.disable()
    try:
        del sgs, model
        assert kernel() is None
    finally:
        gc.enable()
